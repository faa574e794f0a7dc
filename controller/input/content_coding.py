"""Decompresses request bodies with a `Content-Encoding`."""

from __future__ import annotations

import zlib

from app.server_errors import BodyCodingError, TooLargeError, UnsupportedCodingError

# zlib's parameter for each. `deflate` is zlib's format (RFC 9110, section 8.4.1.2); some senders omit its header.
_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
_RAW_BITS = -15
_IS_ZLIB = 8  # the low half of the first byte
IDENTITY = frozenset({b"", b"identity"})
# Each member of a gzip file costs time, even an empty one, so the number of members is limited.
MAX_MEMBERS = 1024
_PIECE_BYTES = 64 * 1024


def check_coding(coding: bytes) -> None:
    """Refuse a coding that `unpack` does not know.

    Raises:
        UnsupportedCodingError: It is neither gzip nor deflate.
    """
    if coding.strip().lower() not in _WINDOW_BITS.keys() | IDENTITY:
        raise UnsupportedCodingError(
            "the body's Content-Encoding is not supported; expected gzip, deflate or none"
        )


def unpack(coding: bytes, body: bytes, limit_bytes: int) -> bytes:
    """The decompressed body.

    Raises:
        TooLargeError: It is larger than `limit_bytes`; no more than that is decompressed.
        BodyCodingError: It does not match the coding, or it is incomplete.
    """
    name = coding.strip().lower()
    if name in IDENTITY:
        return body
    bits = _WINDOW_BITS[name]
    if name == b"deflate" and body and body[0] & 0x0F != _IS_ZLIB:
        bits = _RAW_BITS
    unpacked = bytearray()
    rest = memoryview(body)
    for _ in range(MAX_MEMBERS if bits == _WINDOW_BITS[b"gzip"] else 1):
        rest = _unpack_member(bits, name, rest, unpacked, limit_bytes)
        if not rest:
            return bytes(unpacked)
    raise BodyCodingError(f"the compressed body has trailing bytes or more than {MAX_MEMBERS} parts")


def _unpack_member(
    bits: int, name: bytes, rest: memoryview, unpacked: bytearray, limit_bytes: int
) -> memoryview:
    stream = zlib.decompressobj(bits)
    while not stream.eof:
        if not rest:
            raise BodyCodingError("the compressed body is truncated")
        piece = rest[:_PIECE_BYTES]
        try:
            unpacked += stream.decompress(piece, limit_bytes + 1 - len(unpacked))
        except zlib.error as error:
            raise BodyCodingError(f"the body is not {name.decode()} ({error})") from None
        if len(unpacked) > limit_bytes:
            raise TooLargeError(
                f"the uncompressed body is larger than {limit_bytes} bytes; send fewer samples per request"
            )
        rest = rest[len(piece) - len(stream.unused_data) :]
    return rest
