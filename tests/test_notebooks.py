"""The notebooks run from top to bottom, each in a fresh kernel, and show what they say."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
PICTURES = {"arrays": 3, "prune-a-folder": 5, "train-and-sample": 3}


@pytest.fixture(scope="module")
def notebooks():
    spec = importlib.util.spec_from_file_location("notebooks", EXAMPLES / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_notebooks_are_run_and_hold_no_outputs(notebooks):
    assert [path.stem for path in notebooks.notebooks()] == sorted(PICTURES)
    for path in notebooks.notebooks():
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert not cell.get("outputs"), f"{path.name}: clear its outputs before it is committed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the kernel's client
@pytest.mark.parametrize("name", sorted(PICTURES))
def test_runs_and_shows_pictures(name, notebooks, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # the kernel works in another folder
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(p).absolute()) for p in places if p))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = notebooks.execute(EXAMPLES / f"{name}.ipynb")
    pictures = [np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in notebooks.pictures(done)]
    assert len(pictures) == PICTURES[name]
    assert all(picture.std() > 5 for picture in pictures)
    said = [o.text for cell in done.cells for o in cell.get("outputs", ()) if o.get("name") == "stderr"]
    # Where there are no ipywidgets, tqdm says so, which diffusers brings.
    assert not [text for text in said if "Warning" in text.replace("TqdmWarning", "")], said
