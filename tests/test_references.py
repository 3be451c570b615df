"""Labelled references: prepared once, several at a time, with what is stated of their licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import collection
import image_files
from rsprune.cli import main
from rsprune.errors import ConfigError
from rsprune.prepared import describe_file, describe_folder, read_labelled
from rsprune.report import write_report
from rsprune.run import Run


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    """A run that is embedded and waits for its references."""
    folder = tmp_path_factory.mktemp("embedded")
    images = collection.make(folder / "images")
    with pytest.raises(SystemExit) as done:
        main(["run", str(images), "-o", str(folder / "run"), "--workers", "1", "-q", "--keep", "0.3"])
    assert not done.value.code
    return folder / "run"


@pytest.fixture
def run(embedded, tmp_path) -> Path:
    shutil.copytree(embedded, tmp_path / "run")
    return tmp_path / "run"


def labelled(path: Path, x: np.ndarray, labels: list[str | None], **metadata: str) -> Path:
    table = pa.table({"embedding": list(np.asarray(x, np.float32)), "label": labels})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_a_licence_is_what_is_stated(tmp_path):
    assert describe_folder(tmp_path) == {"licence": "not stated"}
    (tmp_path / "town").mkdir()
    (tmp_path / "License.txt").write_text("\n# CC BY 4.0 \nlong text")
    assert describe_folder(tmp_path) == {"licence": "CC BY 4.0", "licence_file": "License.txt"}
    (tmp_path / "reference.toml").write_text('name = "UC Merced"\nlicense = "public domain"\nurl = "u"')
    assert describe_folder(tmp_path) == {
        "licence": "public domain", "licence_file": "License.txt", "name": "UC Merced", "url": "u",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = ", "is not valid TOML"),
        ("licence = 3", "not licence = 3"),
        ('author = "a"', "not author = 'a'"),
    ],
)
def test_a_description_that_cannot_be_used(tmp_path, text, sentence):
    (tmp_path / "reference.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        describe_folder(tmp_path)


def test_files_of_other_origin(tmp_path):
    path = labelled(tmp_path / "r.parquet", [[1, 2], [3, 4]], ["a", None], licence="MIT")
    assert describe_file(path) == {"licence": "MIT"}
    features, names = read_labelled(path)
    assert (features.tolist(), names) == ([[1, 2], [3, 4]], ["a", None])
    assert describe_file(labelled(tmp_path / "s.parquet", [[1, 2]], ["a"])) == {"licence": "not stated"}
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ConfigError, match="is not a Parquet file"):
        describe_file(tmp_path / "text.parquet")
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0]], "label": ["a", "b"]}), path)
    with pytest.raises(ConfigError, match=r"one length, not of \[2, 1\]"):
        read_labelled(path)
    for columns in ({"embedding": [[1.0]]}, {"embedding": ["x"], "label": ["a"]}):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(ConfigError, match="needs the columns embedding and label"):
            read_labelled(path)


def test_a_prepared_reference_stands_in_for_its_folder(rsprune, run, tmp_path):
    tiles = tmp_path / "tiles"
    shutil.copytree(collection.TILES, tiles)
    (tiles / "reference.toml").write_text('licence = "CC0"')
    (tiles / "water" / "broken.png").write_bytes(b"no image")
    out = tmp_path / "new/tiles.parquet"
    line = ["reference", tiles, "-o", out, "--workers", 1, "--max-bad", 0.1]
    code, said, _ = rsprune(*line, "--json")
    facts = json.loads(said)
    n = len(collection.tiles())
    assert (code, facts["images"], facts["unreadable"], facts["licence"]) == (0, n, 1, "CC0")
    assert facts["classes"] == {c: len(list((collection.TILES / c).glob("*.png"))) for c in facts["classes"]}
    assert sorted(p.name for p in out.parent.iterdir()) == ["tiles.parquet"]  # no work left behind
    assert pq.read_schema(out).names == ["id", "embedding", "label"]
    code, _, said = rsprune(*line)
    assert (code, "exists already" in said) == (2, True)

    (tiles / "water" / "broken.png").unlink()
    assert rsprune("cluster", run, "--reference", tiles, "--workers", 1, "-q")[0] == 0
    by_folder = Run.open(run).json("calibration.json"), Run.open(run).table("cluster")
    assert rsprune("cluster", run, "--reference", out, "--workers", 1, "-q")[0] == 0
    by_file = Run.open(run).json("calibration.json"), Run.open(run).table("cluster")
    assert by_file[0]["candidates"] == by_folder[0]["candidates"]
    assert by_file[0]["references"]["tiles"]["licence"] == "CC0"
    assert by_file[1].equals(by_folder[1])


def bands_of_16_bits(folder: Path) -> Path:
    """The real tiles as class folders of GeoTIFFs: a band that means nothing, then blue, green and red times 11."""
    for tile in collection.tiles():
        pixels = np.asarray(Image.open(tile).convert("RGB")).astype(np.uint16) * 11
        name = folder / tile.parent.name / f"{tile.stem}.tif"
        name.parent.mkdir(parents=True, exist_ok=True)
        image_files.write_tiff(name, np.dstack([pixels[..., 0] ^ 77, pixels[..., ::-1]]))
    return folder


def test_a_reference_is_read_as_the_pool_is(rsprune, tmp_path):
    """Bands and range of the pool; one that lacks these bands is read as it is."""
    pytest.importorskip("rasterio")
    tiles, out = bands_of_16_bits(tmp_path / "tiles"), tmp_path / "run"
    given = ("--bands", "4,3,2", "--scale", "0,2816", "--tile", 32)
    line = (
        "run",
        tiles,
        "-o",
        out,
        "--workers",
        1,
        "-q",
        "--keep",
        0.5,
        *given,
        "--reference",
        f"{tiles}=same",
    )
    code, _, said = rsprune(*line, "--reference", f"{collection.TILES}=rgb")
    assert code == 0, said
    same, rgb = (Run.open(out / "references" / name) for name in ("same", "rgb"))
    assert same.settings.scan.sources[0].bands == (4, 3, 2)
    assert same.json("radiometry.json")[0]["scale"] == [[0, 2816]]
    assert len(same.table("scan")) == len(collection.tiles())  # classes are not cut into windows
    assert rgb.settings.scan.sources[0].bands is None
    assert same.table("score")["entropy"].equals(rgb.table("score")["entropy"])


def test_bands_by_number_are_not_taken_from_files_of_other_bands(rsprune, tmp_path):
    """Blue, green, red and infrared in the pool; in the reference red, green and blue, as files without numbers have."""
    pytest.importorskip("rasterio")
    for tile in collection.tiles():
        pixels = np.asarray(Image.open(tile).convert("RGB"))
        name = tmp_path / "tiles" / f"{tile.parent.name}-{tile.stem}.tif"
        name.parent.mkdir(exist_ok=True)
        image_files.write_tiff(name, np.dstack([pixels[..., ::-1], pixels[..., 0] ^ 77]))
    out = tmp_path / "run"
    line = ("run", tmp_path / "tiles", "-o", out, "--workers", 1, "-q", "--keep", 0.5, "--bands", "3,2,1")
    code, _, said = rsprune(*line, "--reference", f"{collection.TILES}=rgb")
    assert code == 0, said
    assert Run.open(out / "references" / "rgb").settings.scan.sources[0].bands is None


@pytest.mark.parametrize("end", ["=..", "=.", "/a/.."])
def test_a_set_whose_name_is_no_folder_of_its_own(rsprune, run, tmp_path, end):
    """It would be prepared in the run folder itself, in place of what is there."""
    shutil.copytree(collection.TILES, tmp_path / "classes" / "a")
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    for verb, flag in (("cluster", "--reference"), ("select", "--exclude-from")):
        code, _, said = rsprune(verb, run, flag, f"{tmp_path}/classes{end}", "--workers", 1, "-q")
        assert (code, "give it a name with" in said) == (2, True)
    after = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    assert all(after[f] == data for f, data in before.items() if f.name != ".lock")


def test_bands_that_the_encoder_cannot_take_are_said_before_an_image_is_decoded(rsprune, tmp_path):
    tiles = bands_of_16_bits(tmp_path / "tiles")
    code, _, said = rsprune(
        "run", tiles, "-o", tmp_path / "run", "--workers", 1, "--bands", "1,2", "--keep", 0.5
    )
    assert (code, "cannot tell which of 2 bands" in said) == (2, True)
    assert not list((tmp_path / "run").glob("scores/*"))


def test_a_reference_of_another_encoder_is_refused_before_anything_is_lost(rsprune, run, tmp_path):
    x = np.random.default_rng(0).normal(size=(len(collection.tiles()), 112)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "given.parquet"
    line = ["reference", collection.TILES, "-o", out, "--workers", 1, "-q"]
    assert rsprune(*line, "--embeddings", tmp_path / "x.npy")[0] == 0
    features, _ = read_labelled(out)
    np.testing.assert_array_equal(features, x)
    code, _, said = rsprune("cluster", run, "--reference", out, "-q")
    assert (code, said.count("\n")) == (2, 1)
    assert "was prepared with the encoder precomputed, this run has lite0" in said
    assert Run.open(run).complete("select")

    table = pq.read_table(out)
    about = json.loads(table.schema.metadata[b"rsprune.reference"]) | {
        "encoder": "lite0",
        "weight_hash": "f00",
    }
    pq.write_table(table.replace_schema_metadata({"rsprune.reference": json.dumps(about)}), out)
    code, _, said = rsprune("cluster", run, "--reference", out, "-q")
    assert (code, "was prepared with other weights of lite0" in said) == (2, True)

    wrong = labelled(tmp_path / "short.parquet", x[:, :5], ["a"] * len(x))
    code, _, said = rsprune("cluster", run, "--reference", wrong, "-q")
    assert (code, "has embeddings of 5 features, the run has 112" in said) == (2, True)


def test_several_references_and_what_is_said_about_them(rsprune, run, tmp_path):
    raw = np.random.default_rng(0).normal(size=(30, 112))
    raw[:15] += 1
    other = labelled(tmp_path / "other.parquet", raw, ["water"] * 15 + ["ice"] * 15, licence="MIT")
    line = ["cluster", run, "--reference", collection.TILES, "--reference", other, "--workers", 1]
    code, _, said = rsprune(*line, "--calibrate", "lite0")
    assert code == 0
    found = Run.open(run).json("calibration.json")
    assert said.splitlines()[-1] == found["explanation"]
    assert found["n_clusters"] == int(found["explanation"].split()[0])
    assert set(found["references"]) == {"sentinel2", "other"}
    assert found["references"]["other"]["licence"] == "MIT"
    assert found["references"]["sentinel2"]["licence"] == "not stated"
    assert "other/water" in found["joint"]["classes"]
    tables = {(r["reference"], r["encoder"], r["transform"]) for r in found["candidates"]}
    assert tables == {
        (reference, "lite0", transform)
        for reference in ("sentinel2", "other", None)
        for transform in ("run", "raw", "standardised", "whitened")
    }
    assert {r["granularity"] for r in found["candidates"] if r["used"]} == {found["granularity"]}

    assert rsprune("select", run, "-q")[0] == 0
    page = write_report(Run.open(run)).read_text("utf-8")
    assert found["explanation"] in page
    assert page.count('<table class="candidates">') == 3
    assert "whitened by the reference" in page
    assert "<dt>licence</dt><dd>MIT</dd>" in page


def test_an_encoder_cannot_be_tried_on_features(rsprune, run, tmp_path):
    raw = np.random.default_rng(0).normal(size=(30, 112))
    other = labelled(tmp_path / "other.parquet", raw, ["water"] * 15 + ["ice"] * 15)
    code, _, said = rsprune("cluster", run, "--reference", other, "--calibrate", "unheard-of", "--workers", 1)
    assert (code, "reference other holds no images, so unheard-of cannot be tried on it" in said) == (0, True)
    code, _, said = rsprune(
        "cluster", run, "--reference", collection.TILES, "--calibrate", "unheard-of", "-q", "--workers", 1
    )
    assert (code, "unheard-of" in said) == (2, True)
    assert Run.open(run).complete("cluster")


def test_an_encoder_that_learns_is_compared_as_it_would_learn_from_the_pool(rsprune, run, tmp_path):
    line = ["cluster", run, "--reference", collection.TILES, "--calibrate", "lite0,rcf", "--workers", 1, "-q"]
    assert rsprune(*line)[0] == 0
    found = Run.open(run).json("calibration.json")["candidates"]
    assert {(r["encoder"], r["transform"]) for r in found} == {
        ("lite0", "run"), *((e, t) for e in ("lite0", "rcf") for t in ("raw", "standardised", "whitened")),
    }  # fmt: skip
    (state,) = (run / "references").glob("rcf-*.safetensors")
    first = state.read_bytes()
    shutil.rmtree(run / "references")
    (run / ".stages/cluster.json").unlink()
    assert rsprune(*line)[0] == 0
    assert state.read_bytes() == first
    assert Run.open(run).json("calibration.json")["candidates"] == found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing", "-o", "r.parquet"], "missing"),
        ([collection.TILES, "-o", "r.npy"], "is written to a .parquet file"),
        ([collection.TILES / "water", "-o", "r.parquet"], "images outside class folders"),
        ([collection.TILES, "-o", "r.parquet", "--encoder", "unheard-of"], "unheard-of"),
        ([collection.TILES, "-o", "r.parquet", "--encoder", "rcf"], "learns from the images of a run"),
    ],
)
def test_references_that_cannot_be_prepared(rsprune, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, said = rsprune("reference", *arguments, "-q", "--workers", 1)
    assert (code, said.count("\n")) == (2, 1)
    assert sentence in said
    assert not list(tmp_path.glob("r.*"))
