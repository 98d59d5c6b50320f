"""Several items at a time, by as many threads as torch uses: compiled loops run beside each other without the GIL."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")
S = TypeVar("S")

_NAME = "elastic-kernels"


def in_threads(call: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """The call for each item, results in their order; what an item raises is raised."""
    items, threads = list(items), torch.get_num_threads()
    inside = threading.current_thread().name.startswith(_NAME)  # waiting there for one's own pool would be for ever
    if threads == 1 or len(items) < 2 or inside:
        return [call(item) for item in items]
    return list(_pool(threads, os.getpid()).map(call, items))


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Kept: starting threads costs more than adding up a small tensor. Threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix=_NAME)
