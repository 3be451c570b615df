"""A run on a Ray cluster of two nodes: the same bytes as in local processes, also when a node is lost."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from collection import make
from rsprune.cli import main
from rsprune.engine import Failed
from rsprune.engine_ray import Ray
from rsprune.errors import ConfigError, StoreError

pytest.importorskip("ray", reason="an optional engine")
pytestmark = pytest.mark.filterwarnings("default")  # Ray has warnings of its own


@pytest.fixture(scope="module")
def cluster():
    import ray
    from ray.cluster_utils import Cluster

    here = str(Path(__file__).parent)  # nodes import the functions below
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def prune(data: Path, out: Path, *options: str) -> int:
    arguments = ["run", str(data), "-o", str(out), "--encoder", "rcf", "--part-size", "8", "--keep", "0.3"]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--seed", "1", "--device", "cpu", "-q", *options])
    return done.value.code or 0


def contents(run: Path) -> dict[str, bytes]:
    """Every part, what was decided, and the kept ids."""
    parts = [
        f for name in ("manifest", "scores", "embeddings", "assignments") for f in (run / name).iterdir()
    ]
    files = [*parts, run / "decisions.parquet", run / "kept.txt"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("ray") / "tiles")


@pytest.fixture(scope="module")
def local(data) -> dict[str, bytes]:
    assert prune(data, data.parent / "local", "--workers", "1") == 0
    return contents(data.parent / "local")


def double(task: int) -> int:
    return 2 * task


def one_dies(task: int) -> int:
    if task == 2:
        os._exit(1)
    return task


def one_fails(task: int) -> int:
    if task == 1:
        raise ValueError("is never right")
    return task


def disk_is_full(task: int) -> int:
    raise OSError(28, "No space left on device", "part")


def store_is_down(task: int) -> int:
    raise ConfigError("no such bucket") if task else StoreError("no answer")


def test_outcomes_are_those_of_local_processes(cluster, tmp_path, monkeypatch):
    engine = Ray(tmp_path, cluster.address)
    assert sorted(engine.map_parts(double, range(5))) == [0, 2, 4, 6, 8]
    assert list(engine.map_parts(double, [])) == []
    *done, failed = sorted(engine.map_parts(one_fails, range(3)), key=lambda r: isinstance(r, Failed))
    assert sorted(done) == [0, 2]
    assert (failed.task, failed.reason) == (1, "ValueError: is never right")
    with pytest.raises(OSError, match="No space left") as full:
        list(engine.map_parts(disk_is_full, [0]))
    assert (full.value.errno, full.value.filename) == (28, "part")
    with pytest.raises(ConfigError, match="no such bucket"):
        list(engine.map_parts(store_is_down, [1]))


def test_a_task_that_ends_its_worker_takes_no_other_with_it(cluster, tmp_path):
    found = list(Ray(tmp_path, cluster.address).map_parts(one_dies, range(4)))
    assert sorted(r for r in found if not isinstance(r, Failed)) == [0, 1, 3]
    assert [r.task for r in found if isinstance(r, Failed)] == [2]


def test_no_cluster_there_is_one_sentence(capsys, data, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no answer")))
    assert prune(data, tmp_path / "run", "--engine", "ray", "--address", "10.0.0.1:6379") == 2
    assert "no Ray cluster answers at 10.0.0.1:6379" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--address", "auto"), ("--gpus-per-worker", "0.5")])
def test_cluster_options_need_the_engine(capsys, data, tmp_path, options):
    assert prune(data, tmp_path / "run", *options) == 2
    assert "need --engine ray" in capsys.readouterr().err


def test_gpus_that_are_not_there_are_said(cluster, capsys, data, tmp_path):
    options = ("--engine", "ray", "--address", cluster.address, "--gpus-per-worker", "0.5")
    assert prune(data, tmp_path / "run", *options) == 2
    assert "the Ray cluster has no GPU" in capsys.readouterr().err


def test_a_lost_node_changes_nothing(cluster, data, local, tmp_path):  # the last one: it takes the node away
    run = tmp_path / "run"

    def lose_a_node() -> None:
        while not any((run / "scores").glob("part-*")):
            time.sleep(0.01)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    loser = threading.Thread(target=lose_a_node, daemon=True)
    loser.start()
    assert prune(data, run, "--engine", "ray", "--address", cluster.address) == 0
    loser.join(timeout=60)
    assert not loser.is_alive()
    assert len(cluster.worker_nodes) == 0
    assert contents(run) == local
    assert sum(name.startswith("scores/") for name in local) > 3
