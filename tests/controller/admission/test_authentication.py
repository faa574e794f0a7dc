"""Keys and roles over HTTP: who is let in, whose job it is, and how keys are replaced."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from app.api_keys import Role, new_key
from app.ledger.ids import IdSigner
from app.redis import keys
from app.server_errors import ConfigurationError, UnauthenticatedError
from controller.admission.authentication import CACHED_CALLERS, OPEN_PATHS, Access, Caller
from controller.main import create_app
from tests.controller.conftest import HandWorker, Serve, Served, nothing_is_queued, settings_for, until

HandWorkers = Callable[..., HandWorker]
UNKNOWN = "/results/" + "A" * 32 + ".0"


class KeyFile:
    """A file of keys that the test adds to and takes from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, str] = {}

    def add(self, name: str, role: Role = "predict") -> dict[str, str]:
        """Make a key and write it down; answers the header that carries it."""
        key, made = new_key(name, role)
        self._lines[key] = made.line()
        self._write()
        return {"authorization": f"Bearer {key}"}

    def remove(self, header: dict[str, str]) -> None:
        del self._lines[header["authorization"].removeprefix("Bearer ")]
        self._write()

    def _write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text("\n".join(self._lines.values()) + "\n")
        new.replace(self.path)


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys")


async def post(served: Served, header: dict[str, str], **headers: str) -> httpx.Response:
    return await served.http.post("/predict", json={"data": [1, 2]}, headers=header | headers)


async def status_of(served: Served, method: str, path: str, header: dict[str, str]) -> int:
    return (await served.http.request(method, path, headers=header)).status_code


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer modelyard_wrong-SECRET"},
        {"authorization": "Basic dXNlcjpTRUNSRVQ="},
        {"authorization": "modelyard_SECRET"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("GET", UNKNOWN),
        ("DELETE", UNKNOWN),
        ("GET", "/workers"),
        ("GET", "/metrics"),
        ("GET", "/no-such-path"),
        ("GET", "/workers/"),
        ("GET", "/healthz/"),
    ],
)
async def test_without_a_valid_key_everything_but_health_and_documentation_is_401(
    serve: Serve,
    hand_worker: HandWorkers,
    key_file: KeyFile,
    client: redis.Redis,
    method: str,
    path: str,
    header: Any,
) -> None:
    hand_worker()
    key_file.add("shop")
    served = await serve(api_keys_file=key_file.path)
    answer = await served.http.request(
        method, path, headers=header, content=b'{"data": [1, 2]}' if method == "POST" else None
    )
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (401, 401, "unauthenticated")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == 'Bearer realm="modelyard"'
    assert "Authorization: Bearer" in problem["detail"]
    assert "SECRET" not in answer.text
    assert nothing_is_queued(client)


@pytest.mark.parametrize("path", [*sorted(OPEN_PATHS), "/static-offline-docs/swagger-ui.css"])
async def test_health_and_documentation_need_no_key(
    serve: Serve, hand_worker: HandWorkers, key_file: KeyFile, path: str
) -> None:
    hand_worker()
    key_file.add("shop")
    served = await serve(api_keys_file=key_file.path)
    assert await status_of(served, "GET", path, {}) == 200


@pytest.mark.parametrize("path", ["/workers", "/metrics"])
async def test_what_shows_the_pool_is_for_operators(serve: Serve, key_file: KeyFile, path: str) -> None:
    shop, ops = key_file.add("shop"), key_file.add("ops", "operate")
    served = await serve(api_keys_file=key_file.path)
    refused = await served.http.get(path, headers=shop)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "`operate`" in refused.json()["detail"]
    assert await status_of(served, "GET", path, ops) == 200


async def test_every_route_that_is_not_open_names_a_role_and_the_documentation_says_so(serve: Serve) -> None:
    served = await serve()
    paths = (await served.http.get("/openapi.json")).json()["paths"]
    unnamed = {path for path, calls in paths.items() for call in calls.values() if not call["security"]}
    health = {"/healthz", "/readyz", "/readyz/read", "/ping", "/health", "/version"}
    signed = {"/registry/webhook"}
    assert unnamed == health | signed | {"/v2", "/v2/health/live", "/v2/health/ready"}
    assert paths["/predict"]["post"]["security"] == [{"api_key": []}]
    assert {"401", "403"} <= paths["/workers"]["get"]["responses"].keys()


async def test_a_job_is_its_clients_and_the_operators(
    serve: Serve, hand_worker: HandWorkers, key_file: KeyFile
) -> None:
    worker = hand_worker()
    shop, rival, ops = key_file.add("shop"), key_file.add("rival"), key_file.add("ops", "operate")
    served, other = await serve(api_keys_file=key_file.path), await serve(api_keys_file=key_file.path)
    url = (await post(served, shop)).headers["location"]
    for each in (served, other):
        assert [await status_of(each, "GET", url, who) for who in (shop, ops, rival)] == [200, 200, 404]
    assert await status_of(other, "DELETE", url, rival) == 404
    assert (await served.http.get(url, headers=shop)).json()["status"] == "queued"
    worker.finish(await worker.claimed())
    done = await other.http.get(f"{url}?wait=4", headers=shop)
    assert done.json()["status"] == "succeeded"
    assert await status_of(other, "GET", f"{url}?wait=4", rival) == 404
    second = (await post(served, shop)).headers["location"]
    assert await status_of(other, "DELETE", second, ops) == 200


async def test_jobs_of_several_clients_in_one_batch_stay_apart(
    serve: Serve, hand_worker: HandWorkers, key_file: KeyFile
) -> None:
    worker = hand_worker()
    who = [key_file.add("shop"), key_file.add("rival")]
    served = await serve(api_keys_file=key_file.path)
    answers = await asyncio.gather(*(post(served, header) for header in who))
    urls = [answer.headers["location"] for answer in answers]
    assert len({url.split(".")[0] for url in urls}) == 1
    worker.finish(await worker.claimed())
    seen = [[await status_of(served, "GET", url, header) for url in urls] for header in who]
    assert seen == [[200, 404], [404, 200]]


async def test_to_a_client_anothers_job_one_that_is_gone_and_one_that_never_was_look_alike(
    serve: Serve, hand_worker: HandWorkers, key_file: KeyFile, client: redis.Redis
) -> None:
    hand_worker()
    shop, rival, ops = key_file.add("shop"), key_file.add("rival"), key_file.add("ops", "operate")
    served = await serve(api_keys_file=key_file.path)
    secret = client.get(keys.SECRET)
    assert isinstance(secret, bytes)
    gone = f"/results/{IdSigner(secret).new_batch_id(1_700_000_000_000, 1)}.0"
    url = (await post(served, shop)).headers["location"]
    for method in ("GET", "DELETE"):
        answers = [await served.http.request(method, each, headers=rival) for each in (url, gone, UNKNOWN)]
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.text for answer in answers}) == 1
        assert await status_of(served, method, gone, ops) == 410


async def test_an_idempotency_key_belongs_to_one_client(
    serve: Serve, hand_worker: HandWorkers, key_file: KeyFile
) -> None:
    hand_worker()
    shop, shop_new, rival = key_file.add("shop"), key_file.add("shop"), key_file.add("rival")
    served = await serve(api_keys_file=key_file.path)
    first, again, others = [
        (await post(served, who, **{"idempotency-key": "order-1"})).json()["id"]
        for who in (shop, shop_new, rival)
    ]
    assert first == again
    assert others != first


async def test_a_client_with_a_new_key_still_reads_its_jobs_and_the_old_key_ends_without_a_restart(
    serve: Serve, hand_worker: HandWorkers, key_file: KeyFile
) -> None:
    hand_worker()
    old = key_file.add("shop")
    served = await serve(api_keys_file=key_file.path, heartbeat_s=0.02)
    url = (await post(served, old)).headers["location"]
    new = key_file.add("shop")
    await _until_status(served, url, new, 200)
    assert await status_of(served, "GET", url, old) == 200
    key_file.remove(old)
    await _until_status(served, url, old, 401)
    assert await status_of(served, "GET", url, new) == 200


async def _until_status(served: Served, url: str, header: dict[str, str], status: int) -> None:
    for _ in range(1000):
        if await status_of(served, "GET", url, header) == status:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{url} is not answered with {status}")


@pytest.mark.parametrize("broken", ["shop predict modelyard_SECRET\n", "", None])
async def test_a_file_that_breaks_while_serving_is_logged_and_the_keys_stay_as_they_were(
    serve: Serve, key_file: KeyFile, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    ops = key_file.add("ops", "operate")
    served = await serve(api_keys_file=key_file.path, heartbeat_s=0.02)
    with caplog.at_level(logging.ERROR):
        if broken is None:
            key_file.path.unlink()
        else:
            key_file.path.write_text(broken)
        await until(lambda: "stay valid" in caplog.text, "the error is logged")
    assert "SECRET" not in caplog.text
    assert await status_of(served, "GET", "/workers", ops) == 200
    assert await status_of(served, "GET", "/workers", {}) == 401
    key_file.remove(ops)
    newer = key_file.add("ops", "operate")
    await _until_status(served, "/workers", newer, 200)
    assert await status_of(served, "GET", "/workers", ops) == 401


def test_a_malformed_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("shop predict\n")
    with pytest.raises(ConfigurationError, match="line 1"):
        create_app(settings_for("unix:///nowhere", api_keys_file=tmp_path / "keys"))


async def test_jobs_from_before_there_were_keys_are_the_operators(
    serve: Serve, hand_worker: HandWorkers, key_file: KeyFile
) -> None:
    hand_worker()
    open_to_all = await serve()
    url = (await open_to_all.post()).headers["location"]
    shop, ops = key_file.add("shop"), key_file.add("ops", "operate")
    guarded = await serve(api_keys_file=key_file.path)
    assert [await status_of(guarded, "GET", url, who) for who in (shop, ops)] == [404, 200]


async def test_the_scheme_may_be_spelt_in_any_case(serve: Serve, key_file: KeyFile) -> None:
    key = key_file.add("ops", "operate")["authorization"].removeprefix("Bearer ")
    served = await serve(api_keys_file=key_file.path)
    for spelling in (f"bearer {key}", f"BEARER  {key}"):
        for _ in range(2):
            assert await status_of(served, "GET", "/workers", {"authorization": spelling}) == 200


def test_spellings_of_a_valid_key_do_not_fill_the_memory(key_file: KeyFile) -> None:
    key = key_file.add("ops", "operate")["authorization"].removeprefix("Bearer ")
    access = Access(settings_for("unix:///nowhere", api_keys_file=key_file.path))
    schemes = ["".join(letters) for letters in product(*zip("bearer", "BEARER", strict=True))]
    tracemalloc.start()
    try:
        for scheme, n_spaces in product(schemes, [*range(1, 100), 100_000]):
            assert access.caller(f"{scheme}{' ' * n_spaces}{key}".encode()).is_operator
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < CACHED_CALLERS * 1000


def test_a_lent_key_counts_until_it_is_taken_back_or_its_client_has_no_key(key_file: KeyFile) -> None:
    ann, _ = key_file.add("ann", "operate"), key_file.add("bob")
    access = Access(settings_for("redis://localhost", api_keys_file=key_file.path))
    first, second = (f"Bearer {access.lend('ann')}".encode() for _ in range(2))
    assert access.caller(first) == access.caller(second) == Caller("ann", is_operator=False)
    assert access.lend("eve") == ""
    access.revoke(first.decode().removeprefix("Bearer "))
    with pytest.raises(UnauthenticatedError):
        access.caller(first)
    assert access.caller(second).name == "ann"
    key_file.remove(ann)
    for _ in range(2):  # two looks see the same edit
        access.refresh()
    with pytest.raises(UnauthenticatedError):
        access.caller(second)
