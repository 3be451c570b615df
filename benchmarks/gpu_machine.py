"""What is measured on, as JSON on standard output: GPU, driver, clocks, versions, code. Names no host, no path."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "triton", "cupy-cuda13x", "numpy", "flash-kmeans", "pybind11", "scikit-build-core")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


def output(*command: str) -> str:
    """What a command prints; empty where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def sources() -> str:
    """Digest of the kernels' sources: names the code also where there is no repository."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    gpus = output("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader").splitlines()
    print(
        json.dumps(
            {
                "gpus": [dict(zip(QUERY.split(","), line.split(", "), strict=False)) for line in gpus],
                "nvcc": output("nvcc", "--version").splitlines()[-1:],
                "python": platform.python_version(),
                "versions": {name: version(name) for name in PACKAGES},
                "revision": output("git", "rev-parse", "HEAD") or None,
                "changed files": len(output("git", "status", "--porcelain").splitlines()),
                "sources": sources(),
            }
        )
    )
