"""Kept images for torch and for Hugging Face `datasets`: the same images however they are stored."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from torch.utils.data import DataLoader

import rsprune
from image_files import write_tiff
from rsprune.datasets import KeptDataset, to_huggingface
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.export import export
from rsprune.reading import rows
from rsprune.run import Run
from run_folder import make_run

BANDS, TILE = 5, 16  # of the scene


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))


def prune(data: Path, out: Path, n: int, **source) -> Run:
    np.save(out.with_suffix(".npy"), np.random.default_rng(0).normal(size=(n, 8)).astype(np.float16))
    return rsprune.prune(
        [], out, keep=0.5, workers=1, device="cpu",
        settings={
            "scan": {"sources": [{"path": str(data), **source}]},
            "score": {"patch": 8}, "embed": {"embeddings": str(out.with_suffix(".npy"))},
            "filter": {"autocorrelation_min": -1, "saturated_max": 1, "entropy_drop": 0},
            "select": {"near_duplicate": 2},
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Run, np.ndarray]:
    """A run over 16 windows of a scene in 16 bits, and the pixels [H, W, C] of the scene."""
    folder = tmp_path_factory.mktemp("scene")
    pixels = np.random.default_rng(1).integers(0, 5000, (4 * TILE, 4 * TILE, BANDS)).astype(np.uint16)
    (folder / "scenes").mkdir()
    write_tiff(folder / "scenes" / "a.tif", pixels)
    return prune(folder / "scenes", folder / "run", 16, tile=TILE, scale=[(0, 4096)]), pixels


def test_gives_the_kept_images_best_first(run):
    data = KeptDataset(run.path)
    assert data.ids == run.kept_ids
    decided = {d["id"]: d for d in run.decisions.to_pylist()}
    for i, id in enumerate(run.kept_ids):
        item = data[i]
        assert item["id"] == id
        assert data.scenes[item["scene"]] == decided[id]["scene"]
        assert item["cluster"] == decided[id]["cluster"]
        path = rsprune.sources.ids.decode(decided[id]["uri"])
        stored = np.asarray(Image.open(path)).transpose(2, 0, 1)
        assert item["image"].dtype == torch.uint8
        np.testing.assert_array_equal(item["image"], stored)
    assert data[-1]["id"] == run.kept_ids[-1]
    with pytest.raises(IndexError):
        data[len(data)]


def test_gives_windows_as_stored_or_by_the_declared_range(scene):
    run, pixels = scene
    data, mapped = KeptDataset(run, values="stored"), KeptDataset(run)
    assert len(data) == 8
    for stored, eight in zip(data, mapped, strict=True):
        x, y, w, h = (int(v) for v in stored["id"].rpartition("#")[2].split(","))
        window = pixels[y : y + h, x : x + w].transpose(2, 0, 1)
        assert stored["image"].shape == (BANDS, TILE, TILE)
        np.testing.assert_array_equal(stored["image"].numpy(), window)
        np.testing.assert_array_equal(eight["image"], np.minimum(window // 16, 255))


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_reads_members_of_shards_and_rows_of_tables(run, tmp_path, format):
    export(run, tmp_path / "export", format=format)
    packed = KeptDataset(prune(tmp_path / "export", tmp_path / "again", len(run.kept_ids)))
    files = {item["id"].removesuffix(".png"): item["image"] for item in KeptDataset(run)}
    assert len(packed) > 3
    for item in packed:
        np.testing.assert_array_equal(item["image"], files[item["id"].removesuffix(".png")])


def test_other_images_of_the_run(run):
    dropped = [d["id"] for d in run.decisions.to_pylist() if d["reason"] == "low_entropy"][::-1]
    assert KeptDataset(run, ids=dropped).ids == dropped
    with pytest.raises(ConfigError, match=r"no image 'nowhere.png' \(1 of 2 ids"):
        KeptDataset(run, ids=[dropped[0], "nowhere.png"])
    with pytest.raises(ConfigError, match="give a list of ids"):
        KeptDataset(run, ids=dropped[0])
    assert KeptDataset(run, ids=iter(dropped)).ids == dropped


def test_prints_as_what_it_is(run):
    data = KeptDataset(run)
    assert repr(data) == f"KeptDataset({str(run.path)!r}) of {len(data)} images in {len(data.scenes)} scenes"
    assert "values='stored'" in repr(KeptDataset(run, values="stored"))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_give_the_same_batches(run):
    data = KeptDataset(run, transform=lambda image: image.float().mean(dim=(1, 2)))
    data[0]  # the parent has files open that its workers must not share
    batches = list(DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork"))
    assert [id for batch in batches for id in batch["id"]] == data.ids
    assert torch.equal(
        torch.cat([b["image"] for b in batches]), torch.stack([item["image"] for item in data])
    )
    assert torch.cat([b["scene"] for b in batches]).tolist() == data.scene.tolist()


def test_a_process_that_was_forked_opens_the_files_itself(run, monkeypatch):
    data = KeptDataset(run)
    before = data._open()
    assert data._open() is before
    assert pickle.loads(pickle.dumps(data))[0]["id"] == run.kept_ids[0]
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert data._open() is not before


def test_weights_draw_every_scene_equally_often(run, tmp_path):
    data = KeptDataset(run)
    weights = data.weights("scene")
    sums = np.bincount(data.scene, weights)
    np.testing.assert_allclose(sums, 1 / len(data.scenes))
    lines = "".join(f"{id}\t{i}\n" for i, id in enumerate(data.ids))
    (tmp_path / "weights.tsv").write_text(lines, "utf-8")
    np.testing.assert_allclose(
        data.weights(str(tmp_path / "weights.tsv")) * sum(range(len(data))), range(len(data))
    )
    with pytest.raises(ConfigError, match="cannot read the weights nothing.tsv: No such file"):
        data.weights("nothing.tsv")


HF_COLUMNS = ["id", "image", "rank", "cluster", "scene", "npy", "caption", "json", "cls"]


def test_hugging_face_has_the_paths_of_files_and_their_captions(tmp_path):
    run = make_run(tmp_path)
    uris = {d["id"]: rsprune.sources.ids.decode(d["uri"]) for d in run.decisions.to_pylist()}
    Path(uris[run.kept_ids[1]]).with_suffix(".txt").write_text("a town", "utf-8")
    data = to_huggingface(run, cache_dir=tmp_path / "cache")
    assert data.column_names == HF_COLUMNS
    ranked = sorted(data, key=lambda row: row["rank"])
    assert [row["id"] for row in ranked] == run.kept_ids
    torch_data = KeptDataset(run)
    for row, item in zip(ranked, torch_data, strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]).transpose(2, 0, 1), item["image"])
        assert row["scene"] == torch_data.scenes[item["scene"]]
    stored = data.cast_column("image", datasets.Image(decode=False))
    at = {row["id"]: row["image"] for row in stored}
    named = [id for id in at if uris[id].isprintable()]
    assert len(named) > 3
    assert all(at[id] == {"bytes": None, "path": uris[id]} for id in named)
    assert [row["caption"] for row in ranked[:3]] == [None, "a town", None]


def test_hugging_face_streams_windows_as_crops(scene):
    run, pixels = scene
    streamed = to_huggingface(run, streaming=True).cast_column("image", datasets.Image(decode=False))
    found = {row["id"]: row["image"]["bytes"] for row in streamed}
    assert sorted(found) == sorted(run.kept_ids)
    for id, crop in found.items():
        x, y, w, h = (int(v) for v in id.rpartition("#")[2].split(","))
        with pytest.warns(NotGeoreferencedWarning), MemoryFile(crop).open() as file:
            np.testing.assert_array_equal(file.read(), pixels[y : y + h, x : x + w].transpose(2, 0, 1))


def test_says_which_image_is_gone_and_what_is_not_finished(tmp_path):
    run = make_run(tmp_path)
    row = next(r for r in rows(run.table("scan")) if r["id"] == run.kept_ids[2])
    Path(rsprune.sources.ids.decode(row["uri"])).unlink()
    data = KeptDataset(run)
    with pytest.raises(UnreadableImage, match="^" + run.kept_ids[2].replace(".", r"\.") + " cannot be read"):
        data[2]
    with pytest.raises(ConfigError, match="give uint8 or stored"):
        KeptDataset(run, values="float")
    (run.path / "decisions.parquet").unlink()
    with pytest.raises(ConfigError, match="is not a run folder"):
        KeptDataset(tmp_path)


@pytest.mark.parametrize("workers", [None, 2])
def test_says_which_run_has_lost_its_images(tmp_path, workers, monkeypatch):
    monkeypatch.setattr("rsprune.datasets.huggingface._SPAN", 1)  # so that two workers have something to do
    (tmp_path / "tiles").mkdir()
    for i in range(4):
        Image.effect_noise((16, 16), 50 + i).convert("RGB").save(tmp_path / "tiles" / f"{i}.png")
    run = prune(tmp_path / "tiles", tmp_path / "run", 4)
    data = KeptDataset(run)
    (tmp_path / "tiles").rename(tmp_path / "moved")
    said = r"^the images of the run .*run cannot be opened: cannot read '.*tiles': No such file or directory"
    with pytest.raises(ConfigError, match=said):
        data[0]
    with pytest.raises(ConfigError, match=said):
        to_huggingface(run, cache_dir=tmp_path / "cache", workers=workers)


def test_without_torch_the_module_loads_and_a_sentence_says_what_to_install():
    code = """
import sys
sys.modules.update(torch=None, datasets=None, torchgeo=None)
import rsprune.datasets
for name in rsprune.datasets.__all__:
    try:
        getattr(rsprune.datasets, name)
    except rsprune.datasets.ConfigError as error:
        print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == [
        "KeptDataset needs torch: run `pip install 'rsprune[torch]'`",
        "KeptWindowSampler needs torch: run `pip install 'rsprune[torchgeo]'`",
        "to_huggingface needs datasets: run `pip install 'rsprune[datasets]'`",
    ]
