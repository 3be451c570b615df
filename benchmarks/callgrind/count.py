"""Counts the instructions of one call of each kernel, which repeat where times do not.

python benchmarks/callgrind/count.py          prints them beside the recorded ones
python benchmarks/callgrind/count.py --record writes instructions.json, for this compiler
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RECORD = HERE / "instructions.json"
TILES = HERE.parents[1] / "tests" / "data" / "sentinel2"
ISAS = ("portable", "avx2")  # valgrind knows no AVX-512
KERNELS = ("entropy", "assign")


def count(isa: str) -> dict[str, int]:
    """Instructions of one call of each kernel, on one thread: the tiles of `TILES` with patches of 32 pixels, and
    512 points with 112 features against 64 centres.

    Raises:
        RuntimeError: what kept valgrind from running.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, array in _inputs().items():
            np.save(Path(folder, name), array)
        command = [
            *("valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={folder}/out"),
            *(sys.executable, str(HERE / "calls.py"), folder),
        ]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        python_path = os.pathsep.join(sys.path)
        done = subprocess.run(
            command,
            env={**os.environ, **one_thread, "RSPRUNE_ISA": isa, "PYTHONPATH": python_path},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        parts = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [int(re.search(r"^(?:totals|summary): (\d+)", part.read_text(), re.M)[1]) for part in parts]
    # Each kernel leaves three parts: what came before its first mark, one call, two calls.
    return {kernel: totals[3 * k + 2] - totals[3 * k + 1] for k, kernel in enumerate(KERNELS)}


def compiler() -> str:
    """What compiled the kernels, as the extension says itself; the counts of another one are not comparable."""
    from rsprune import _C

    found = re.findall(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", Path(_C.__file__).read_bytes())
    # The CUDA runtime, where it is linked in, names a compiler of its own: the first is that of our objects.
    return found[0].decode() if found else "unknown"


def valgrind() -> str | None:
    """Version of valgrind, None where there is none."""
    if shutil.which("valgrind") is None:
        return None
    return subprocess.run(["valgrind", "--version"], capture_output=True, text=True).stdout.strip()


def _inputs() -> dict[str, np.ndarray]:
    # Real pixels: how often neighbours are equal and how many bins are in use decides what is executed.
    from PIL import Image

    rng = np.random.default_rng(0)
    centers = rng.standard_normal((64, 112), np.float32)
    x = centers[rng.integers(0, 64, 512)] + rng.standard_normal((512, 112), np.float32)
    return {
        "pixels": np.stack([np.asarray(Image.open(path)) for path in sorted(TILES.glob("*/*.png"))]),
        "x": x,
        "centers": centers,
    }


def main() -> None:
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {"counts": {}}
    counts = {isa: count(isa) for isa in ISAS}
    for isa, kernels in counts.items():
        for kernel, now in kernels.items():
            before = recorded["counts"].get(isa, {}).get(kernel)
            print(f"{isa:9} {kernel:8} {now:12,}" + (f"  {now / before - 1:+.1%}" if before else ""))
    if "--record" in sys.argv:
        RECORD.write_text(
            json.dumps({"compiler": compiler(), "valgrind": valgrind(), "counts": counts}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
