"""Work in several processes, side by side on a CPU.

Two processes of one thread use two cores better than one process with two threads does. The threads that torch has here are
shared among them.

    for found in side_by_side(judge_pass, [(model, splits, out), ...], workers=2):    # in the order in which they end
        ...
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def side_by_side(work: Callable[..., Any], jobs: Sequence[tuple], workers: int) -> Iterator[Any]:
    """`work(*job)` of each job as they end, the first jobs begun first; in this process, one after the other, where there is
    one worker, one job, or a GPU. `work` and what it takes and returns have to be picklable; its error is raised here.
    Raises RuntimeError when a process dies."""
    import torch

    workers = min(workers, len(jobs))
    if workers < 2 or torch.cuda.is_available():
        for job in jobs:
            yield work(*job)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    threads = max(1, torch.get_num_threads() // workers)
    # A fork has its imports behind it. Where this process has run torch's threads it would wait for them for ever, unless it
    # has one thread of its own, as the forks of torch's DataLoader.
    method = "fork" if sys.platform == "linux" and threads == 1 else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(threads,))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads, as a kernel is
            futures = [pool.submit(work, *job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {workers} processes died, mostly for lack of memory: each holds the model; set workers to 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    os.environ["SRLIB_PROGRESS"] = ""  # the bar is the parent's
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    import torch

    torch.set_num_threads(threads)


def _leave_with(parent: int) -> None:
    """A worker waits for work for ever; when its parent was killed, none will come."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
