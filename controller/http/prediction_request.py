"""Reads the head of a prediction in any protocol: path, query parameters and headers, with defaults filled in.

Clients send the same head repeatedly. A head that is equal byte by byte to a known one is not parsed again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec

from app.contract.documents import Reading
from app.server_errors import ContradictionError, ModelyardError, ParameterError
from app.settings import ControllerSettings
from controller.admission.audit_log import Client
from controller.admission.gate import Gate
from controller.configured_endpoints import ConfiguredEndpoints
from controller.http.framing import Head
from controller.input import bodies
from controller.input.content_coding import check_coding
from controller.selector import Selector
from controller.webhooks.destinations import check_url

PARAMETERS = frozenset(
    {"worker", "model", "version", "endpoint", "wait", "deadline", "params", "callback_url"}
)
# The last word of a path that predicts -> how the request is read.
READINGS: dict[str, Reading] = {"predict": "strict", "invocations": "mlflow", "infer": "open_inference"}
ENDS = tuple(f"/{word}" for word in READINGS)
VERSION = r"/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
PATHS = (
    re.compile(rf"(?:{VERSION}|/endpoints/(?P<endpoint>[^/]+))?/(?P<word>predict|invocations)/?"),
    re.compile(rf"/v2{VERSION}(?P<endpoint>)/(?P<word>infer)/?"),
)
ANY = Selector()
MAX_ALIAS = 255  # characters, as in MLflow
MAX_QUERY_BYTES = 2048  # a thousand query strings are cached
# Headers of requests that go through the ASGI application, which reads the body in parts or compressed.
UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"idempotency-key", b"content-encoding", b"origin"})
KNOWN_HEADS = 1024
KNOWN_HEAD_BYTES = 2048  # longer heads are not cached


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of a query string; None for each missing one."""

    selector: Selector
    wait_s: float | None
    deadline_s: float | None
    params: str
    callback_url: str | None


class Address(NamedTuple):
    """What the path of a prediction says."""

    selector: Selector
    reading: Reading


PREDICT = Address(ANY, "strict")


@dataclass(frozen=True, slots=True)
class Asked:
    """The options in a request's head; they depend on nothing else.

    Attributes:
        authorization: The `Authorization` header, empty without one.
        content_type: Content type of its body.
        params: Parameters of the model in the query, a JSON object; empty without any.
        callback_url: Where its job is delivered when it has ended, or empty.
        reading: The protocol, whose rules apply to its body.
        is_async: Whether its caller prefers a job to its outcome, in another protocol than this API's own.
    """

    selector: Selector
    wait_s: float
    deadline_s: float
    authorization: bytes
    content_type: bytes
    params: str = ""
    callback_url: str = ""
    reading: Reading = "strict"
    is_async: bool = False

    def identity(self) -> bytes:
        """The parts in which a request repeated with the same idempotency key must agree, besides its body."""
        parts: list[object] = [self.selector, self.deadline_s, self.params, self.callback_url]
        while not parts[-1]:  # so keys stay valid that a release without these options has stored
            parts.pop()
        return repr(tuple(parts)).encode()


@dataclass(frozen=True, slots=True)
class KnownHead:
    """The parsed content of a head.

    Attributes:
        body_bytes: Announced size of the body.
        keep_alive: Whether the connection stays open after the answer.
    """

    asked: Asked
    body_bytes: int
    keep_alive: bool


class KnownHeads:
    """The heads of plain predictions, which every connection of a controller answers without the ASGI application.

    Attributes:
        by_data: The known heads, by their bytes.
    """

    def __init__(self, settings: ControllerSettings, gate: Gate, endpoints: ConfiguredEndpoints) -> None:
        self.by_data: dict[bytes, KnownHead] = {}
        self._settings = settings
        self._gate = gate
        self._endpoints = endpoints
        endpoints.observe(self.by_data.clear)  # a known head holds the defaults of its endpoint

    def read(self, data: bytes, head: Head, client: Client) -> KnownHead | None:
        """Read and cache the head of a plain prediction; None if it is not plain, or if it is refused.

        Args:
            data: The bytes of the head.
        """
        if head.method != b"POST":
            return None
        headers = dict(head.headers)
        body_bytes = int(headers.get(b"content-length", b"0"))
        if not body_bytes or not UNUSUAL.isdisjoint(headers):
            return None
        try:
            path, prefix = unquote(head.path.decode("ascii", "replace")), self._settings.prefix
            address = address_of(path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path)
            if address is None or address.reading == "open_inference":
                return None
            self._gate.check_site(head.headers)
            asked = read_head(headers, head.query, self._settings, self._endpoints, address)
            if asked.params or asked.callback_url:
                return None
            # Before caching, so that callers without a valid key cannot fill the cache.
            self._gate.admit(asked.authorization, client)
        except ModelyardError:
            return None
        known = KnownHead(asked, body_bytes, head.keep_alive)
        if len(data) <= KNOWN_HEAD_BYTES:
            if len(self.by_data) >= KNOWN_HEADS:
                self.by_data.clear()
            self.by_data[data] = known
        return known


def read_head(
    headers: Mapping[bytes, bytes],
    query_string: bytes,
    settings: ControllerSettings,
    endpoints: ConfiguredEndpoints,
    address: Address,
) -> Asked:
    """Read a prediction's headers, names in lower case, and its query string.

    Args:
        endpoints: Have the defaults of what the request leaves out. Other protocols than this API's own wait as long as
            the settings allow.

    Raises:
        ContradictionError: Path and query name different models, versions or endpoints.
        ParameterError: A parameter is unknown, malformed or out of range.
        UnsupportedCodingError: The content coding of the body is not supported.
        UnsupportedTypeError: Its protocol does not know the content type.
        WebhookNotAllowedError: Its job may not be delivered to its `callback_url`.
    """
    query, prefer = parse_query(query_string), headers.get(b"prefer", b"")
    selector = query.selector if address.selector == ANY else joined(address.selector, query.selector)
    if query.wait_s is not None:
        in_range("wait", query.wait_s, 0, settings.max_wait_s)
    wait_s, deadline_s, is_async = stated_wait_s(query, prefer), query.deadline_s, False
    content_type = headers.get(b"content-type", bodies.JSON)
    if address.reading != "strict":
        is_async = b"respond-async" in prefer
        wait_s = wait_s if wait_s or is_async else settings.max_wait_s
    if address.reading == "mlflow":
        bodies.check_scoring_type(content_type)
    wait_s = endpoints.wait_s(selector) if wait_s is None else min(wait_s, settings.max_wait_s)
    if deadline_s is None:
        deadline_s = endpoints.deadline_s(selector)
    else:
        in_range("deadline", deadline_s, 0.001, settings.max_deadline_s)
    check_coding(headers.get(b"content-encoding", b""))
    if query.callback_url is not None:
        check_url(query.callback_url, settings)
    return Asked(
        selector,
        wait_s,
        deadline_s,
        headers.get(b"authorization", b""),
        content_type,
        query.params,
        query.callback_url or "",
        address.reading,
        is_async,
    )


def in_range(name: str, value: float, low: float, high: float) -> float:
    """Return the value if it is a number of seconds from `low` to `high`.

    Raises:
        ParameterError: It is out of range.
    """
    if not low <= value <= high:  # comparisons with NaN are false
        raise ParameterError(f"{name} must be a number of seconds from {low:g} to {high:g}")
    return value


@lru_cache(maxsize=1024)
def parse_query(query_string: bytes) -> Query:
    """Read the query string of a prediction.

    Raises:
        ParameterError: It is too long, or a parameter is unknown, repeated or malformed.
    """
    if len(query_string) > MAX_QUERY_BYTES:
        raise ParameterError(f"the query string is longer than {MAX_QUERY_BYTES} bytes")
    try:
        pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise ParameterError("the query string is malformed") from None
    given = dict(pairs)
    if len(given) != len(pairs) or not given.keys() <= PARAMETERS:
        raise ParameterError(
            f"expected at most one each of the query parameters {', '.join(sorted(PARAMETERS))}, and no others"
        )
    return Query(
        Selector(_worker(given), given.get("model"), _version(given), given.get("endpoint")),
        _seconds(given, "wait"),
        _seconds(given, "deadline"),
        _params(given),
        given.get("callback_url"),
    )


def _params(given: Mapping[str, str]) -> str:
    text = given.get("params", "")
    if text:
        try:
            msgspec.json.decode(text, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            raise ParameterError('params must be a JSON object, such as {"temperature":0.5}') from None
    return text


def _worker(given: Mapping[str, str]) -> int | None:
    text = given.get("worker")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise ParameterError("worker must be a whole number from 1")
    return int(text)


def _version(given: Mapping[str, str]) -> int | str | None:
    text = given.get("version")
    return None if text is None else version_of(text)


def version_of(text: str) -> int | str:
    """The number or alias of a version.

    Raises:
        ParameterError: It is neither.
    """
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0:
        return int(text)
    # As MLflow's aliases; without a letter it is a malformed number.
    if len(text) > MAX_ALIAS or not re.fullmatch(r"[\w-]*[^\W\d][\w-]*", text):
        raise ParameterError("version must be a whole number from 1, or an alias such as champion")
    return text


def address_of(path: str) -> Address | None:
    """What the path of a prediction says, such as `/models/NAME/versions/1/predict`; None for any other path.

    Raises:
        ParameterError: Its version is malformed.
    """
    found = PATHS[0].fullmatch(path) or PATHS[1].fullmatch(path)
    if found is None:
        return None
    version = None if found["version"] is None else version_of(found["version"])
    selector = Selector(model=found["model"], version=version, endpoint=found["endpoint"] or None)
    return Address(selector, READINGS[found["word"]])


def joined(of_path: Selector, of_query: Selector) -> Selector:
    """The selector of a request; its query may repeat what its path says.

    Raises:
        ContradictionError: The two differ.
    """
    if of_path.model is not None and of_query.model not in (None, of_path.model):
        raise _differing("model")
    if of_path.version is not None and of_query.version not in (None, of_path.version):
        raise _differing("version")
    if of_path.endpoint is not None and of_query.endpoint not in (None, of_path.endpoint):
        raise _differing("endpoint")
    version = of_query.version if of_path.version is None else of_path.version
    endpoint = of_path.endpoint or of_query.endpoint
    return Selector(of_query.worker, of_path.model or of_query.model, version, endpoint)


def _differing(name: str) -> ContradictionError:
    return ContradictionError(f"the path and the query name different values of {name}; leave out the latter")


def _seconds(given: Mapping[str, str], name: str) -> float | None:
    text = given.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        raise ParameterError(f"{name} must be a number of seconds, such as 5 or 0.5")
    return float(text)


def stated_wait_s(query: Query, prefer: bytes) -> float | None:
    """The wait that a request states in its query or its `Prefer` header; None if it states none."""
    if query.wait_s is not None:
        return query.wait_s
    # RFC 7240: an unknown or malformed preference is ignored, one that cannot be met is no error, and the first of two
    # equal names counts. As in its section 4.3, `respond-async` does not change `wait`: after the wait the answer is
    # 202 in any case. Without one, it means not to wait.
    is_async = False
    for preference in prefer.split(b","):
        name, _, value = preference.partition(b";")[0].partition(b"=")
        if name.strip().lower() == b"wait" and value.strip(b' "').isdigit():
            return float(value.strip(b' "'))
        is_async = is_async or name.strip().lower() == b"respond-async"
    return 0.0 if is_async else None
