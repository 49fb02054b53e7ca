"""Threads that work beside the network, where it leaves a core idle."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import cv2

from cwr_utils.backend import keras

DECODERS = max(4, os.cpu_count() or 1)
LOWEST_PRIORITY = 19
# Forward passes at a time: one has work for the cores, or the GPU, that another leaves
# idle. PyTorch takes all cores for one.
IN_FLIGHT = 1 if keras.backend.backend() == "torch" else 2


def helpers(count: int) -> ThreadPoolExecutor:
    """Threads of lowest priority.

    On a CPU a core that they take away from the network lets its other cores wait too:
    so they stand back. OpenCV's own threads would not, hence one for each photo.
    """
    cv2.setNumThreads(1)
    return ThreadPoolExecutor(count, initializer=_stand_back)


def _stand_back() -> None:
    if sys.platform == "linux":  # elsewhere a priority is that of the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def ahead(
    executor: Executor, function: Callable, items: Iterable, depth: int
) -> Iterator[Any]:
    """Map in order, with at most `depth` results waiting."""
    waiting: deque = deque()
    for item in items:
        waiting.append(executor.submit(function, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
