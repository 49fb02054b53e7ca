"""Jobs on an executor: processes of this machine, or machines of a cluster."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor, as_completed
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def hand_out(
    executor: Executor,
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    done: Callable[[Job, Result], object] = lambda job, result: None,
) -> None:
    """Have every job done; the first error cancels what has not begun.

    Args:
        executor: any of `concurrent.futures`, or Dask's `Client.get_executor`.
        function: what to do with a job; may be called twice where a machine dies.
        jobs: of values that can be sent to another machine.
        done: called here with each job and what came out, in the order they end.

    Raises:
        Exception: the first that a job or `done` raises.
    """
    futures = {executor.submit(function, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            done(futures[future], future.result())
    finally:
        for future in futures:
            future.cancel()
