"""Reads large bodies, tables and images in separate processes.

The JSON parser holds the GIL for up to 0.2 s for 8 MiB. The decoders of tables and images are native code that may
crash, or take much memory or time, on a hostile body; so the process that runs them has a limit for both.

A thread of the controller calls a process over pipes; this I/O releases the GIL. A process starts with the first large
body. It ends after `IDLE_S` seconds without one, or when the controller has ended, which frees its memory. This module
is also the program of such a process.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress

from app.contract.documents import Reading
from app.freed_memory import reuse_memory
from app.server_errors import (
    BodyNotArrayError,
    ModelyardError,
    QueueFullError,
    TooLargeError,
    UnavailableError,
)
from controller import background_process
from controller.endpoints import Route
from controller.input import bodies
from controller.input.job_samples import Samples, read_samples

LARGE_BODY_BYTES = 2**18  # about 2 ms of parsing JSON; not smaller than one read of a connection
LIMIT_BYTES = 2**26  # of bodies that are being read or wait for it
IDLE_S = 30.0
DECODER_BYTES = 2**29  # of memory for one table or request of images, beside some copies of its body
COPIES = 8
KEPT_BYTES = 2**28  # of free memory, until the process ends
DECODER_CPU_S = 20
PROCESSES = max(1, (os.cpu_count() or 1) // 4)

Question = tuple[
    bytes, tuple[Route, ...], int, Reading, int, str
]  # the arguments of `read_samples` beside the body


def is_large(parts: list[bytes]) -> bool:
    """Whether a reader process reads this body, whatever its type."""
    return sum(map(len, parts)) >= LARGE_BODY_BYTES


class LargeBodies:
    """The processes.

    Args:
        limit_bytes: Of bodies that are being read or wait for it.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES, n_processes: int = PROCESSES) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._threads = ThreadPoolExecutor(n_processes, thread_name_prefix="large-bodies")
        self._idle: list[subprocess.Popen[bytes]] = []
        self._is_closed = False
        self._running: set[subprocess.Popen[bytes]] = set()

    async def read(
        self,
        parts: list[bytes],
        content_type: bytes,
        routes: tuple[Route, ...],
        max_samples: int,
        reading: Reading = "strict",
        max_decoded_bytes: int = 2**25,
        params: str = "",
    ) -> Samples:
        """Run `read_samples` in a process, which joins the parts of the body: that takes long for a large one.

        Raises:
            ModelyardError: The same errors as `read_samples`.
            QueueFullError: Too many large bodies are being read.
            UnavailableError: The process ended twice.
            BodyNotArrayError: It ended twice in a decoder.
        """
        n_bytes = sum(map(len, parts))
        if self._taken_bytes and self._taken_bytes + n_bytes > self._limit_bytes:
            raise QueueFullError(
                "too many large bodies at once; try again shortly, or send fewer samples per request",
                retry_after_s=1,
            )
        self._taken_bytes += n_bytes
        question = (content_type, routes, max_samples, reading, max_decoded_bytes, params)
        answered = asyncio.get_running_loop().run_in_executor(
            self._threads, self._ask, question, parts, n_bytes
        )
        answered.add_done_callback(lambda _: self._give_back(n_bytes))
        answer = await asyncio.shield(answered)  # a process is not interrupted in its work
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the processes. Bodies that are being read are refused."""
        self._is_closed = True
        for process in list(self._running):
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in list(self._running):
            self._end(process)

    def _give_back(self, n_bytes: int) -> None:
        self._taken_bytes -= n_bytes

    def _ask(self, question: Question, parts: list[bytes], n_bytes: int) -> Samples | Exception:
        n_tries = 0
        while n_tries < 2 and not self._is_closed:  # an idle process may have just ended
            n_tries += 1
            process = self._idle.pop() if self._idle else self._start()
            assert process.stdin
            assert process.stdout
            try:
                pickle.dump((question, n_bytes), process.stdin, pickle.HIGHEST_PROTOCOL)
                process.stdin.writelines(parts)
                process.stdin.flush()
                answer: Samples | Exception = pickle.load(process.stdout)  # noqa: S301  # of our own process
            except (OSError, EOFError, pickle.UnpicklingError):
                self._end(process)
                continue
            self._idle.append(process)
            return answer
        if bodies.is_decoded(question[0]) and not self._is_closed:
            return BodyNotArrayError(
                f"the decoder failed, or took longer than {DECODER_CPU_S} s of CPU time; expected an undamaged body"
            )
        return UnavailableError(
            "the process that decodes large bodies ended; send the request again", retry_after_s=1
        )

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603  # no input of a caller's
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=2**20,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "ARROW_DEFAULT_MEMORY_POOL": "system"},
        )
        self._running.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe
            with suppress(OSError):
                pipe.close()
        process.wait()
        self._running.discard(process)


def serve() -> None:
    """Process requests until none arrives for `IDLE_S` seconds, or until the controller has ended."""
    background_process.give_way()
    reuse_memory(KEPT_BYTES)
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    while select.select([questions], [], [], IDLE_S)[0]:
        try:
            question, n_bytes = pickle.load(questions)  # noqa: S301  # of the controller that started this process
        except EOFError:
            return
        pickle.dump(_answer(question, questions.read(n_bytes)), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _answer(question: Question, body: bytes) -> Samples | Exception:
    content_type = question[0]
    try:
        with _limits(len(body)) if bodies.is_decoded(content_type) else nullcontext():
            return read_samples(content_type, body, *question[1:])
    except ModelyardError as error:
        return error.with_traceback(None)
    except MemoryError:
        return TooLargeError(
            f"the body needs more than {DECODER_BYTES >> 20} MiB of memory to decode; send fewer rows per request"
        )
    except Exception as error:  # such as too little memory: the controller logs it and answers 500
        return RuntimeError(f"a large body could not be decoded: {error!r}")


@contextmanager
def _limits(body_bytes: int) -> Iterator[None]:
    """Limit what a decoder may take: an allocation beyond it fails, and a signal ends the process at the time limit."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_PROF, DECODER_CPU_S)
    background_process.limit_memory(DECODER_BYTES + COPIES * body_bytes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    serve()
