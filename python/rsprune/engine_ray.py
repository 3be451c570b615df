"""The parts of a stage on a Ray cluster, by Ray Data.

Every node needs this version of rsprune and the run folder at the same path, on a file system that all of them share:
a worker writes its part there itself, just as a local process does, and so the same bytes come out.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rsprune import __version__, engine, errors
from rsprune.engine import ATTEMPTS, Failed
from rsprune.errors import ConfigError, RspruneError

T = TypeVar("T")


@dataclass(frozen=True)
class Ray:
    """Workers on a Ray cluster.

    Attributes:
        folder: The run folder, which every node must see.
        address: Of the cluster, such as ``auto`` or ``ray://host:10001``; None starts one on this machine.
        workers: Most parts at a time; None is one per CPU of the cluster.
        gpus: GPUs that a worker is given, also less than one; 0 computes on CPUs.
    """

    folder: Path
    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0

    @property
    def device(self) -> str:
        """Where workers compute; Ray shows each of them the GPU that it was given, and no other."""
        return "cuda" if self.gpus else "cpu"

    def map_parts(
        self, function: Callable[[T], int], tasks: Sequence[T], *, on_device: bool = False
    ) -> Iterator[int | Failed[T]]:
        """As `engine.map_parts`, on GPUs where the work is `on_device` and there are to be any.

        A part whose node is lost is computed anew on another one.

        Raises:
            ConfigError: the cluster cannot be used.
            RspruneError, MemoryError, OSError: what another attempt cannot mend, such as a full disk.
        """
        if not tasks:
            return
        ray = self._connect()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours follows the images
        context.max_errored_blocks = -1  # the other parts go on where a worker dies
        waiting, lost = dict.fromkeys(range(len(tasks))), ""
        for _ in range(ATTEMPTS):
            try:
                for i, outcome in self._outcomes(
                    ray, function, tasks, list(waiting), self.gpus if on_device else 0.0
                ):
                    if i in waiting:  # else the result was lost with its node, and has come a second time
                        del waiting[i]
                        yield _result(outcome, tasks[i])
            except ray.exceptions.RayError as error:
                lost = f" ({_one_line(error)})"
            if not waiting:
                return
        for i in waiting:
            yield Failed(tasks[i], f"lost its worker process {ATTEMPTS} times{lost}")

    def _outcomes(
        self, ray: Any, function: Callable[[T], int], tasks: Sequence[T], wanted: Sequence[int], gpus: float
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """What came of the `wanted` tasks, in any order; those are missing whose worker was lost. Raises `RayError`."""
        parts = ray.data.from_items([{"id": i} for i in wanted], override_num_blocks=len(wanted)).map_batches(
            _Worker,
            fn_constructor_args=(function, list(tasks)),
            batch_size=1,
            num_cpus=1,
            num_gpus=gpus or None,
            # One at a time: a task that ends its worker must not take others with it.
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=min(self.workers or self._slots(ray, gpus), len(wanted)),
                max_tasks_in_flight_per_actor=1,
            ),
            # Once lost a task is not sent to a new worker by Ray, which would go on for ever, but by `map_parts`.
            max_restarts=-1,
            max_task_retries=0,
        )
        for row in parts.iter_rows():
            yield int(row["id"]), json.loads(row["outcome"])

    def _slots(self, ray: Any, gpus: float) -> int:
        there = ray.cluster_resources()
        return max(1, int(there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1)))

    def _connect(self) -> Any:
        """The module ray, connected. Raises `ConfigError`."""
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ConfigError(f"--engine ray needs Ray ({error}): pip install 'rsprune[ray]'") from None
        if not ray.is_initialized():
            try:
                ray.init(self.address or "local", log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, OSError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"no Ray cluster answers at {self.address or 'this machine'} ({_one_line(error)}): start one with "
                    "'ray start --head', or leave --address out"
                ) from None
            for name in ("ray.data", "ray.data._internal.execution.streaming_executor_state"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said by us
            self._check_nodes(ray)
        if self.gpus and not ray.cluster_resources().get("GPU"):
            raise ConfigError(
                "the Ray cluster has no GPU: leave --gpus-per-worker out, or add a node with one"
            )
        return ray

    def _check_nodes(self, ray: Any) -> None:
        """Raises `ConfigError` where a node lacks this version of rsprune or does not see the run folder."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        token = self.folder / f".ray-{uuid.uuid4().hex}.tmp"
        token.touch()
        try:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            asked = [
                ray.remote(num_cpus=0)(_what_is_there)
                .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
                .remote(str(token.absolute()))
                for node in nodes
            ]
            for node, answer in zip(nodes, asked, strict=True):
                name = node["NodeManagerHostname"]
                try:
                    version, seen = ray.get(answer)
                except ray.exceptions.RayError as error:
                    raise ConfigError(
                        f"node {name} cannot run rsprune ({_one_line(error)}): install it there"
                    ) from None
                if version != __version__:
                    raise ConfigError(
                        f"node {name} has rsprune {version}, and this machine {__version__}: install the same"
                    )
                if not seen:
                    raise ConfigError(
                        f"node {name} does not see {self.folder.absolute()}: "
                        "put the run folder on a file system that all nodes share"
                    )
        finally:
            token.unlink(missing_ok=True)


class _Worker:
    """An actor that computes parts; what it has loaded, such as an encoder, stays for the next one."""

    def __init__(self, function: Callable[[Any], int], tasks: Sequence[Any]):
        self._function, self._tasks = function, tasks

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outcomes = [json.dumps(_outcome(self._function, self._tasks[i])) for i in batch["id"]]
        return {"id": batch["id"], "outcome": np.array(outcomes)}


def _outcome(function: Callable[[T], int], task: T) -> dict[str, Any]:
    """What came of a task in words, as an exception would end the whole data set."""
    try:
        result = engine.attempt(function, task)
    except RspruneError as error:
        return {"error": type(error).__name__, "words": str(error)}
    except MemoryError:
        return {"error": "MemoryError", "words": ""}
    except OSError as error:
        return {"error": "OSError", "words": error.strerror, "errno": error.errno, "filename": error.filename}
    if isinstance(result, Failed):
        return {"reason": result.reason, "trace": result.trace}
    return {"done": result}


def _result(outcome: dict[str, Any], task: T) -> int | Failed[T]:
    """The other side of `_outcome`."""
    if "done" in outcome:
        return outcome["done"]
    if "reason" in outcome:
        return Failed(task, outcome["reason"], outcome["trace"])
    if outcome["error"] == "OSError":
        raise OSError(outcome["errno"], outcome["words"], outcome["filename"])
    if outcome["error"] == "MemoryError":
        raise MemoryError
    raise getattr(errors, outcome["error"], RspruneError)(outcome["words"])


def _what_is_there(path: str) -> tuple[str, bool]:
    import rsprune

    return rsprune.__version__, os.path.exists(path)  # noqa: PTH110


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
