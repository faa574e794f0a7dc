"""Converts a request's body to a job's input: reads it, takes the first route that it fits, enforces the contract."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec

from app.contract import ColumnsContract, Contract, TensorContract, documents
from app.contract.documents import Document, Reading, Rules
from app.contract.payloads import JobForm, rows_payload, to_payload
from app.server_errors import (
    BodyKeyError,
    BodyNotJsonError,
    InputError,
    InputNotNumericError,
    InputShapeError,
    TooLargeError,
    UnsupportedTypeError,
)
from controller.endpoints import Route
from controller.input import bodies, json_numbers
from controller.input.image_layout import layout_of
from controller.input.inference_request import InferenceRequest, read_inference_request


class NeedsReader(Exception):  # noqa: N818  # no error: the body is read elsewhere
    """Only a reader process may read this body."""


class Given(Protocol):
    """A body that has not been compared with a contract yet."""

    def document(self, contract: Contract) -> Document:
        """The body in the form that a contract takes."""


class Samples(msgspec.Struct, frozen=True):
    """The samples of a body.

    Attributes:
        route: The chosen route.
        data: Samples in the contract's dtype, C order, little-endian; or in the format of `form`.
        n_samples: Number of samples.
        form: Form of the job; None if the contract is a plain tensor.
        is_unified: Whether the body has MLflow's unified form, whose answer has no `predictions`.
    """

    route: Route
    data: bytes
    n_samples: int
    form: JobForm | None = None
    is_unified: bool = False


def read_samples(
    content_type: bytes,
    body: bytes,
    routes: tuple[Route, ...],
    max_samples: int,
    reading: Reading = "strict",
    max_decoded_bytes: int = 0,
    params: str = "",
) -> Samples:
    """Read a body. A pure function, so that any process may run it.

    Args:
        content_type: Content type of the body; for the Open Inference Protocol, the length of its JSON.
        routes: The possible routes, best first, see `controller.routing.routes`.
        max_decoded_bytes: Limit for the samples of tables and images; 0 if they cannot be decoded in this process.
        params: Parameters beside the body, a JSON object; empty without any.

    Raises:
        ModelyardError: The body is refused.
        NeedsReader: It holds tables or images, and they cannot be decoded in this process.
    """
    if reading != "open_inference" and bodies.is_decoded(content_type):
        if not max_decoded_bytes:
            raise NeedsReader
        return _read_decoded(content_type, body, routes, max_samples, max_decoded_bytes, params)
    if (
        reading == "strict"
        and not params
        and all(isinstance(each.candidate.contract, TensorContract) for each in routes)
    ):
        try:
            return _read_plain(content_type, body, routes, max_samples)
        except (BodyKeyError, InputNotNumericError, InputShapeError):
            if not documents.GENERAL.search(body):
                raise
    return _read_any(content_type, body, routes, max_samples, reading, max_decoded_bytes, params)


def _read_plain(
    content_type: bytes,
    body: bytes,
    routes: tuple[Route, ...],
    max_samples: int,
) -> Samples:
    """Read a body if every version takes a plain tensor: only numbers, without a Python object for each."""
    given = bodies.parse(content_type, body)
    try:
        chosen = routes[0] if len(routes) == 1 else _first_that_fits(routes, given.fit)
        return _numbers(given, chosen, max_samples)
    except InputShapeError:
        if isinstance(given, json_numbers.Numbers) and len(body) <= json_numbers.EXPLAINED_BYTES:
            with suppress(BodyNotJsonError):  # it is MessagePack
                json_numbers.parse_slow(body)  # gives a better error for a ragged array
        raise


def _numbers(given: bodies.Body, route: Route, max_samples: int) -> Samples:
    contract = route.candidate.contract
    assert isinstance(contract, TensorContract)
    numbers = given.numbers(contract)
    data = json_numbers.to_samples(numbers, contract, max_samples)
    return Samples(route, data, len(numbers.values) // contract.sample_size)


def _first_that_fits(routes: tuple[Route, ...], fits: Callable[[TensorContract], bool]) -> Route:
    contracts = [each.candidate.contract for each in routes]
    for each, contract in zip(routes, contracts, strict=True):
        if isinstance(contract, TensorContract) and fits(contract):
            return each
    known = ", or ".join(each.describe() for each in contracts[:3])
    raise InputShapeError(f"the numbers do not fit the model; expected {known}")


def _read_decoded(
    content_type: bytes, body: bytes, routes: tuple[Route, ...], max_samples: int, max_bytes: int, params: str
) -> Samples:
    """Read a table or images for the first route whose contract they fit. Values have types, so the rules are strict.

    Raises:
        InputError: It fits no contract; the error is that of the first route.
        TooLargeError: It has too many rows or bytes.
    """
    given = _given(content_type, body, max_samples, max_bytes)
    refusal: InputError | None = None
    for each in routes:
        try:
            contract = each.candidate.contract
            document = _with_params(given.document(contract), params)
            payload = to_payload(document, contract, max_samples, "strict")
        except InputError as error:
            refusal = refusal or error
            continue
        if len(payload.data) > max_bytes:
            raise TooLargeError(
                f"the samples have {len(payload.data)} bytes; at most {max_bytes} are accepted: send fewer rows"
            )
        return Samples(each, payload.data, payload.n_samples, payload.form)
    assert refusal
    raise refusal


def _given(content_type: bytes, body: bytes, max_samples: int, max_bytes: int) -> Given:
    # Imported only where they are used: pyarrow and Pillow are large.
    kind = bodies.media_type(content_type)
    if kind in bodies.TABLES:
        from controller.input.arrow_bodies import read_table

        return read_table(kind, body, max_samples, max_bytes)
    if kind == bodies.NPZ:
        from controller.input.npz_bodies import read_npz

        return read_npz(body, max_bytes)
    from controller.input.image_bodies import read_images

    return read_images(content_type, body, max_samples, max_bytes)


def _read_document(content_type: bytes, body: bytes, rules: Rules) -> Document:
    try:
        return documents.read(content_type, body, rules)
    except BodyNotJsonError:
        bodies.require_json(content_type)
        raise


def _with_params(document: Document, params: str) -> Document:
    """The document with parameters beside its body, for bodies that have no place for them."""
    if not params:
        return document
    if document.params is not None:
        raise BodyKeyError("the body and the query both give params; leave out those of the query")
    return msgspec.structs.replace(document, params=msgspec.json.decode(params))


def _with_images(document: Document, body: bytes, contract: Contract, max_bytes: int) -> Document:
    """The document with the pixels of images that are base64 in its JSON, if the contract takes images."""
    if layout_of(contract) is None or not documents.IMAGES.search(body):
        return document
    if not max_bytes:
        raise NeedsReader
    from controller.input.image_bodies import with_images

    return with_images(document, contract, max_bytes)


def _read_any(
    content_type: bytes,
    body: bytes,
    routes: tuple[Route, ...],
    max_samples: int,
    reading: Reading,
    max_decoded_bytes: int,
    params: str,
) -> Samples:
    """Read a body for the first route whose contract it fits.

    Raises:
        InputError: It fits no contract; the error is that of the first route.
    """
    refusal: InputError | UnsupportedTypeError | None = None
    rules: Rules = "mlflow" if reading == "mlflow" else "strict"
    request: Document | InferenceRequest | None = None
    for each in routes:
        contract = each.candidate.contract
        try:
            if (
                isinstance(contract, TensorContract)
                and reading == "strict"
                and not params
                and not documents.GENERAL.search(body)
            ):
                return _numbers(bodies.parse(content_type, body), each, max_samples)
            if (
                isinstance(contract, ColumnsContract)
                and content_type == bodies.JSON
                and reading != "open_inference"
                and not params
            ):
                typed = rows_payload(body, contract, max_samples)
                if typed:
                    return Samples(each, typed.data, typed.n_samples, typed.form)
            request = request or (
                read_inference_request(content_type, body)
                if reading == "open_inference"
                else _read_document(content_type, body, rules)
            )
            document = request if isinstance(request, Document) else request.document(contract)
            if isinstance(request, Document):
                document = _with_images(document, body, contract, max_decoded_bytes)
            payload = to_payload(_with_params(document, params), contract, max_samples, rules)
            is_unified = document.key == documents.UNIFIED
            return Samples(each, payload.data, payload.n_samples, payload.form, is_unified)
        except (InputError, UnsupportedTypeError) as error:
            refusal = refusal or error
    assert refusal
    raise refusal
