"""Images that come, go or change between two runs: what is made again, and what stays as it is."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import collection
import rsprune
from means import Means
from rsprune import config, stages
from rsprune.errors import ConfigError
from rsprune.files import write_json
from rsprune.layout import READS_IMAGES
from rsprune.locations import source_values
from rsprune.run import Run
from rsprune.sources.base import Item
from rsprune.stages import Job, embed_images, encode, scan_images, score_images
from rsprune.stages.listing import cut

PART = 6


@pytest.fixture
def images(tmp_path) -> Path:
    """48 images of 16 bits: the radiometry is estimated, and so is the embedding space."""
    for i, tile in enumerate(collection.tiles()):
        pixels = np.asarray(Image.open(tile).convert("L"))[:32, :32].astype(np.uint16) * 40 + 300
        collection.save(tmp_path / f"in/a{i:02d}.png", pixels)
        collection.save(tmp_path / f"in/b{i:02d}.png", pixels[::-1])
    return tmp_path / "in"


class Runs:
    """Runs over `images` into one folder, and what they said."""

    def __init__(self, images: Path, out: Path, **values):
        scan = {"sources": [source_values(str(images))], "part_size": PART, **values.pop("scan", {})}
        self.settings = config.settings({"scan": scan, "embed": {"encoder": "rcf"}, **values})
        self.run, self.said = Run(out), []

    def __call__(self, *, overwrite: bool = False) -> dict[str, dict[str, bytes]]:
        """Content of the parts of every stage, by name."""
        self.said = []
        job = Job(self.run, self.settings, workers=1, overwrite=overwrite, say=self.said.append)
        with job.run.lock():
            for stage in (scan_images, score_images, embed_images):
                stage(job)
        return {s: {f.stem: f.read_bytes() for f in self.run.parts(s)} for s in READS_IMAGES}

    def identities(self) -> dict[str, tuple[int, int]]:
        """Files of parts by what they hold, with what changes when they are written."""
        files = [f for stage in READS_IMAGES for f in self.run.parts(stage)]
        return {f"{f.parent.name} {f.stem[-16:]}": (f.stat().st_mtime_ns, f.stat().st_ino) for f in files}

    def remade(self, before: dict[str, tuple[int, int]]) -> set[str]:
        """Digests of the parts that were written since `before`."""
        now = self.identities()
        return {key.split()[1] for key in now if now[key] != before.get(key)}


def picture(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(300, 9000, (32, 32), dtype=np.uint16)).save(path)


def test_parts_are_cut_by_the_ids_alone():
    ids = [f"scene {i:05d}.tif" for i in range(3000)]
    parts = [[item.id for _, item in part] for part in cut(((0, Item(i, "x")) for i in ids), 64)]
    assert [id for part in parts for id in part] == ids
    assert all(32 <= len(part) <= 96 for part in parts[:-1])
    assert 50 < len(ids) / len(parts) < 80
    moved = [[i.id for _, i in p] for p in cut(((1, Item(i, "y", None, "m", "stamp")) for i in ids), 64)]
    assert moved == parts


def test_an_image_more_or_less_changes_few_parts():
    ids = [f"scene {i:05d}.tif" for i in range(3000)]

    def parts(ids):
        return {
            tuple(item.id for _, item in part) for part in cut(((0, Item(i, "x")) for i in sorted(ids)), 64)
        }

    whole, changed = parts(ids), []
    rng = random.Random(0)
    for _ in range(40):
        more, less = [*ids, f"scene {rng.randrange(3000):05d}b.tif"], rng.sample(ids, len(ids) - 1)
        changed += [len(parts(more) - whole), len(parts(less) - whole)]
    assert min(changed) == 1
    assert np.mean(changed) < 1.5
    assert max(changed) <= 6


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_of_any_size(size):
    for n in range(12):
        parts = list(cut(((0, Item(f"{i:02d}", "x")) for i in range(n)), size))
        assert [item.id for part in parts for _, item in part] == [f"{i:02d}" for i in range(n)]
        assert all(len(part) <= max(1, size + size // 2) for part in parts)


def test_nothing_is_made_again_without_a_change(images, tmp_path):
    runs = Runs(images, tmp_path / "run")
    runs()
    before = runs.identities()
    assert len(before) == 3 * len(runs.run.names)
    assert len(runs.run.names) > 5
    runs()
    assert runs.remade(before) == set()
    assert runs.said == []


def test_an_added_image_touches_its_part_only(images, tmp_path):
    runs = Runs(images, tmp_path / "run")
    runs()
    before = runs.identities()
    picture(images / "a10x.png", 1)
    runs()
    remade = runs.remade(before)
    assert 1 <= len(remade) <= 2
    touched = [n for n in runs.run.names if n[-16:] in remade]
    ids = [i for n in touched for i in pq.read_table(runs.run.part("scan", n))["id"].to_pylist()]
    assert "a10x.png" in ids
    assert (
        f"the images have changed: {len(remade)} of {len(runs.run.names)} parts are read again" in runs.said
    )
    rows = [runs.run.table(stage, ["id"])["id"].to_pylist() for stage in ("scan", "score")]
    assert rows[0] == rows[1] == sorted(p.name for p in images.iterdir())
    assert len(runs.run.embeddings()) == len(rows[0])
    assert [f.stem for f in runs.run.parts("embed")] == runs.run.names
    assert np.isfinite(runs.run.embeddings()).all()


def test_an_image_that_has_gone_leaves_nothing(images, tmp_path):
    runs = Runs(images, tmp_path / "run")
    runs()
    before = runs.identities()
    (images / "b05.png").unlink()
    runs()
    assert len(runs.remade(before)) <= 2
    assert "b05.png" not in runs.run.table("scan")["id"].to_pylist()
    assert len(runs.run.embeddings()) == len(runs.run.table("score")) == 47


@pytest.mark.parametrize("how", ["other pixels", "touched"])
def test_a_changed_file_is_noticed(images, tmp_path, how):
    runs = Runs(images, tmp_path / "run")
    first = runs()
    before = runs.identities()
    hashes = dict(zip(*(runs.run.table("score")[c].to_pylist() for c in ("id", "content_hash")), strict=True))
    stat = (images / "a03.png").stat()
    if how == "touched":
        os.utime(images / "a03.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    else:
        picture(images / "a03.png", 2)
    second = runs()
    assert len(runs.remade(before)) == 1
    now = dict(zip(*(runs.run.table("score")[c].to_pylist() for c in ("id", "content_hash")), strict=True))
    assert {i for i in now if now[i] != hashes[i]} == ({"a03.png"} if how == "other pixels" else set())
    if how == "touched":  # the same pixels, so the same scores and embeddings under another name
        for stage in ("score", "embed"):
            assert list(first[stage].values()) == list(second[stage].values())


def test_estimates_stay_until_they_are_to_be_renewed(images, tmp_path):
    runs = Runs(images, tmp_path / "run")
    first = runs()
    declared, transform = (runs.run.path / n for n in ("radiometry.json", "transform.safetensors"))
    estimates = declared.read_bytes(), transform.read_bytes()
    for i in range(3):
        picture(images / f"z{i}.png", i)
    second = runs()
    assert (declared.read_bytes(), transform.read_bytes()) == estimates
    assert len([s for s in runs.said if "--overwrite estimates it anew" in s]) == 2
    same = set(first["embed"]) & set(second["embed"])
    assert len(same) > 4
    assert all(first["embed"][name] == second["embed"][name] for name in same)
    renewed = runs(overwrite=True)
    assert declared.read_bytes() != estimates[0]
    fresh = Runs(images, tmp_path / "fresh")
    assert fresh() == renewed
    before = runs.identities()
    runs(overwrite=True)
    assert runs.remade(before) == set()


def test_an_estimate_that_other_images_would_not_change_is_nothing_to_speak_of(images, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "load_encoder", lambda name, device: Means())
    runs = Runs(images, tmp_path / "run", embed={"encoder": "means", "transform_sample": 1})
    runs.settings = replace(runs.settings, scan=replace(runs.settings.scan, sources=(declared(images),)))
    runs()
    (images / "b05.png").unlink()
    runs()
    assert len(runs.said) == 1


def declared(images: Path) -> config.SourceConfig:
    return config.SourceConfig(str(images), scale=((300, 9000),))


def test_another_type_of_the_images_makes_all_anew(images, tmp_path):
    runs = Runs(images, tmp_path / "run", scan={"max_bad": 1.0})
    runs()
    for file in sorted(images.iterdir())[:40]:
        Image.fromarray(np.asarray(Image.open(file)).astype(np.float64) % 255).convert("L").save(file)
    runs()
    assert json.loads((runs.run.path / "radiometry.json").read_text())[0]["dtype"] == "uint8"
    assert runs.run.table("score")["error"].null_count == 40


def test_embeddings_by_place_do_not_slip(images, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "write_page", lambda job: None)  # which takes longest
    x = tmp_path / "x.npy"
    np.save(x, np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32))
    settings = {"embed": {"embeddings": str(x)}, "scan": {"part_size": PART}}
    rsprune.prune(images, tmp_path / "run", workers=1, settings=settings)
    (images / "a00.png").rename(images / "c.png")
    with pytest.raises(
        ConfigError, match="row per image in the order of their ids, and other images have come since"
    ):
        rsprune.prune(images, tmp_path / "run", workers=1, settings=settings)
    np.save(x, np.random.default_rng(1).normal(size=(48, 8)).astype(np.float32))
    os.utime(x, ns=(0, 10**9))
    run = rsprune.prune(images, tmp_path / "run", workers=1, settings=settings)
    fresh = rsprune.prune(images, tmp_path / "fresh", workers=1, settings=settings)
    assert run.kept_ids == fresh.kept_ids
    np.testing.assert_array_equal(run.embeddings(), fresh.embeddings())


@pytest.mark.parametrize("stage", READS_IMAGES)
@pytest.mark.parametrize("how", ["cut", "zeros", "empty", "gone"])
def test_a_torn_part_is_made_again(images, tmp_path, stage, how):
    runs = Runs(images, tmp_path / "run")
    whole = runs()
    file = runs.run.parts(stage)[2]
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "zeros": bytes(len(data))}.get(how, b""))
    if how == "gone":
        file.unlink()
    before = runs.identities()
    assert runs() == whole
    assert runs.remade(before) == {file.stem[-16:]}


@pytest.mark.parametrize("name", ["radiometry.json", "transform.safetensors", "encoder.safetensors"])
def test_a_torn_estimate_is_made_again(images, tmp_path, name):
    runs = Runs(images, tmp_path / "run")
    whole, file = runs(), runs.run.path / name
    estimate = file.read_bytes()
    file.write_bytes(estimate[: len(estimate) // 2])
    assert runs() == whole
    assert file.read_bytes() == estimate


def test_a_change_in_the_middle_of_an_update(images, tmp_path, monkeypatch):
    """Renamed and removed parts of an update that stopped half-way, and then other images again."""
    runs = Runs(images, tmp_path / "run", scan={"sources": [{"path": str(images), "scale": [[300, 9000]]}]})
    runs()
    picture(images / "a00x.png", 1)
    (images / "a20.png").unlink()
    rename, left = Path.rename, [3]

    def stops(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as m:
        m.setattr(Path, "rename", stops)
        for file in sorted(images.iterdir())[:5]:  # parts that go, so that all after them move up
            file.unlink()
        with pytest.raises(KeyboardInterrupt):
            runs()
    picture(images / "b30.png", 3)
    updated = runs()
    transform = (runs.run.path / "transform.safetensors").read_bytes()
    shutil.copytree(runs.run.path, tmp_path / "other")
    other = Runs(
        images, tmp_path / "other", scan={"sources": [{"path": str(images), "scale": [[300, 9000]]}]}
    )
    for stage in READS_IMAGES:
        shutil.rmtree(other.run.parts(stage)[0].parent)
    assert other() == updated
    assert (other.run.path / "transform.safetensors").read_bytes() == transform


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / ".stages/scan.json").write_text('{"finger'), "scan.json is damaged"),
        (lambda p: (p / ".stages/score.json").write_text("[]"), "score.json is damaged"),
        (
            lambda p: write_json(p / ".stages/embed.json", {"fingerprint": "x", "complete": True}),
            "another version",
        ),
        (
            lambda p: write_json(p / ".stages/scan.json", {"fingerprint": "x", "format": 99, "more": 1}),
            "another version",
        ),
        (lambda p: (p / "config.toml").write_text("seed = 0\n[scan]\nfuture = 1\n"), "does not understand"),
        (lambda p: (p / "config.toml").write_text("[["), "does not understand"),
    ],
)
def test_a_folder_that_this_version_did_not_write(images, tmp_path, rsprune, damage, message):
    out, x = tmp_path / "run", tmp_path / "x.npy"
    np.save(x, np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32))
    line = ["run", images, "-o", out, "--embeddings", x, "--workers", 1, "-q"]
    assert rsprune(*line)[0] == 0
    damage(out)
    for verb in (line, ["embed", out, "-q"], ["select", out, "--n", 3, "-q"], ["report", out, "-q"]):
        code, _, said = rsprune(*verb)
        if code or verb[0] in ("run", "embed"):
            assert (code, said.count("\n")) == (2, 1), said
            assert message in said
    assert rsprune(*line, "--overwrite")[0] == 0
    assert rsprune("select", out, "--n", 3)[0] == 0
