"""Batches of prompts on the cores of a CPU: each batch by one thread, several at a time.

PyTorch would share each operation among its threads, of which all wait for the slowest. Beside
other programs one of them nearly always waits for its core, thousands of times for a tile.
`benchmarks/busy.py` measures what that costs. A batch that one thread computes also has the same
bits for any number of cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

# each holds some 150 MB while it decodes for `vit_b`; far more would wait for the memory
MOST_WORKERS = 16

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each_by_one_thread(
    work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> Iterator[_Result]:
    """Yield the results of `work` for all items, in their order, a few items ahead.

    With one thread the caller does it all. An error ends the iterator. If it is closed, items that
    have begun are finished, unseen.
    """
    if threads == 1:
        yield from map(work, items)
        return
    threads = min(threads, MOST_WORKERS)
    pool = _pool(threads)
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Start threads in which torch has one thread each; they live as long as the process."""
    others = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "prompts", _take_one_thread)
    all_started = Barrier(threads)
    for future in [pool.submit(all_started.wait) for _ in range(threads)]:
        future.result()
    # the last number that any thread sets is also that of all threads to come
    torch.set_num_threads(others)
    return pool


def _take_one_thread() -> None:
    torch.set_num_threads(1)
    # a thread takes the number that was last set anywhere when it first asks for it: ask now
    torch.get_num_threads()
