"""What the command makes of images of every kind, and of references."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import collection
from ground import features, images, tif
from rsprune.run import Run


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_small_input_works(rsprune, tmp_path, n):
    code, out, said = rsprune("run", images(tmp_path / "in", n), "-o", tmp_path / "run", "--json")
    assert (code, said) == (0, "")
    facts = json.loads(out.splitlines()[-1])
    assert (facts["images"], facts["kept"]) == (n, 1)


@pytest.mark.parametrize(
    ("dtype", "bands"), [(np.uint8, 1), (np.uint16, 3), (np.float32, 4), (np.uint16, 13)]
)
def test_depths_and_bands(rsprune, tmp_path, dtype, bands):
    root = images(tmp_path / "in", 12, dtype=dtype, bands=bands)
    code, _, said = rsprune("run", root, "-o", tmp_path / "run", "--n", 3, "--workers", 1)
    assert code == 0, said
    assert ("without --scale, so it was estimated on 12 images" in said) == (dtype != np.uint8)
    assert len(Run.open(tmp_path / "run").kept_ids) == 3


def test_a_scene_is_cut_into_windows(rsprune, tmp_path):
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 3000, (20, 25, 4)).repeat(10, 0).repeat(10, 1).astype(np.uint16)
    tif(tmp_path / "in/scene.tif", scene)
    line = [
        "run",
        tmp_path / "in",
        "-o",
        tmp_path / "run",
        "--tile",
        64,
        "--bands",
        "3,2,1",
        "--scale",
        "0,3000",
    ]
    code, _, said = rsprune(*line, "--n", 2, "-q", "--workers", 1)
    assert code == 0, said
    run = Run.open(tmp_path / "run")
    assert sorted(run.table("scan")["id"].to_pylist()) == sorted(
        f"scene.tif#{x},{y},64,64"
        for x in (0, 64, 128)
        for y in (0, 64, 128)
        if x + 64 <= 250 and y + 64 <= 200
    )
    assert run.json("radiometry.json")[0]["scale"] == [[0.0, 3000.0]]
    assert run.table("scan")["gsd"].to_pylist()[0] == pytest.approx(10)


def test_several_sources_have_their_own_radiometry_and_ids(rsprune, tmp_path):
    first, second = images(tmp_path / "a/tiles", 6), images(tmp_path / "b/tiles", 5, dtype=np.uint16)
    line = ["--embeddings", features(tmp_path / "x.npy", 11), "-q", "--workers", 1, "-o", tmp_path / "run"]
    code, _, said = rsprune("run", first, second, *line)
    assert (code, said) == (2, "rsprune: two sources are called 'tiles': rename one with PATH=NAME\n")
    code, _, said = rsprune("run", first, f"{second}=deep", *line)
    assert code == 0, said
    run = Run.open(tmp_path / "run")
    assert run.table("scan")["id"].to_pylist() == [f"deep/{i:03d}.tif" for i in range(5)] + [
        f"tiles/{i:03d}.png" for i in range(6)
    ]
    assert run.table("scan")["source"].to_pylist() == [1] * 5 + [0] * 6
    assert [d["dtype"] for d in run.json("radiometry.json")] == ["uint8", "uint16"]


def test_broken_files_are_recorded_and_too_many_stop_the_run(rsprune, tmp_path):
    root = images(tmp_path / "in", 12)
    (root / "zero.png").write_bytes(b"")
    (root / "text.jpg").write_text("not an image")
    (root / "cut.png").write_bytes((root / "000.png").read_bytes()[:300])
    Image.new("1", (60_000, 60_000)).save(root / "bomb.png")
    (root / "loop").symlink_to(root)
    strange = os.fsencode(root) + b"/a \"b'\nc\xff.png"
    Path(os.fsdecode(strange)).write_bytes((root / "001.png").read_bytes())
    x = features(tmp_path / "x.npy", len(list(root.iterdir())))
    line = ["run", root, "-o", tmp_path / "run", "-q", "--embeddings", x, "--workers", 1]
    code, _, said = rsprune(*line)
    assert code == 3
    assert "images are unreadable, more than --max-bad 0.05 allows" in said
    code, _, said = rsprune(*line, "--max-bad", "0.5")
    assert code == 0, said
    run = Run.open(tmp_path / "run")
    bad = {d["id"] for d in run.decisions.to_pylist() if d["reason"] == "unreadable"}
    assert bad == {"zero.png", "text.jpg", "cut.png", "bomb.png", "loop"}
    assert "a \"b'%0Ac%FF.png" in run.table("scan")["id"].to_pylist()
    assert len(run.kept_ids) == round(0.15 * (len(run.decisions) - len(bad)))
    code, _, said = rsprune(*line[:3], tmp_path / "stop", *line[4:], "--on-error", "stop")
    assert (code, said.count("\n")) == (3, 1)


def test_mixed_band_counts_are_recorded(rsprune, tmp_path):
    root = images(tmp_path / "in", 10)
    images(root / "more", 1, bands=5)
    Image.fromarray(np.arange(64, dtype=np.uint8)[None].repeat(64, 0)).save(root / "grey.png")
    line = ["run", root, "-o", tmp_path / "run", "-q", "--workers", 1, "--max-bad", "0.2"]
    code, _, said = rsprune(*line, "--embeddings", features(tmp_path / "x.npy", 12))
    assert code == 0, said
    bad = [d for d in Run.open(tmp_path / "run").table("score").to_pylist() if d["error"]]
    assert [d["id"] for d in bad] == ["more/000.tif"]
    assert "5 bands" in bad[0]["error"]


def test_a_scene_without_data_cannot_meet_the_budget(rsprune, tmp_path):
    tif(tmp_path / "in/scene.tif", np.zeros((256, 256, 3), np.uint8))
    line = ["run", tmp_path / "in", "-o", tmp_path / "run", "--tile", 64, "--nodata", 0, "-q", "--workers", 1]
    code, _, said = rsprune(*line, "--embeddings", features(tmp_path / "x.npy", 16))
    assert (code, said.count("\n")) == (4, 1)
    assert "no image is left to keep (16 nodata)" in said
    assert set(Run.open(tmp_path / "run").decisions["reason"].to_pylist()) == {"nodata"}


def test_more_than_there_are_cannot_be_kept(rsprune, tmp_path):
    root, x = images(tmp_path / "in", 9), features(tmp_path / "x.npy", 9)
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", x, "-q"]
    code, _, said = rsprune(*line, "--n", 10)
    assert (code, said) == (4, "rsprune: 10 images are to be kept but only 9 can be read: lower --n\n")
    code, _, said = rsprune(
        "run", root, "-o", tmp_path / "run", "--embeddings", x, "--n", 9, "--entropy-drop", 0.2
    )
    assert code == 0
    assert "9 images were asked for, but only 8 pass the filters: all of them are kept" in said


def test_a_reference_without_class_folders(rsprune, tmp_path):
    root = images(tmp_path / "in", 9)
    code, _, said = rsprune("run", root, "-o", tmp_path / "run", "--reference", root, "-q", "--workers", 1)
    assert (code, said.count("\n")) == (2, 1)
    assert "put each into a folder named after its class" in said


def test_a_reference_of_images_needs_an_encoder(rsprune, tmp_path):
    root, x = images(tmp_path / "in", 9), features(tmp_path / "x.npy", 9)
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", x, "--reference", collection.TILES, "-q"]
    code, _, said = rsprune(*line)
    assert code == 2
    assert "give the reference as .parquet with columns embedding and label" in said


def test_a_reference_as_parquet(rsprune, tmp_path):
    rng = np.random.default_rng(0)
    root = images(tmp_path / "in", 40)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    x[:20] += 4
    np.save(tmp_path / "x.npy", x)
    labelled = pa.table({"embedding": list(np.r_[x[:20], x[20:]]), "label": ["town"] * 20 + ["sea"] * 20})
    pq.write_table(labelled, tmp_path / "ref.parquet")
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", tmp_path / "x.npy", "-q"]
    assert rsprune(*line, "--reference", tmp_path / "ref.parquet")[0] == 0
    scenes = Run.open(tmp_path / "run").table("cluster")["scene"].to_pylist()
    assert scenes[:20].count("town") > 15
    assert scenes[20:].count("sea") > 15
