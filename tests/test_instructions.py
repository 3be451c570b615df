"""The kernels execute no more instructions than recorded: counts repeat where times do not."""

import json
import sys
from pathlib import Path

import pytest

from rsprune import _C

CALLGRIND = Path(__file__).parents[1] / "benchmarks" / "callgrind"
sys.path.insert(0, str(CALLGRIND))

import count  # noqa: E402

RECORDED = json.loads(count.RECORD.read_text())
MOST = 1.1  # times the recorded count


@pytest.mark.parametrize("isa", count.ISAS)
def test_instructions_have_not_grown(isa):
    if count.valgrind() is None:
        pytest.skip("valgrind is not installed")
    if isa == "avx2" and _C.best_isa() == "portable":
        pytest.skip("this machine has no AVX2")
    built = count.compiler()
    if built != RECORDED["compiler"]:
        pytest.skip(f"counts are recorded for {RECORDED['compiler']}, this build is by {built}")
    counted, recorded = count.count(isa), RECORDED["counts"][isa]
    assert counted.keys() == recorded.keys()
    more = {
        kernel: f"{now:,} instructions, {recorded[kernel]:,} are recorded"
        for kernel, now in counted.items()
        if now > MOST * recorded[kernel]
    }
    assert not more, f"{more}; if that is meant, run: python {count.__file__} --record"
