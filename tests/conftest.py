import os

import pytest

import rsprune
from rsprune import _C

_ISAS = ("portable", "avx2", "avx512", "avx512bf16")


@pytest.fixture(params=["cpu", *(["cuda"] if rsprune.cuda_available() else [])])
def device(request):
    """Every device whose kernels can run here."""
    return request.param


@pytest.fixture(params=_ISAS[: _ISAS.index(_C.best_isa()) + 1] if "RSPRUNE_ISA" not in os.environ else [None])
def isa(request, monkeypatch):
    """Every instruction set this machine has, forced in turn; only the one in RSPRUNE_ISA where that is set."""
    if request.param:
        monkeypatch.setenv("RSPRUNE_ISA", request.param)
    return request.param


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """A run folder that tests only read; its page they may write again."""
    from run_folder import make_run

    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def page(reported):
    """The page about `reported`, read."""
    from report_page import read

    return read(reported)


@pytest.fixture(name="rsprune")
def command(capsys):
    """Runs a command in this process: exit code, stdout, and what it said on stderr."""
    from rsprune.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        return done.value.code or 0, said.out, said.err

    return call
