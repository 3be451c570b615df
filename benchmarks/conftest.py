"""What the machine is, so that numbers can be read later; which benchmarks are too long for `make bench`."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from rsprune import _C, __version__, engine

collect_ignore = ["bench_training.py"]  # a program of its own
PACKAGES = ("numpy", "scikit-learn", "scikit-image", "faiss-cpu", "cleanvision", "simplejpeg", "pillow")
FEATURES = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512_bf16",
)
# Half an hour more: one thread and unclustered data at large dimensions, what a machine without AVX2 would take.
LONG = re.compile(
    r"test_kmeans_assign\[(?!mixture-\w+-2\]|mixture-128-|\w+-128-2\])|test_instruction_sets\[portable\]"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also what takes more than ten minutes together")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        long = [item for item in items if LONG.search(item.nodeid)]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """No host name, no user, no path."""
    cpu = _cpu()
    versions = {"rsprune": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "family": f"{cpu.get('vendor_id', '')} family {cpu.get('cpu family', '?')} model {cpu.get('model', '?')}".strip(),
        "cores": engine.default_workers(),
        "features": [f for f in FEATURES if f in cpu.get("flags", "").split()],
        "isa": _C.isa(),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),  # other work on the machine when the measuring began
        "versions": versions,
    }


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return {}


def _cpu() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
