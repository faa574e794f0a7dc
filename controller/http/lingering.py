"""Closes a connection whose request is not read whole so that its caller still sees the answer (RFC 9112, section 9.6).

A socket that is closed with bytes unread answers more of them with a reset, which takes the answer away from the
caller. So the answer is sent, the sending side is closed, and what still comes is read and thrown away: until the
caller closes, for as long as a request may take to arrive, and not more than `LINGER_BYTES`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_BYTES = 256 * 2**20


class LingeringTransport(asyncio.Transport):
    """The transport of a connection: `close` lingers once if the request is not whole.

    Args:
        transport: The connection's own.
        connection: Its protocol, which is told when the connection is lost.
        is_mid_request: Whether bytes of a request that was begun may still come.
        linger_s: Seconds to linger at most.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        connection: asyncio.Protocol,
        is_mid_request: Callable[[], bool],
        linger_s: float,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._connection = connection
        self._is_mid_request = is_mid_request
        self._linger_s = linger_s
        # The transport's own methods, as each prediction passes them.
        self.write = transport.write  # type: ignore[method-assign]
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.is_reading = transport.is_reading  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]
        self.get_write_buffer_size = transport.get_write_buffer_size  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.abort = transport.abort  # type: ignore[method-assign]

    def close(self) -> None:
        """Close after what was written is sent; lingering first, where a request was not read whole."""
        if not self.is_closing() and self._is_mid_request():
            self.linger()
        else:
            self._transport.close()

    def linger(self) -> None:
        """Send what was written and no more, and throw away what comes until the caller closes."""
        self.is_closing = _yes  # type: ignore[method-assign]
        self._transport.set_protocol(_Discard(self._transport, self._connection, self._linger_s))
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()


class _Discard(asyncio.Protocol):
    """Throws away what comes on a connection."""

    def __init__(self, transport: asyncio.Transport, connection: asyncio.Protocol, linger_s: float) -> None:
        self._transport = transport
        self._connection = connection
        self._n_bytes = 0
        self._end = asyncio.get_running_loop().call_later(linger_s, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._n_bytes += len(data)
        if self._n_bytes > LINGER_BYTES:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        self._connection.connection_lost(exc)


def _yes(*_: Any) -> bool:
    return True
