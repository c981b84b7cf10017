"""Requests that wait together are computed together: a queue before one worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Busy(Exception):
    """The queue is full."""


class Batcher:
    """Calls a function of a list with as many of the waiting items as it takes, one call at a time, in its own thread.

    It never waits for more items: while one call runs, those of the next gather by themselves.

    Args:
        function: items [n] -> results [n], n <= ``size``.
        size: items per call at most.
        waiting: items that may wait; ``submit`` of another raises ``Busy``.
    """

    def __init__(self, function: Callable[[list], Sequence], size: int, waiting: int) -> None:
        self.function, self.size = function, size
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future]] = asyncio.Queue(waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._task: asyncio.Task | None = None

    async def submit(self, item: Any) -> Any:
        """The function's result for an item, or its error."""
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        future = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise Busy from None
        return await future

    async def _work(self) -> None:
        while True:
            group = [await self._queue.get()]
            while len(group) < self.size and not self._queue.empty():
                group.append(self._queue.get_nowait())
            group = [(item, future) for item, future in group if not future.done()]  # those given up meanwhile
            if not group:
                continue
            try:
                loop = asyncio.get_running_loop()
                results = await loop.run_in_executor(self._thread, self.function, [item for item, _ in group])
            except Exception as error:
                results = [error] * len(group)
            for (_, future), result in zip(group, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            del group, results  # nothing is kept while it waits

    async def close(self) -> None:
        """End the worker; what waits is given up."""
        if self._task is not None:
            self._task.cancel()
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
