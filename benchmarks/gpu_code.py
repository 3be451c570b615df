"""What the compiler makes of the hot CUDA kernels: registers, spills, stack; and instructions, where cuobjdump is.

python benchmarks/gpu_code.py

Compiles each file for the architecture that its kernels are meant for; exit code 1 if a hot kernel spills, keeps
something on a stack, or lacks the instructions it is written for. Needs nvcc and no GPU.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

CSRC = Path(__file__).parent.parent / "csrc"
# File, architecture, hot kernels, and what their machine code has to hold.
HOT = (
    ("cuda/kmeans.cu", "80", r"mma::screen_kernel", ("HMMA.16816", "LDGSTS", "LDSM")),
    (
        "cuda/screen_wgmma.cu",
        "90a",
        r"wgmma::screen_kernel",
        ("HGMMA.64x128x16", "UTMALDG.2D", "SYNCS", "USETMAXREG"),
    ),
    ("cuda/kmeans_sums.cu", "90", r"sum_chunks_kernel", ()),
    (
        "cuda/entropy.cu",
        "90",
        r"entropy_fast::patch_entropy_kernel",
        ("ATOMS.POPC.INC", r"LDG.E.(64|128)", "REDUX.SUM"),
    ),
)


@dataclass
class Kernel:
    name: str
    registers: int = 0
    stack: int = 0
    spilled: int = 0
    missing: list[str] = field(default_factory=list)  # instructions

    @property
    def fine(self) -> bool:
        return not (self.stack or self.spilled or self.missing)


def compile_cubin(file: str, arch: str, folder: Path) -> tuple[Path, str]:
    """Machine code of a file for one architecture, and ptxas's report with names as in the source."""
    out = folder / f"{Path(file).stem}.{arch}.cubin"
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        f"-I{CSRC}",
        "-cubin",
        "-Xptxas",
        "-v",
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
    ]
    done = subprocess.run([*command, CSRC / file, "-o", out], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc could not compile {file} for sm_{arch}:\n{done.stdout}{done.stderr}")
    return out, done.stdout + done.stderr


def kernels(report: str, pattern: str) -> list[Kernel]:
    """The kernels of a ptxas report whose name, as in the source, matches."""
    found = []
    for part in report.split("Compiling entry function '")[1:]:
        mangled = part.split("'")[0]
        name = subprocess.run(["c++filt", mangled], capture_output=True, text=True).stdout.strip() or mangled
        if not re.search(pattern, name):
            continue
        kernel = Kernel(name)
        kernel.registers = int(re.search(r"Used (\d+) registers", part)[1])
        stack, stores, loads = map(
            int,
            re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
            ).groups(),
        )
        kernel.stack, kernel.spilled = stack, stores + loads
        found.append(kernel)
    if not found:
        raise RuntimeError(f"no kernel matches {pattern}")
    return found


def disassembler() -> str | None:
    """cuobjdump from the CUDA toolkit, or from Triton, which brings one; it needs nvdisasm beside it."""
    on_path = shutil.which("cuobjdump")
    if on_path:
        return on_path
    triton = importlib.util.find_spec("triton")
    inside = (
        Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    )
    return str(inside) if inside and inside.exists() else None


def check_instructions(cubin: Path, pattern: str, wanted: tuple[str, ...], found: list[Kernel]) -> bool:
    """Notes what each kernel's machine code lacks; False where there is no disassembler."""
    tool = disassembler()
    if tool is None:
        return False
    sass = subprocess.run([tool, "--dump-sass", cubin], capture_output=True, text=True).stdout
    bodies = {}
    for part in sass.split("Function : ")[1:]:
        mangled, _, body = part.partition("\n")
        bodies[
            subprocess.run(["c++filt", mangled.strip()], capture_output=True, text=True).stdout.strip()
        ] = body
    for kernel in found:
        body = bodies[kernel.name]
        kernel.missing = [w for w in wanted if not re.search(w.replace(".", r"\."), body)]
        kernel.missing += [f"no {local}" for local in ("LDL", "STL") if re.search(rf"\b{local}\b", body)]
    return True


def main() -> int:
    bad = 0
    for file, arch, pattern, wanted in HOT:
        with tempfile.TemporaryDirectory() as folder:
            cubin, report = compile_cubin(file, arch, Path(folder))
            found = kernels(report, pattern)
            looked = check_instructions(cubin, pattern, wanted, found)
        for warning in re.findall(r"(?:warning|C75\d\d).*", report):
            print(warning)
        for kernel in found:
            bad += not kernel.fine
            code = (
                f"lacks {', '.join(kernel.missing)}"
                if kernel.missing
                else "code as meant"
                if looked
                else "code not seen"
            )
            short = re.sub(r"\(.*|void |rsprune::", "", kernel.name)
            print(
                f"sm_{arch:3} {kernel.registers:4} registers {kernel.stack:4} stack {kernel.spilled:4} spilled  {code}  {short}"
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
