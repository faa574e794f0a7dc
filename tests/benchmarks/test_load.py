"""The load generator's report, and wrk itself against a server that sometimes answers wrong."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.wrk_load import Generator, Load, LoadError, Target, parse_report

REPORT = (
    '{"duration_us":2000000,"requests":1000,"socket_errors":1,"timeouts":2,"not_2xx":7,"checked":62,"wrong":3,'
    '"latency_us":{"50":1500,"99.9":20000}}'
)
BODIES = '3\t{"digit": 3}\n3\t{"digit": 3, "again": true}\n7\t{"digit": 7}\n'


class Digits(BaseHTTPRequestHandler):
    """Answers the digit that was posted, as scores; `/threes` always answers 3, `/none` refuses."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        digit = 3 if self.path == "/threes" or b"3" in body else 7
        scores = ", ".join("0.91" if index == digit else "1e-2" for index in range(10))
        answer = f'{{"predictions": [[{scores}]]}}'.encode()
        self.send_response(503 if self.path == "/none" else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Digits)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def press(url: str, tmp_path: Path) -> Callable[..., Load]:
    if not shutil.which("wrk"):
        pytest.skip("wrk is not installed")
    bodies = tmp_path / "bodies.txt"
    bodies.write_text(BODIES)

    def run(path: str, pattern: str = '"predictions":%s*%[%[(.-)%]%]') -> Load:
        return Generator(Target(url + path, bodies, pattern), tmp_path, connections=2, duration_s=1).finish()

    return run


def test_a_report_counts_every_kind_of_error_and_keeps_percentiles_in_ms() -> None:
    load = parse_report(REPORT, generator_cpu_s=0.5)
    assert (load.errors, load.checked, load.wrong) == (10, 62, 3)
    assert load.latency_ms == {50.0: 1.5, 99.9: 20.0}
    assert load.per_s == pytest.approx(495)


@pytest.mark.process
def test_right_answers_are_checked_and_found_right(press: Callable[..., Load]) -> None:
    load = press("/digits")
    assert load.requests > 0
    assert load.checked > 0
    assert (load.errors, load.wrong) == (0, 0)


@pytest.mark.process
def test_an_answer_for_another_digit_is_wrong(press: Callable[..., Load]) -> None:
    load = press("/threes")
    assert 0 < load.wrong < load.checked


@pytest.mark.process
def test_an_answer_without_a_class_is_wrong(press: Callable[..., Load]) -> None:
    load = press("/digits", '"class":(%d)')
    assert load.wrong == load.checked > 0


@pytest.mark.process
def test_refusals_are_errors_and_do_not_count_as_throughput(press: Callable[..., Load]) -> None:
    load = press("/none")
    assert load.errors == load.requests > 0
    assert load.per_s == 0


def test_a_server_that_is_not_there_is_an_error(tmp_path: Path, free_port: Callable[[], int]) -> None:
    if not shutil.which("wrk"):
        pytest.skip("wrk is not installed")
    (tmp_path / "bodies.txt").write_text(BODIES)
    target = Target(f"http://127.0.0.1:{free_port()}/", tmp_path / "bodies.txt", "")
    with pytest.raises(LoadError, match="no report"):
        Generator(target, tmp_path, connections=1, duration_s=1).finish()
