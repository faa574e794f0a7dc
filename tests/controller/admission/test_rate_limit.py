"""The rate limit of a client: one count over all controllers, one client's never another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
import redis

from app.api_keys import new_key
from app.redis import keys
from app.server_errors import ConfigurationError
from app.settings import ControllerSettings, load
from tests.controller.conftest import HandWorker, Serve, Served

HandWorkers = Callable[..., HandWorker]


async def post(served: Served, key: str = "", n_samples: int = 1) -> httpx.Response:
    header = {"authorization": f"Bearer {key}"} if key else {}
    return await served.http.post("/predict", json={"data": [[1, 2]] * n_samples}, headers=header)


async def test_two_controllers_count_together_and_clients_apart(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    hand_worker()
    (shop, shop_line), (rival, rival_line) = new_key("shop", "predict"), new_key("rival", "predict")
    shop_new, shop_new_line = new_key("shop", "predict")
    lines = ",".join(known.line() for known in (shop_line, shop_new_line, rival_line))
    first = await serve(api_keys=lines, rate_limit="5/hour")
    second = await serve(api_keys=lines, rate_limit="5/hour")
    answers = await asyncio.gather(
        *(post(each, key) for each in (first, second) for key in (shop, shop_new) * 2)
    )
    assert sorted(answer.status_code for answer in answers) == [202] * 5 + [429] * 3
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "rate_limited"
    assert "5/hour" in refused.json()["detail"]
    assert 1 <= int(refused.headers["retry-after"]) <= 3600
    assert (await post(second, rival)).status_code == 202
    counts = list(client.scan_iter(f"{keys.RATE}:*"))
    assert len(counts) == 2
    assert all(client.ttl(name) > 0 for name in counts)
    assert not any(shop.encode() in name for name in counts)


async def test_without_keys_a_client_is_its_address(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve(rate_limit="1/hour")
    assert [(await post(served)).status_code for _ in range(2)] == [202, 429]
    transport = httpx.ASGITransport(app=served.app, client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as elsewhere:
        answer = await elsewhere.post(
            "/predict", json={"data": [1, 2]}, headers={"x-forwarded-for": "192.0.2.8"}
        )
        assert answer.status_code == 202


async def test_jobs_can_be_read_past_the_limit(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve(rate_limit="1/hour")
    url = (await post(served)).headers["location"]
    for _ in range(3):
        assert (await served.http.get(url)).status_code == 200
    assert (await served.http.delete(url)).status_code == 200


async def test_a_client_is_let_in_again_after_its_window(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve(rate_limit="2/second")
    assert [(await post(served)).status_code for _ in range(3)] == [202, 202, 429]
    for _ in range(300):
        if (await post(served)).status_code == 202:
            return
        await asyncio.sleep(0.02)
    pytest.fail("refused for ever")


async def test_each_sample_of_a_request_counts(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve(rate_limit="100/hour")
    sizes = (60, 41, 40, 1)
    assert [(await post(served, n_samples=n)).status_code for n in sizes] == [202, 429, 202, 429]


async def test_what_is_refused_for_its_form_counts_as_one(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve(rate_limit="2/hour")
    answers = [await served.post(body) for body in ({"data": [1, 2, 3]}, b"{", {"data": [1, 2]})]
    assert [answer.status_code for answer in answers] == [422, 400, 429]


async def test_a_request_larger_than_the_limit_is_told_that_waiting_is_of_no_use(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve(rate_limit="5/second")
    answer = await post(served, n_samples=6)
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")
    assert "retry-after" not in answer.headers
    assert "5/second" in answer.json()["detail"]


async def test_a_client_that_used_up_its_limit_is_refused_before_its_body_is_read(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve(rate_limit="1/hour")
    assert [(await post(served)).status_code for _ in range(2)] == [202, 429]
    assert (await served.post(b"{")).status_code == 429


@pytest.mark.parametrize("n_samples", [1, 10])
async def test_a_refused_client_that_comes_back_when_it_was_told_to_is_let_in(
    serve: Serve, hand_worker: HandWorkers, n_samples: int
) -> None:
    hand_worker()
    served = await serve(rate_limit="10/second")
    assert (await post(served, n_samples=10)).status_code == 202
    refused = await post(served, n_samples=n_samples)
    await asyncio.sleep(int(refused.headers["retry-after"]))
    assert (await post(served, n_samples=n_samples)).status_code == 202


async def test_a_client_is_told_how_long_its_samples_count(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve(rate_limit="10/hour")
    assert (await post(served, n_samples=10)).status_code == 202
    told_s = [int((await post(served, n_samples=n)).headers["retry-after"]) for n in (10, 1)]
    # After an hour they begin to count less, each sample by a tenth of the next hour.
    assert told_s == pytest.approx([7200 - 360, 7200 - 3600], abs=5)


@pytest.mark.parametrize("limit", ["often", "0/second", "5 per fortnight", "-1/second", "5"])
def test_a_limit_that_is_none_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("MODELYARD_RATE_LIMIT", limit)
    with pytest.raises(ConfigurationError, match="MODELYARD_RATE_LIMIT"):
        load(ControllerSettings)
