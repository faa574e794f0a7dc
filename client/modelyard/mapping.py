"""Calls a function for many inputs: a bounded number at a time, and with results in order or as they come."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from modelyard.errors import ConfigurationError, ModelyardError, ParameterError
from modelyard.frames import as_frame

T = TypeVar("T")
U = TypeVar("U")
Numbered = tuple[int, T]


def run_all(
    function: Callable[[T], U], inputs: Iterable[T], concurrency: int, *, ordered: bool, progress: bool
) -> Iterator[Numbered[U]]:
    """The place of each input and its result; inputs are taken as they are needed.

    Args:
        ordered: Whether results come in the order of the inputs, or as they are ready.

    Raises:
        ParameterError: `concurrency` is less than 1.
        TypeError: The inputs are one table or dictionary.
        ConfigurationError: A progress bar is wanted, and tqdm is not installed.
    """
    ahead = _ahead(inputs, concurrency, ordered)
    numbered = enumerate(inputs)
    running: dict[Future[U], int] = {}
    with _bar(inputs, progress) as update, ThreadPoolExecutor(concurrency, "modelyard-map") as pool:
        try:
            while True:
                for place, each in numbered:
                    running[pool.submit(function, each)] = place
                    if len(running) >= ahead:
                        break
                if not running:
                    return
                ready = [next(iter(running))] if ordered else wait(running, return_when=FIRST_COMPLETED).done
                for future in ready:
                    with _noting(running.pop(future)) as place:
                        result = future.result()
                    update()
                    yield place, result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


async def run_all_async(
    function: Callable[[T], Awaitable[U]],
    inputs: Iterable[T] | AsyncIterable[T],
    concurrency: int,
    *,
    ordered: bool,
    progress: bool,
) -> AsyncGenerator[Numbered[U], None]:
    """The same with await; raises the same errors."""
    ahead = _ahead(inputs, concurrency, ordered)
    places = asyncio.Semaphore(concurrency)
    running: dict[asyncio.Task[U], int] = {}
    numbered = _numbered(inputs)

    async def run(each: T) -> U:
        async with places:
            return await function(each)

    with _bar(inputs, progress) as update:
        try:
            while True:
                while len(running) < ahead and (taken := await anext(numbered, None)) is not None:
                    running[asyncio.create_task(run(taken[1]))] = taken[0]
                if not running:
                    return
                waited = [next(iter(running))] if ordered else list(running)
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    with _noting(running.pop(task)) as place:
                        result = task.result()
                    update()
                    yield place, result
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def _numbered(inputs: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[Numbered[T]]:
    place = 0
    if isinstance(inputs, AsyncIterable):
        async for each in inputs:
            yield place, each
            place += 1
        return
    for numbered in enumerate(inputs):
        yield numbered


def _ahead(inputs: object, concurrency: int, ordered: bool) -> int:
    """Inputs that are taken before the first result is given out; a slow one must not idle the others."""
    if isinstance(inputs, str | bytes | Mapping) or as_frame(inputs) is not None:
        raise TypeError(
            f"map takes many inputs, and a {type(inputs).__name__} is one; expected a list of them"
        )
    if concurrency < 1:
        raise ParameterError(f"concurrency is {concurrency}; expected at least 1")
    return concurrency * 2 if ordered else concurrency


@contextmanager
def _noting(place: int) -> Iterator[int]:
    try:
        yield place
    except ModelyardError as error:
        error.add_note(f"in input {place}, counted from 0")
        raise


@contextmanager
def _bar(inputs: Any, progress: bool) -> Iterator[Callable[[], object]]:
    """A function that advances the progress bar, if one is wanted."""
    if not progress:
        yield lambda: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ConfigurationError(
            "a progress bar needs tqdm: pip install tqdm; or leave out progress=True"
        ) from None
    with tqdm(total=len(inputs) if hasattr(inputs, "__len__") else None, unit="job") as bar:
        yield bar.update
