"""What nvcc makes of the CUDA kernels, without a GPU."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_hot_kernels_stay_in_registers_and_use_the_instructions_meant():
    script = ROOT / "benchmarks" / "gpu_code.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall("wgmma::screen_kernel", done.stdout)) == 4
    assert "warning" not in done.stdout  # as for wgmma that the compiler runs one after another


def test_instructions_are_in_one_file():
    """What the emulation replaces; `lop3` has a plain spelling beside it, which the emulation runs."""
    for path in (ROOT / "csrc" / "cuda").iterdir():
        words = re.findall(r"\basm\b", re.sub(r"//.*", "", path.read_text()))
        assert len(words) == {"ptx.cuh": len(words), "best_two.h": 1}.get(path.name, 0), path.name


def test_emulation_has_every_instruction():
    ours = re.findall(r"__forceinline__ [\w*& ]+?(\w+)\(", (ROOT / "csrc/cuda/ptx.cuh").read_text())
    emulated = (ROOT / "tests/emulated_gpu/cuda/ptx.cuh").read_text()
    assert "wgmma_wait" in ours
    for name in ours:
        assert re.search(rf"\b{name}\(", emulated), name
