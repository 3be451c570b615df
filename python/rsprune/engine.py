"""How the parts of a stage are executed: in this process or in worker processes.

Every part is computed on one thread, so that the same bytes come out of any number of workers.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import signal
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rsprune.errors import ConfigError, RspruneError, StoreError

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 3  # at a part, before it is given up
PAUSE = 1.0  # seconds before the second attempt, twice that before the third
IN_FLIGHT = 2  # tasks per worker that are handed out, so that nobody waits and nothing piles up
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # another attempt makes no room


_OLDEST_MAJOR = 8  # Ampere, as in csrc/cuda/device.cu


@dataclass(frozen=True)
class Failed(Generic[T]):
    """A task that was given up: why, in words, and the last traceback."""

    task: T
    reason: str
    trace: str = ""


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
    if not (found := re.fullmatch(r"auto|cuda(?::(\d{1,4}))?", wanted)):
        raise ConfigError(f"device is {wanted!r}: give auto, cpu, cuda or cuda:INDEX")
    index = int(found[1] or 0)
    reason = cuda_unavailable() or torch_lacks_cuda(index) or _kernels_lack(index)
    if wanted == "auto":
        return "cpu" if reason else "cuda"
    if reason:
        raise ConfigError(f"--device {wanted} cannot run here: {reason}; use --device cpu")
    return wanted


def torch_lacks_cuda(index: int) -> str | None:
    """Why PyTorch cannot use CUDA device `index`, in words; None where it can."""
    if importlib.util.find_spec("torch") is None:  # which carries images and features to and fro
        return "PyTorch is not installed"
    import torch

    if torch.version.cuda is None:
        return "PyTorch is installed without CUDA"
    count = torch.cuda.device_count()
    return None if index < count else f"PyTorch finds {count} CUDA devices"


def _kernels_lack(index: int) -> str | None:
    """Why kernels cannot run on CUDA device `index`, which PyTorch can use; `cuda_unavailable` looks for any device."""
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    if major >= _OLDEST_MAJOR:
        return None
    return f"device {index} is of compute capability {major}.{minor}, and the kernels need 8.0"


def map_parts(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[R | Failed[T]]:
    """Results of `function` over `tasks` as they come; `function` must be importable by name.

    A task that fails three times gives a `Failed`, also where it ends its worker process each time.

    Raises:
        RspruneError, MemoryError, OSError: what another attempt cannot mend, such as a full disk.
    """
    if workers == 1 or len(tasks) <= 1:
        for task in tasks:
            yield attempt(function, task)
    else:
        yield from _in_processes(function, tasks, min(workers, len(tasks)))


def attempt(function: Callable[[T], R], task: T) -> R | Failed[T]:
    """The result of `function`, on one thread; `Failed` where it fails three times. Raises as `map_parts`."""
    from threadpoolctl import threadpool_limits

    for pause in (*(PAUSE * 2**i for i in range(ATTEMPTS - 1)), 0):
        try:
            with threadpool_limits(1):
                return function(task)
        except Exception as error:
            if _is_final(error):
                raise
            failed = Failed(task, _in_words(error), traceback.format_exc())
            time.sleep(pause)
    return failed


def _is_final(error: Exception) -> bool:
    if isinstance(error, RspruneError):
        return not isinstance(error, StoreError)
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _DISK


def _in_words(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if isinstance(error, RspruneError) else f"{type(error).__name__}: {words}".rstrip(": ")


def _in_processes(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[R | Failed[T]]:
    waiting, suspects = deque(range(len(tasks))), deque[int]()
    deaths: Counter[int] = Counter()
    running: dict[Future[Any], int] = {}
    pool = None
    with warnings.catch_warnings():
        # It replaces a worker whose memory has grown, as an encoder makes it grow: nothing is lost by that.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        try:
            while waiting or suspects or running:
                # A worker that dies takes all tasks in flight with it. Each of them then goes alone, which shows
                # whose fault it was.
                alone = bool(suspects)
                queue, room = (suspects, 1) if alone else (waiting, IN_FLIGHT * workers)
                died: list[int] = []
                while queue and len(running) < room and not died:
                    i = queue.popleft()
                    try:
                        pool = _pool(workers)
                        running[pool.submit(attempt, function, tasks[i])] = i
                    except BrokenExecutor:
                        died.append(i)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    i = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenExecutor:
                        died.append(i)
                        deaths[i] += alone
                if died:
                    died += running.values()
                    running.clear()
                for i in sorted(died):
                    if deaths[i] < ATTEMPTS:
                        suspects.append(i)
                    else:
                        yield Failed(tasks[i], f"ended its worker process {ATTEMPTS} times")
        except BaseException:
            if pool is not None:
                pool.shutdown(kill_workers=True)
            raise


def _pool(workers: int) -> Any:  # joblib's executor, which can kill its workers
    """Worker processes that stay for the next stage; a broken pool is replaced."""
    from joblib.externals.loky import get_reusable_executor

    return get_reusable_executor(
        workers,
        timeout=300,
        initializer=_begin_worker,
        initargs=(os.getpid(),),
        env=dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    )


def _begin_worker(parent: int) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process; the first one ends the others
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    # A parent that was killed cannot stop its workers; without this they would go on writing parts.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
