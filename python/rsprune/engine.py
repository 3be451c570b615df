"""How the parts of a stage are executed: in this process or in worker processes.

Every part is computed on one thread, so that the same bytes come out of any number of workers.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rsprune.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """One per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(wanted: str) -> str:
    """The device to compute on; `wanted` is auto, cpu or cuda[:i].

    Raises:
      ConfigError: CUDA was asked for and cannot run.
    """
    from rsprune import cuda_unavailable

    if wanted == "cpu":
        return wanted
    if wanted != "auto" and not wanted.startswith("cuda"):
        raise ConfigError(f"device is {wanted!r}: give auto, cpu, cuda or cuda:INDEX")
    reason = cuda_unavailable()
    if wanted == "auto":
        return "cpu" if reason else "cuda"
    if reason:
        raise ConfigError(f"--device {wanted} cannot run here: {reason}; use --device cpu")
    return wanted


def map_parts(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[R]:
    """Results of `function` over `tasks`, in their order; `function` must be importable by name."""
    from threadpoolctl import threadpool_limits

    if workers == 1 or len(tasks) <= 1:
        for task in tasks:
            with threadpool_limits(1):
                result = function(task)
            yield result
        return
    from joblib import Parallel, delayed, parallel_config

    with (
        warnings.catch_warnings(),
        parallel_config("loky", n_jobs=min(workers, len(tasks)), inner_max_num_threads=1),
    ):
        # It replaces a worker whose memory has grown, as an encoder makes it grow: nothing is lost by that.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        yield from Parallel(return_as="generator")(
            delayed(_in_worker)(function, task, os.getpid()) for task in tasks
        )


_watched: set[int] = set()


def _in_worker(function: Callable[[Any], Any], task: Any, parent: int) -> Any:
    from threadpoolctl import threadpool_limits

    if parent not in _watched:
        _watched.add(parent)
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    with threadpool_limits(1):
        return function(task)


def _exit_with(parent: int) -> None:
    # A parent that was killed cannot stop its workers; without this they would go on writing parts.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
