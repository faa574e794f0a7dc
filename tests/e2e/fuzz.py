"""What `test_fuzz.py` sends, bodies and raw bytes of ill will, and how answers are judged."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

JOB_ID = re.compile(rb'"id":\s*"([\w=-]{32})\.\d+"')
STATUS_LINE = re.compile(rb"^HTTP/1\.1 (\d{3}) ", re.MULTILINE)
INTERNALS = re.compile(rb'Traceback|File \\?"|site-packages|/controller/|redis\.exceptions|Error\(')
READ_LIMIT_S = 10.0


@dataclass
class Judge:
    """Judges each answer, and remembers what came.

    Attributes:
        statuses: Answers by status.
        batches: Ids of the batches whose jobs were accepted.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    batches: set[str] = field(default_factory=set)

    def take(self, status: int, body: bytes, sent: object) -> None:
        """One answer."""
        self.statuses[status] += 1
        assert status < 500 or status == 503, (status, body, sent)
        assert not INTERNALS.search(body), (body, sent)
        self.batches.update(found.decode() for found in JOB_ID.findall(body))

    def take_raw(self, answer: bytes, sent: bytes) -> None:
        """All that came on a connection."""
        statuses = STATUS_LINE.findall(answer)
        for status in statuses:
            self.take(int(status), b"", sent)
        assert not INTERNALS.search(answer), (answer, sent)
        self.batches.update(found.decode() for found in JOB_ID.findall(answer))
        self.statuses[0] += not statuses  # closed without an answer

    @property
    def requests(self) -> int:
        """How many requests were sent."""
        return sum(self.statuses.values())


NUMBERS = st.sampled_from(
    [
        *(
            "NaN",
            "-NaN",
            "Infinity",
            "-Infinity",
            "nan",
            "inf",
            "null",
            "true",
            "1e309",
            "-1e400",
            "1e39",
            "0x10",
        ),
        *(
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "1_000",
            "\u0661",
            "--1",
            "-",
            "1,2",
            '"1"',
            '"NaN"',
            "{}",
            "[]",
            "[[]]",
        ),
        *(
            "9007199254740993",
            "18446744073709551616",
            "1e-400",
            "9" * 400,
            "1" + "0" * 5000,
            "0." + "1" * 3000,
        ),
        *("1e999999999", "-" + "9" * 40),
    ]
)
PLAIN = st.lists(st.floats(allow_nan=False, width=32).map(repr) | NUMBERS, max_size=6)
KEYS = st.sampled_from(
    ["data", "inputs", "instances", "date", "", "data\\u0000", "\\ud800", "__proto__", "DATA"]
)


def _object(pairs: list[tuple[str, list[str]]]) -> bytes:
    return ("{" + ",".join(f'"{key}": [{",".join(values)}]' for key, values in pairs) + "}").encode()


def _spoilt(digit: list[str], spoils: list[tuple[int, str]], end: str) -> bytes:
    for index, token in spoils:
        digit[index] = token
    return f'{{"data": [{",".join(digit)}]}}{end}'.encode()


def is_right(body: bytes) -> bool:
    """Whether a body of `DIGITS` still is one digit of finite float32 numbers, by Python's own reading of JSON."""
    try:
        (numbers,) = json.loads(body).values()
    except ValueError:
        return False
    return len(numbers) == 784 and all(
        type(number) in (int, float) and abs(number) <= FLOAT32_MAX for number in numbers
    )


def _deep(depth: int, cut: int) -> bytes:
    return b'{"data": ' + b"[" * depth + b"1" + b"]" * (depth - cut) + b"}"


def _large(filler: str, count: int) -> bytes:
    return f'{{"data": [{f"{filler}," * count}"x"]}}'.encode()


JSON_BODIES = st.one_of(
    st.lists(st.tuples(KEYS, PLAIN), max_size=3).map(_object),
    st.builds(_deep, st.integers(1, 20_000), st.integers(-2, 2)),
    st.builds(_large, st.sampled_from(["0", "[0]", "{}", "1e5", "null", '"a"']), st.integers(0, 60_000)),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=20
    ).map(lambda value: json.dumps({"data": value}).encode()),
    st.binary(max_size=200),
    st.text(max_size=50).map(lambda text: json.dumps({"data": [text]}).encode("utf-16")),
    st.integers(0, 40).map(lambda cut: b'{"data": [[1.5, 2.5], [3.5, 4.5]]}'[:cut]),
    st.binary(max_size=40).map(lambda noise: b'\xef\xbb\xbf{"data": ["' + noise + b'"]}'),
)
FLOAT32_MAX = 3.4028235e38
# Bodies of one digit, in which up to three numbers were replaced by something else.
DIGITS = st.builds(
    lambda spoils, end: _spoilt(["0.5"] * 784, spoils, end),
    st.lists(st.tuples(st.integers(0, 783), NUMBERS), max_size=3),
    st.sampled_from(["", "", "", " ", "\n", "x", "}", "\x00"]),
)
BOMB = gzip.compress(bytes(2**24))
CONTENT_TYPES = st.sampled_from(
    [
        *(
            "application/json",
            "text/plain",
            "application/octet-stream",
            "application/x-npy",
            "application/msgpack",
        ),
        *(
            "application/x-python-serialize",
            "multipart/form-data",
            "",
            "a" * 500,
            "application/json; charset=utf-16",
        ),
    ]
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": CONTENT_TYPES,
        "content-encoding": st.sampled_from(["gzip", "br", "identity", "deflate, gzip", ""]),
        "idempotency-key": st.sampled_from(["", "k", "k" * 256, "\x7f", "é", "a b"]),
        "prefer": st.sampled_from(
            ["wait=-1", "wait=1e9", "wait=" + "9" * 400, "respond-async", ",;=,", "wait"]
        ),
        "authorization": st.sampled_from(["Bearer", "Bearer x", "Basic !!", "Bearer " + "x" * 5000]),
        "accept": st.sampled_from(["*/*", "application/x-nothing", "a/b;q=x", ""]),
    },
)
QUERIES = st.sampled_from(
    [
        *(
            "",
            "?wait=nan",
            "?wait=1e9",
            "?deadline=-1",
            "?worker=99999999999",
            "?worker=1&worker=2",
            "?x",
            "?%",
            "?%00",
        ),
        *(
            "?model=%ff",
            "?version=1e3",
            "?deadline=0.0000001",
            "?" + "a=1&" * 500,
            "?model=" + "m" * 5000,
            "?worker=\u0661",
        ),
    ]
)


def _framed(head: bytes, body: bytes) -> bytes:
    return b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n" + body


CHUNKS = st.sampled_from(
    [
        *(
            b'5\r\n{"dat\r\n0\r\n\r\n',
            b"FFFFFFFFFFFFFFFFF\r\n",
            b"-1\r\n\r\n",
            b"5;x=y\r\n12345\r\n0\r\nA: b\r\n\r\n",
        ),
        *(b"zz\r\n", b"0\r\n\r\n", b"1\r\n{\r\n", b"5\r\n123\r\n", b"\r\n\r\n", b"1\n{\n0\n\n"),
    ]
)
HEADS = st.sampled_from(
    [
        *(
            b"Content-Length: 5",
            b"Content-Length: -5",
            b"Content-Length: 1e3",
            b"Content-Length: 99999999999999999999",
        ),
        *(
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: +5",
            b"Content-Length:",
            b"Content-Length: 0x5",
        ),
        *(b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"Transfer-Encoding: gzip, chunked"),
        *(
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: xchunked",
            b"Transfer-Encoding: chunked, chunked",
        ),
        *(
            b"Expect: 100-continue\r\nContent-Length: 5",
            b"Upgrade: websocket\r\nConnection: Upgrade",
            b"A" * 70_000,
        ),
        *(
            b"X: " + b"x" * 70_000,
            b"X: \x00",
            b" folded: x",
            b"X\x00: y",
            b": y",
            b"Connection: close, keep-alive",
        ),
        *(
            b"\r\n".join(b"X%d: y" % n for n in range(3000)),
            b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
        ),
    ]
)
REQUEST_LINES = st.sampled_from(
    [
        *(
            b"GET /healthz HTTP/1.1",
            b"GET  / HTTP/1.1",
            b"get / HTTP/1.1",
            b"GET / HTTP/9.9",
            b"GET / HTTP/1.0",
            b"GET",
        ),
        *(
            b"POST * HTTP/1.1",
            b"CONNECT a:1 HTTP/1.1",
            b"GET http://a/healthz HTTP/1.1",
            b"TRACE / HTTP/1.1",
            b"\x16\x03\x01",
        ),
        *(
            b"PRI * HTTP/2.0",
            b"GET /%00/%ff HTTP/1.1",
            b"GET /../../etc/passwd HTTP/1.1",
            b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
        ),
        *(
            b"GET /\xff\xfe HTTP/1.1",
            b"PATCH /predict HTTP/1.1",
            b"DELETE /results/x HTTP/1.1",
            b"OPTIONS /predict HTTP/1.1",
        ),
    ]
)
RAW = st.one_of(
    st.builds(_framed, HEADS, st.binary(max_size=30) | CHUNKS),
    st.lists(CHUNKS, max_size=4).map(lambda parts: _framed(b"Transfer-Encoding: chunked", b"".join(parts))),
    st.builds(
        lambda line, head: line + b"\r\nHost: localhost\r\n" + head + b"\r\n\r\n", REQUEST_LINES, HEADS
    ),
    st.lists(
        st.sampled_from(
            [_framed(b"Content-Length: 2", b"{}"), b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"]
        ),
        min_size=2,
        max_size=30,
    ).map(b"".join),
    st.binary(max_size=300),
)


def exchange(port: int, sent: bytes, pieces: int) -> bytes:
    """Send bytes on a connection of their own, in so many pieces, and read until the server closes it."""
    step = max(1, len(sent) // pieces)
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=READ_LIMIT_S) as connection:
        try:
            for start in range(0, len(sent), step):
                connection.sendall(sent[start : start + step])
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except TimeoutError:
            raise AssertionError(f"the server did not end it: {sent[:300]!r}") from None
        except OSError:  # closed before all was sent
            pass
    return received


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    (line,) = [
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    ]
    return int(line.split()[1]) / 1024


def settled_rss_mib(pid: int) -> float:
    """The least of several looks within a second: the duration of a running request does not count."""
    looks: list[Any] = []
    for _ in range(5):
        looks.append(rss_mib(pid))
        time.sleep(0.2)
    return float(min(looks))


def send_many(count: int, round_number: int, **arguments: Any) -> Callable[[Callable[..., None]], None]:
    """Run a function on so many drawn examples, at once; other ones each round, the same ones each run."""

    def run(test: Callable[..., None]) -> None:
        quick = settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        quick(seed(round_number)(given(**arguments)(test)))()

    return run
