"""Several items at a time, by as many threads as torch uses: compiled loops run beside each other without the GIL."""

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S")

_NAME = "elastic-kernels"


def in_threads(call: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """The call for each item, results in their order; what an item raises is raised."""
    items, threads = list(items), num_threads()
    if threads == 1 or len(items) < 2:
        return [call(item) for item in items]
    return list(_pool(threads, os.getpid()).map(call, items))


def num_threads() -> int:
    """How many calls `in_threads` would run beside each other here."""
    inside = threading.current_thread().name.startswith(_NAME)  # waiting there for one's own pool would be for ever
    if inside:
        return 1
    torch = sys.modules.get("torch")  # a process without it has all cores to itself, and need not load it for this
    return torch.get_num_threads() if torch else os.cpu_count() or 1


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Kept: starting threads costs more than adding up a small tensor. Threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix=_NAME)
