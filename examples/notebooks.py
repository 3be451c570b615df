"""Runs the notebooks in this folder, each in a fresh kernel; as a script it makes the pictures in ``docs/notebooks``."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "notebooks"
SHOWN = {
    "prune-a-folder-map": ("prune-a-folder", -1),
    "arrays-clusters": ("arrays", 1),
}  # in the documentation
TIMEOUT = 600  # seconds a cell, on a machine that has other things to do; on one core all take a minute or so


def notebooks() -> list[Path]:
    return sorted(HERE.glob("*.ipynb"))


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells put out. Raises `CellExecutionError` at the first one that fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3")
    return client.execute(cwd=str(HERE))


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    """The PNG pictures that cells put out, in order."""
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    return [base64.b64decode(d["image/png"]) for d in data if "image/png" in d]


def main() -> None:
    done = {path.stem: pictures(execute(path)) for path in notebooks()}
    DOCS.mkdir(exist_ok=True)
    for name, (notebook, i) in SHOWN.items():
        picture = Image.open(io.BytesIO(done[notebook][i])).convert("RGB")
        picture.quantize(128).save(DOCS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
