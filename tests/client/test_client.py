from __future__ import annotations

import asyncio
import gc
import inspect
import re
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import trustme
from starlette.responses import Response

from app.server_errors import (
    ConfigurationError,
    ForbiddenError,
    IdempotencyConflictError,
    InputError,
    InputNotFiniteError,
    InputNotNumericError,
    JobNotCancellableError,
    ModelyardError,
    NoCandidateError,
    NotFoundError,
    QueueFullError,
    UnauthenticatedError,
    UnavailableError,
    UnknownJobError,
    UnknownWorkerError,
)
from modelyard import AsyncClient, Client, RetryPolicy
from modelyard.client_errors import (
    AnswerUnreadableError,
    ControllerUnreachableError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    JobUnsuccessfulError,
    WaitTimeoutError,
)
from tests.client.conftest import RECEIPT, serving

if TYPE_CHECKING:
    from tests.client.conftest import Ask, ControllerDouble

ATTEMPTS = 4  # of the clients that the fixture makes

SEVEN = np.zeros((1, 1, 28, 28), dtype=np.float32)
SEVEN[0, 0, 14, 14] = 0.7


def keys(double: ControllerDouble) -> list[str]:
    return [headers["idempotency-key"] for method, _, _, headers in double.requests if method == "POST"]


def test_predicts_an_array_and_says_by_which_version(ask: Ask) -> None:
    job = ask("predict", SEVEN)
    assert job.status == "succeeded"
    assert job.predictions[0].predicted == 7
    assert job.predictions[0].confidence == 1.0
    assert (job.worker, job.model_name, job.model_version) == (1, "MNIST_PyTorch_Model", 1)
    assert (job.val_accuracy, job.policy, job.forced) == (0.91, "highest_val_accuracy", False)
    assert (job.inference_ms, job.queue_wait_ms, job.end_to_end_ms) == (0.5, 1.5, 3.0)


@pytest.mark.parametrize(
    "samples", [SEVEN.tolist(), SEVEN[:, :, ::2, ::2], SEVEN.astype(">f8"), np.array([[7]]) / 10]
)
def test_takes_lists_and_arrays_of_any_layout(ask: Ask, samples: Any) -> None:
    assert ask("predict", samples).predictions[0].predicted == 7


def test_predicts_several_samples_in_one_job(ask: Ask) -> None:
    job = ask("predict", np.concatenate([SEVEN, SEVEN / 7 * 3]))
    assert [prediction.predicted for prediction in job.predictions] == [7, 3]


def test_query_says_only_what_was_asked(ask: Ask, double: ControllerDouble) -> None:
    ask("submit", SEVEN)
    ask("submit", SEVEN, worker=2, model="m", version=5, deadline_s=1.5)
    ask("predict", SEVEN, wait_s=0.5)
    assert [query for _, _, query, _ in double.requests] == [
        {"wait": "0.0"},
        {"worker": "2", "model": "m", "version": "5", "deadline": "1.5", "wait": "0.0"},
        {"wait": "0.5"},
    ]


def test_every_call_has_a_key_of_its_own_unless_one_is_given(ask: Ask, double: ControllerDouble) -> None:
    ids = {ask("submit", SEVEN).id, ask("submit", SEVEN).id}
    assert len(ids) == len(set(keys(double))) == 2
    assert ask("submit", SEVEN, idempotency_key="mine").id == ask("submit", SEVEN, idempotency_key="mine").id
    assert keys(double)[2:] == ["mine", "mine"]


@pytest.mark.parametrize(("status", "code"), [(429, "queue_full"), (503, "no_candidate")])
def test_refusal_is_tried_again_with_the_same_key(
    ask: Ask, double: ControllerDouble, status: int, code: str
) -> None:
    double.refuse(status, code, retry_after="0")
    double.refuse(status, code)
    assert ask("predict", SEVEN).predictions[0].predicted == 7
    assert len(keys(double)) == 3
    assert len(set(keys(double))) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(429, "queue_full", QueueFullError), (503, "no_candidate", NoCandidateError)]
)
def test_attempts_are_bounded(
    ask: Ask, double: ControllerDouble, status: int, code: str, kind: type[ModelyardError]
) -> None:
    double.refuse(status, code, times=20)
    with pytest.raises(kind):
        ask("predict", SEVEN)
    assert len(double.requests) == ATTEMPTS


def test_controller_that_asks_for_too_much_patience_is_not_asked_again(
    ask: Ask, double: ControllerDouble
) -> None:
    double.refuse(503, "ledger_unavailable", retry_after="3600")
    with pytest.raises(UnavailableError) as raised:
        ask("predict", SEVEN)
    assert raised.value.retry_after_s == 3600
    assert len(double.requests) == 1


def test_bad_request_is_not_tried_again(ask: Ask, double: ControllerDouble) -> None:
    with pytest.raises(UnknownWorkerError, match="known: 1, 2"):
        ask("predict", SEVEN, worker=9)
    assert len(double.requests) == 1


def test_the_api_key_of_the_environment_is_sent_with_every_call(
    ask: Ask, double: ControllerDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("workers")
    monkeypatch.setenv("MODELYARD_API_KEY", "modelyard_k\n")
    ask("workers")
    ask("predict", SEVEN)
    sent = [headers.get("authorization") for _, _, _, headers in double.requests]
    assert sent == [None, "Bearer modelyard_k", "Bearer modelyard_k"]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_environment_names_the_controller_unless_the_caller_does(
    kind: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELYARD_URL", "ftp://elsewhere")
    with pytest.raises(ConfigurationError, match="ftp://elsewhere"):
        kind()
    kind("http://127.0.0.1:9000")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_api_key_that_cannot_be_one_is_refused_and_not_shown(kind: Callable[..., object]) -> None:
    for key in ("modelyard_SECRET\nX: y", "SECRETä", "a SECRET"):
        with pytest.raises(ConfigurationError, match="MODELYARD_API_KEY") as caught:
            kind(api_key=key)
        assert "SECRET" not in caught.value.detail


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "unauthenticated", UnauthenticatedError),
        (401, "", UnauthenticatedError),
        (403, "forbidden", ForbiddenError),
    ],
)
def test_a_refused_api_key_is_an_error_at_once(
    ask: Ask, double: ControllerDouble, status: int, code: str, kind: type[ModelyardError]
) -> None:
    double.refuse(status, code)
    with pytest.raises(kind):
        ask("predict", SEVEN)
    assert len(double.requests) == 1


def test_a_rate_limit_is_waited_out(ask: Ask, double: ControllerDouble) -> None:
    double.refuse(429, "rate_limited", retry_after="0")
    assert ask("predict", SEVEN).predictions[0].predicted == 7
    assert len(double.requests) == 2


def test_key_of_an_earlier_attempt_that_is_still_being_accepted_is_waited_for(
    ask: Ask, double: ControllerDouble
) -> None:
    double.refusals.append(Response("bad gateway", 502))
    double.refuse(503, "idempotency_pending", retry_after="0")
    assert ask("predict", SEVEN).predictions[0].predicted == 7


def test_key_that_belongs_to_another_request_is_an_error_at_once(ask: Ask, double: ControllerDouble) -> None:
    double.refusals.append(Response("bad gateway", 502))
    double.refuse(409, "idempotency_conflict")
    with pytest.raises(IdempotencyConflictError):
        ask("submit", SEVEN, idempotency_key="taken")
    assert len(double.requests) == 2


def test_no_controller_at_the_address_is_one_clear_error(ask: Ask) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ControllerUnreachableError, match=address):
            ask("predict", SEVEN, at=address)


def test_broken_connection_is_tried_again_with_the_same_key(ask: Ask) -> None:
    answers = deque([httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ReadTimeout("slow")])
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["idempotency-key"])
        if answers:
            raise answers.popleft()
        return httpx.Response(202, json=RECEIPT)

    assert ask("submit", SEVEN, transport=httpx.MockTransport(handle)).id == RECEIPT["id"]
    assert len(seen) == 4
    assert len(set(seen)) == 1


HTTPX_ERRORS = [
    kind
    for _, kind in inspect.getmembers(httpx, inspect.isclass)
    if issubclass(kind, httpx.RequestError | httpx.InvalidURL)
]


@pytest.mark.parametrize("kind", HTTPX_ERRORS)
def test_no_error_of_httpx_gets_out(ask: Ask, kind: type[Exception]) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise kind("something")

    with pytest.raises(ModelyardError, match="something"):
        ask("workers", transport=httpx.MockTransport(handle), retry=RetryPolicy(attempts=1))


def test_job_that_takes_long_is_polled_until_its_outcome(ask: Ask, double: ControllerDouble) -> None:
    double.polls_until_done = 3
    assert ask("predict", SEVEN).status == "succeeded"
    assert [method for method, _, _, _ in double.requests] == ["POST", "GET", "GET", "GET"]
    assert all(0 < float(query["wait"]) <= 20 for _, _, query, _ in double.requests)


def test_submitted_job_can_be_waited_for_and_read(ask: Ask) -> None:
    job = ask("submit", SEVEN)
    assert not job.done
    assert ask("result", job.id).status == "queued"
    assert ask("wait", job.id, 5).predictions[0].predicted == 7
    assert ask("result", job.id).done


@pytest.mark.parametrize("method", ["predict", "wait"])
def test_time_that_runs_out_leaves_the_job_to_wait_for(
    ask: Ask, double: ControllerDouble, method: str
) -> None:
    double.polls_until_done = 10**9
    subject = SEVEN if method == "predict" else ask("submit", SEVEN).id
    with pytest.raises(WaitTimeoutError, match="still running") as raised:
        ask(method, subject, **{"wait_s" if method == "predict" else "timeout_s": 0.05})
    assert raised.value.job.id in double.jobs


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        ("failed", JobFailedError, r"failed: the model raised ValueError \(model_failed\)"),
        ("expired", JobExpiredError, "expired before a worker took it"),
        ("cancelled", JobCancelledError, "was cancelled"),
    ],
)
def test_job_without_a_prediction_is_an_error_that_holds_it(
    ask: Ask, double: ControllerDouble, status: str, kind: type[JobUnsuccessfulError], text: str
) -> None:
    double.outcome = status
    with pytest.raises(kind, match=text) as raised:
        ask("predict", SEVEN)
    assert raised.value.job.status == status
    assert ask("result", raised.value.job.id).status == status  # reading is no error


def test_queued_job_can_be_cancelled_and_a_done_one_cannot(ask: Ask) -> None:
    job = ask("submit", SEVEN)
    assert ask("cancel", job.id).status == "cancelled"
    with pytest.raises(JobNotCancellableError):
        ask("cancel", ask("predict", SEVEN).id)


def test_unknown_job_is_an_error_whatever_is_in_its_id(ask: Ask, double: ControllerDouble) -> None:
    for job_id in ("nothing", "a b?c=d#e"):
        with pytest.raises(UnknownJobError, match=re.escape(job_id)):
            ask("result", job_id)
    with pytest.raises(NotFoundError):
        ask("result", "../workers")
    assert not any(path == "/workers" for _, path, _, _ in double.requests)


def test_workers_are_typed_and_what_is_newer_is_ignored(ask: Ask) -> None:
    (worker,) = ask("workers")
    assert (worker.worker, worker.model_version, worker.val_accuracy) == (1, 3, None)
    assert (worker.backlog_jobs, worker.oldest_job_age_s, worker.inference_ms.p99) == (4, 0.25, 0.9)
    assert worker.replicas[0].pid == 7
    assert worker.input.shape == (-1, 1, 28, 28)


def test_not_ready_is_an_answer_and_no_error(ask: Ask, double: ControllerDouble) -> None:
    assert ask("ready").ready
    double.is_ready = False
    readiness = ask("ready")
    assert not readiness.ready
    assert readiness.reasons == ("no live worker",)
    assert len(double.requests) == 2


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"id": 5}', b"\xff\xfe"])
def test_answer_that_no_controller_gives_is_said_to_be_one(
    ask: Ask, double: ControllerDouble, body: bytes
) -> None:
    double.refusals.append(Response(body, 200))
    with pytest.raises(AnswerUnreadableError, match="GET /results/x was answered with 200"):
        ask("result", "x")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinities_are_refused_before_they_are_sent(
    ask: Ask, double: ControllerDouble, value: float
) -> None:
    with pytest.raises(InputNotFiniteError):
        ask("predict", np.full((1, 4), value))
    with pytest.raises(InputNotFiniteError):
        ask("predict", [[0.0, value]])
    with pytest.raises(InputNotFiniteError):
        ask("predict", {"a": [0.0, value], "b": [None, "null"]})
    assert not double.requests


@pytest.mark.parametrize(
    "samples",
    [np.array([1j]), np.array([object()]), [object()], b"png", "text", object(), [[1], {2: object()}]],
)
def test_what_json_cannot_say_is_refused_before_it_is_sent(
    ask: Ask, double: ControllerDouble, samples: Any
) -> None:
    with pytest.raises(InputNotNumericError):
        ask("predict", samples)
    assert not double.requests


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "url", ["", "localhost:9000", "ftp://host", "http://", "http://host:port", "http://host/?worker=1"]
)
def test_url_that_is_none_is_a_configuration_error(kind: Callable[[str], object], url: str) -> None:
    with pytest.raises(ConfigurationError, match="give one such as http://127"):
        kind(url)


async def test_async_client_keeps_concurrent_retries_apart(url: str, double: ControllerDouble) -> None:
    double.refuse(429, "queue_full", times=30)

    async def predicted(client: AsyncClient, digit: int) -> int | float | None:
        job = await client.predict(SEVEN / 7 * digit)
        return job.predictions[0].predicted

    policy = RetryPolicy(attempts=30, backoff_s=0.001, max_backoff_s=0.005)
    async with AsyncClient(url, retry=policy) as client:
        digits = await asyncio.gather(*(predicted(client, index % 10) for index in range(60)))
    assert digits == [index % 10 for index in range(60)]


def test_client_can_be_shared_among_threads(url: str, double: ControllerDouble) -> None:
    double.refuse(429, "queue_full", times=10)
    policy = RetryPolicy(attempts=30, backoff_s=0.001, max_backoff_s=0.005)

    def predicted(digit: int) -> int | float | None:
        return client.predict(SEVEN / 7 * digit).predictions[0].predicted

    with Client(url, retry=policy) as client, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(predicted, [1, 2, 3, 4] * 8)) == [1, 2, 3, 4] * 8


# asyncio cannot close the connections that are left when a loop ends.
@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_async_client_serves_one_event_loop_after_another(url: str) -> None:
    client = AsyncClient(url)
    for digit in (7, 3):
        job = asyncio.run(client.predict(SEVEN / 7 * digit))
        assert job.predictions[0].predicted == digit
    del client
    gc.collect()


@pytest.mark.parametrize(
    ("method", "args", "options", "text"),
    [
        (
            "predict",
            (SEVEN,),
            {"timeout_s": 1},
            "no option 'timeout_s'; expected some of params, wait_s, worker",
        ),
        ("submit", (SEVEN,), {"wait_s": 1}, "no option 'wait_s'; expected some of params, worker"),
        ("predict", (SEVEN,), {"wait_s": None}, "got None for the time to wait; expected seconds"),
        ("route", (), {"callback_url": "http://host"}, "no option 'callback_url'"),
        ("list_jobs", (), {"state": "open"}, "no option 'state'; expected some of status"),
        ("submit_batch", ("rows.csv",), {"deadline_s": 1}, "no option 'deadline_s'"),
        ("wait", (["id"],), {}, "for a job or a batch; expected one, or its id"),
        ("wait", ("id", "60"), {}, "got '60' for the time to wait"),
        ("result", ("",), {}, "got '' for a job"),
        ("read_batch", (None,), {}, "got None for a job or a batch"),
        ("jobs", ("id",), {}, "expected a list of jobs"),
    ],
)
def test_a_wrong_call_says_what_was_expected_and_sends_nothing(
    ask: Ask, double: ControllerDouble, method: str, args: Any, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        ask(method, *args, **options)
    assert not double.requests


def test_a_proxy_that_cannot_be_used_is_a_configuration_error(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy://host")
    with pytest.raises(ConfigurationError, match="the proxy of HTTP_PROXY"):
        ask("ready", at="http://controller")


def test_a_proxy_that_is_set_is_mentioned_where_nothing_answers(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(ControllerUnreachableError, match="does the proxy of the environment reach it"):
            ask("ready", at="http://controller.invalid")


@pytest.mark.parametrize(
    ("method", "args", "options", "text"),
    [
        ("submit", (SEVEN,), {"idempotency_key": "ä"}, "got 'ä' for idempotency_key"),
        (
            "control",
            ("Disable", "Digits", 1),
            {},
            "got the action 'Disable' and the version 1; expected disable,",
        ),
        ("control", ("retire", "Digits"), {}, "the version None; expected"),
        ("submit", ({"dataframe_split": {"data": [[1]]}},), {}, "a whole request; send it as it is: Body"),
    ],
)
def test_a_value_that_no_controller_takes_is_refused_before_it_is_sent(
    ask: Ask, double: ControllerDouble, method: str, args: Any, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        ask(method, *args, **options)
    assert not double.requests


def test_an_address_may_have_white_space_around_it(ask: Ask, url: str) -> None:
    assert ask("predict", SEVEN, at=f" {url}\n").status == "succeeded"


def test_both_clients_have_the_same_methods() -> None:
    def shape(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: list(inspect.signature(m).parameters) for name, m in methods if not name.startswith("_")
        }

    assert shape(Client) == shape(AsyncClient)


def test_many_jobs_are_read_together_each_in_its_place(ask: Ask, double: ControllerDouble) -> None:
    sent = [ask("submit", SEVEN) for _ in range(3)]
    double.polls_until_done = 1
    double.requests.clear()
    found = ask("jobs", [sent[1], "none", sent[0].id, sent[1].id], wait_s=30)
    assert [job.status for job in (found[0], found[2], found[3])] == ["succeeded"] * 3
    assert found[0] is found[3]
    assert isinstance(found[1], UnknownJobError)
    asked = [query["ids"].split(",") for _, path, query, _ in double.requests if path == "/results"]
    assert asked == [[sent[1].id, "none", sent[0].id], [sent[1].id, sent[0].id]]
    assert ask("jobs", []) == []


def test_a_certificate_of_an_own_authority_is_known_by_ssl_cert_file_on_loopback_too(
    double: ControllerDouble, ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    own = authority.issue_cert("127.0.0.1")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    with serving(double, ssl_certfile=tmp_path / "own.pem") as port:
        with pytest.raises(ControllerUnreachableError, match="SSL_CERT_FILE names"):
            ask("workers", at=f"https://127.0.0.1:{port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert ask("workers", at=f"https://127.0.0.1:{port}")
