import subprocess
import sys

import pytest

import rsprune


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_loads_nothing_heavy():
    heavy = run(
        "import sys, rsprune\n"
        "print(sorted({'torch', 'sklearn', 'scipy', 'pyarrow', 'pydantic', 'PIL', 'rich'} & set(sys.modules)))"
    )
    assert heavy.strip() == "[]"


def test_public_names_resolve():
    for name in rsprune.__all__:
        assert getattr(rsprune, name) is not None
    assert set(rsprune.__all__) <= set(dir(rsprune))


def test_lazy_names_are_the_functions_not_their_modules():
    kinds = run("import rsprune; print(type(rsprune.select).__name__, type(rsprune.KMeans).__name__)").split()
    assert kinds == ["function", "ABCMeta"] or kinds == ["function", "type"]


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        rsprune.prunes  # noqa: B018


def test_cuda_reason_is_in_words():
    reason = rsprune.cuda_unavailable()
    assert rsprune.cuda_available() == (reason is None)
    assert reason is None or len(reason) > 5


@pytest.mark.parametrize("first", ["Memorization", "memorization"])
def test_metrics_are_functions_in_whatever_order_they_are_asked_for(first):
    """None has the name of a module, which importing it would put in its place."""
    code = (
        f"from rsprune import evaluation; getattr(evaluation, {first!r}); "
        "assert all(callable(getattr(evaluation, name)) for name in evaluation.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
