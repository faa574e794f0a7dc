"""Images are rows of a tensor where size and colours are those of the contract; else the refusal says what is wrong."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.contract import (
    Column,
    ColumnsContract,
    ColumnType,
    Contract,
    Param,
    TensorContract,
    TensorField,
    TensorsContract,
)
from app.contract.documents import read_json
from app.contract.payloads import Payload, to_payload
from app.server_errors import (
    BodyKeyError,
    BodyNotArrayError,
    InputEmptyError,
    InputShapeError,
    InputTypeError,
    ModelyardError,
    ParamsError,
    TooLargeError,
)
from controller.input.image_bodies import read_images, with_images
from tests.controller.conftest import HandWorker, Serve, nothing_is_queued
from workers.job_inputs import decode
from workers.signature import read_contract

MAX_BYTES = 2**16
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)  # two images, 5 high and 6 wide
GREY = PIXELS[..., 0]
LAST = TensorContract("uint8", (5, 6, 3))
FIRST = TensorContract("float32", (3, 5, 6))
BOUNDARY = "frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}".encode()


def encoded(pixels: Any, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def form(*files: bytes, **fields: str) -> bytes:
    parts = [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode()
        for name, text in fields.items()
    ]
    head = b'Content-Disposition: form-data; name="file"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
    whole = [
        f"--{BOUNDARY}\r\n".encode() + each + b"\r\n" for each in [*parts, *(head + file for file in files)]
    ]
    return b"".join(whole) + f"--{BOUNDARY}--\r\n".encode()


def payload(
    contract: Contract, body: bytes, content_type: bytes = b"image/png", max_files: int = 8
) -> Payload:
    given = read_images(content_type, body, max_files, MAX_BYTES)
    return to_payload(given.document(contract), contract, max_files, "strict")


def tensor(contract: Contract, *images: bytes) -> Any:
    """The model's input for a form of these images."""
    taken = payload(contract, form(*images), FORM)
    if isinstance(contract, TensorContract):
        return np.frombuffer(taken.data, contract.dtype).reshape(taken.n_samples, *contract.sample_shape)
    [(dtype, shape, data)] = decode(taken.data)
    return np.frombuffer(data, dtype).reshape(shape)


def test_images_are_the_rows_of_a_tensor_in_its_dtype_and_layout() -> None:
    images = [encoded(each) for each in PIXELS]
    first = np.moveaxis(PIXELS, 3, 1)
    assert np.array_equal(tensor(LAST, *images), PIXELS)
    assert np.array_equal(tensor(FIRST, *images), first.astype(np.float32) / np.float32(255))
    assert np.array_equal(
        tensor(TensorContract("float32", (3, 5, 6), 255), *images), first.astype(np.float32)
    )
    assert np.array_equal(tensor(TensorContract("float64", (3, 5, 6)), *images), first / 255)
    assert np.array_equal(tensor(TensorContract("int64", (3, 5, 6)), *images), first)
    free = TensorsContract((TensorField("image", "uint8", (-1, -1, -1, 3)),))
    assert np.array_equal(tensor(free, *images), PIXELS)
    greys = [encoded(each) for each in GREY]
    assert np.array_equal(tensor(TensorContract("uint8", (5, 6)), *greys), GREY)
    assert np.array_equal(tensor(TensorContract("uint8", (1, 5, 6)), *greys), GREY[:, None])
    photo = encoded(PIXELS[0], "JPEG", quality=95)
    with Image.open(io.BytesIO(photo)) as opened:
        assert payload(LAST, photo, b"image/jpeg").data == np.asarray(opened).tobytes()


def test_colours_are_converted_where_nothing_is_lost() -> None:
    rgba = TensorContract("uint8", (5, 6, 4))
    opaque = np.dstack([PIXELS[0], np.full((5, 6), 255, np.uint8)])
    grey = np.repeat(GREY[0][..., None], 3, 2)
    bits = (GREY[0] > 127).astype(np.uint8) * 255
    palette = Image.fromarray(np.repeat(bits[..., None], 3, 2)).quantize(4)
    taken = [
        (LAST, encoded(opaque), PIXELS[0]),
        (LAST, encoded(GREY[0]), grey),
        (LAST, encoded(palette), np.repeat(bits[..., None], 3, 2)),
        (rgba, encoded(PIXELS[0]), opaque),
        (rgba, encoded(np.dstack([PIXELS[0], GREY[0]])), np.dstack([PIXELS[0], GREY[0]])),
        (TensorContract("uint8", (5, 6)), encoded(grey), GREY[0]),
        (TensorContract("uint8", (5, 6)), encoded(Image.fromarray(bits), mode="1"), bits),
    ]
    for contract, image, expected in taken:
        assert payload(contract, image).data == expected.tobytes()


def png(width: int, height: int, depth: int = 8, data: bytes = b"") -> bytes:
    """A PNG file of RGB by hand, whose header says any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


ANY_SIZE = TensorsContract((TensorField(None, "float32", (-1, 3, -1, -1)),))
REFUSED: list[tuple[str, Contract, bytes, type[ModelyardError], str]] = [
    ("wide", LAST, encoded(PIXELS[0].transpose(1, 0, 2)), InputShapeError,
     "image 0 has 5 x 6 pixels; expected RGB images of 6 x 5 pixels (width x height)"),
    ("bomb", LAST, png(60000, 60000), TooLargeError, "image 0 has more pixels"),
    ("large", LAST, png(6000, 6000), InputShapeError, "6000 x 6000 pixels"),
    ("much", ANY_SIZE, png(300, 300), TooLargeError, "more than 65536 bytes as float32"),
    ("deep", LAST, png(6, 5, 16, bytes(5 * 37)), InputTypeError, "16 bits a channel"),
    ("clear", LAST, encoded(np.dstack([PIXELS[0], GREY[0]])), InputTypeError, "transparent pixels"),
    ("coloured", TensorContract("uint8", (5, 6)), encoded(PIXELS[0]), InputTypeError, "has colours; expected grey"),
    ("cmyk", LAST, encoded(PIXELS[0], "JPEG", "CMYK"), InputTypeError, "the colours CMYK"),
    ("moving", LAST, encoded(Image.fromarray(PIXELS[0]), save_all=True,
     append_images=[Image.fromarray(PIXELS[1])]), InputShapeError, "several frames"),
    ("cut", LAST, encoded(PIXELS[0])[:-30], BodyNotArrayError, "image 0 is damaged or truncated"),
    ("text", LAST, b"hello", BodyNotArrayError, "not a PNG or JPEG"),
    ("gif", LAST, encoded(PIXELS[0], "GIF"), BodyNotArrayError, "not a PNG or JPEG"),
    ("empty", LAST, b"", InputEmptyError, "no image"),
    ("flat", TensorContract("float32", (90,)), encoded(PIXELS[0]), InputShapeError, "takes no images"),
    ("unclear", TensorContract("uint8", (3, 6, 3)), encoded(PIXELS[0]), InputShapeError, "takes no images"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("contract", "image", "error", "said"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
def test_an_image_that_does_not_fit_is_refused_and_not_changed(
    contract: Contract, image: bytes, error: type[ModelyardError], said: str
) -> None:
    with pytest.raises(error) as refused:
        payload(contract, image)
    assert said in str(refused.value)


def test_a_form_holds_images_and_parameters() -> None:
    contract = TensorsContract(
        (TensorField("image", "uint8", (-1, 5, 6, 3)),),
        (Param("k", "long"), Param("s", "string"), Param("l", "double", is_list=True)),
    )
    image = encoded(PIXELS[0])
    taken = payload(contract, form(image, image, k="3", s="3", l="[1, 2]"), FORM)
    assert taken.form
    assert (taken.n_samples, decode(taken.form.params)) == (2, {"k": 3, "s": "3", "l": [1.0, 2.0]})
    for fields in ({"k": "x"}, {"k": "1.5"}, {"z": "1"}):
        with pytest.raises(ParamsError):
            payload(contract, form(image, **fields), FORM)
    whole = form(image, k="3")
    with pytest.raises(TooLargeError, match="more than 2 images"):
        payload(contract, form(image, image, image), FORM, max_files=2)
    with pytest.raises(InputEmptyError):
        payload(contract, form(k="3"), FORM)
    with pytest.raises(BodyKeyError):
        payload(contract, whole.replace(b'name="k"', b'name=""'), FORM)
    for body, content_type in (
        (whole[:-8], FORM),
        (whole, b"multipart/form-data"),
        (whole, b"multipart/form-data; boundary=other"),
        (b"\xff" * 100, FORM),
        (whole.replace(b"\r\n\r\n", b"\r\n"), FORM),
        (whole.replace(b'"k"\r\n\r\n3', b'"k"\r\n\r\n\xff'), FORM),
    ):
        with pytest.raises(BodyNotArrayError):
            payload(contract, body, content_type)


def test_images_are_the_bytes_of_a_binary_column() -> None:
    raw, optional = Column("raw", ColumnType("binary")), Column("note", ColumnType("string"), False)
    files = [encoded(each) for each in PIXELS]
    taken = payload(ColumnsContract((raw, optional)), form(*files), FORM)
    assert decode(taken.data) == [files, None]
    unnamed = ColumnsContract((Column(None, ColumnType("binary")),))
    assert decode(payload(unnamed, files[0]).data) == [[files[0]]]
    for columns in ((raw, Column("n", ColumnType("long"))), (Column("n", ColumnType("long")),)):
        with pytest.raises(InputShapeError, match="one binary column"):
            payload(ColumnsContract(columns), files[0])


def as_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def test_json_holds_images_as_base64_like_tensorflow_serving_and_as_data_urls() -> None:
    images = [encoded(each) for each in PIXELS]
    urls, objects = (
        [as_url(each) for each in images],
        [{"b64": base64.b64encode(each).decode()} for each in images],
    )
    named = TensorsContract((TensorField("image", "uint8", (-1, 5, 6, 3)),))
    for contract, value in (
        (LAST, urls), (LAST, objects), (named, {"image": urls}), (named, objects),
        (named, [{"image": each} for each in objects]),
    ):  # fmt: skip
        document = with_images(
            read_json(json.dumps({"instances": value}).encode(), "strict"), contract, MAX_BYTES
        )
        data = to_payload(document, contract, 10, "strict").data
        taken = data if contract is LAST else decode(data)[0][2]
        assert taken == PIXELS.tobytes()
    document = with_images(read_json(json.dumps({"data": urls[0]}).encode(), "strict"), LAST, MAX_BYTES)
    assert to_payload(document, LAST, 10, "strict").n_samples == 1
    with pytest.raises(InputTypeError, match="image 1: got '!'; expected base64"):
        with_images(read_json(b'{"data": [{"b64": "aGk="}, {"b64": "!"}]}', "strict"), LAST, MAX_BYTES)
    mixed = read_json(json.dumps({"data": [urls[0], [1]]}).encode(), "strict")
    assert with_images(mixed, LAST, MAX_BYTES) == mixed


def test_the_scale_of_pixels_is_declared_by_the_version() -> None:
    inputs = [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3, 5, 6]}}]
    assert read_contract({"inputs": inputs}) == TensorContract("float32", (3, 5, 6), 1)
    assert read_contract({"inputs": inputs, "image_scale": "255"}) == TensorContract(
        "float32", (3, 5, 6), 255
    )
    with pytest.raises(ModelyardError, match=r"modelyard\.image_scale is 'imagenet'; expected 1 or 255"):
        read_contract({"inputs": inputs, "image_scale": "imagenet"})


async def test_images_reach_the_worker_in_every_form_and_bad_ones_no_queue(
    serve: Serve, hand_worker: Callable[..., HandWorker], client: Any
) -> None:
    worker = hand_worker(input=FIRST)
    served = await serve()
    image = encoded(PIXELS[0])
    expected = np.moveaxis(PIXELS[0], 2, 0).astype(np.float32) / np.float32(255)
    as_json = json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]}).encode()
    refused = [
        (encoded(PIXELS[0][:3]), "image/png", 422, "input_wrong_shape"),
        (image[:40], "image/png", 400, "body_not_array"),
        (as_json.replace(b'"b64": "', b'"b64": "!'), "application/json", 422, "input_wrong_type"),
        (form(image), "multipart/form-data", 400, "body_not_array"),
    ]
    for body, content_type, status, code in refused:
        answer = await served.post(body, content_type=content_type)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert nothing_is_queued(client)
    for body, content_type in (
        (image, "image/png"),
        (form(image), FORM.decode()),
        (as_json, "application/json"),
    ):
        sent = asyncio.create_task(served.post(body, "?wait=5", content_type=content_type))
        batch = await worker.claimed()
        assert batch.data == expected.tobytes()
        worker.finish(batch)
        assert (await sent).json()["status"] == "succeeded"
