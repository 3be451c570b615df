"""Comparison of selections: hand-computed on tiny run folders, and the command with good and bad input."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rsprune import config
from rsprune.compare import compare
from rsprune.errors import ConfigError
from rsprune.files import write_table
from rsprune.judge import colour_texture, judge_features
from rsprune.reading import rows
from rsprune.run import Run
from run_folder import SCENES, make_run, write_run

COMPASS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)  # of mean 0 and one deviation


def tiny(path: Path, kept: str, ids: str = "abcd", content: str = "", unreadable: str = "") -> Run:
    """A run about the images `ids` of which `kept` are kept; a and b are of scene 0, the others of scene 1."""
    records = [
        {"id": id, "uri": f"/nowhere/{id}.png", "source": 0, "scene": int(id > "b"), "x": np.eye(16)[ord(id) % 16],
         "hash": content + id, "error": "is damaged" if id in unreadable else None,
         "scores": {"entropy": 4.0 + i, "nodata_fraction": 0.0, "autocorrelation": 0.9}}
        for i, id in enumerate(ids)
    ]  # fmt: skip
    settings = config.settings({"scan": {"sources": [{"path": "/nowhere"}]}, "select": {"keep": 0.5}})
    run = write_run(path, settings, records, dtype="uint8", bands=3)
    decisions = run.decisions
    at = decisions.schema.get_field_index("kept")
    write_table(
        run.path / "decisions.parquet",
        decisions.set_column(at, "kept", pa.array([id in kept for id in ids])),
    )
    return run


@pytest.fixture
def judge(tmp_path):
    np.save(tmp_path / "judge.npy", COMPASS)
    return str(tmp_path / "judge.npy")


def test_overlap_and_coverage_by_hand(tmp_path, judge):
    facts = compare([tiny(tmp_path / "one", "a"), tiny(tmp_path / "two", "ac")], judge=judge)
    assert facts["overlap"] == {"both": [[1, 1], [1, 2]], "jaccard": [[1.0, 0.5], [0.5, 1.0]]}
    one, two = (run["coverage"] for run in facts["runs"])
    # From east, west is at 2 and north and south at the root of 2; with north kept too, west has it at the root.
    root = 2**0.5
    assert one["mean"] == pytest.approx((2 + 2 * root) / 3, abs=1e-3)
    assert one["p95"] == pytest.approx(root + 0.9 * (2 - root), abs=1e-3)
    assert (one["dropped"], one["dropped_judged"], one["kept_judged"]) == (3, 3, 1)
    assert two["mean"] == pytest.approx(root, abs=1e-3)
    assert two["p95"] == pytest.approx(root, abs=1e-3)
    assert one["percentiles"][0] == pytest.approx(root, abs=1e-3)
    assert one["percentiles"][100] == pytest.approx(2, abs=1e-3)
    assert facts["shared"] == 4
    assert facts["notes"] == []


def test_scenes_clusters_and_entropy_by_hand(tmp_path, judge):
    facts = compare([tiny(tmp_path / "one", "a"), tiny(tmp_path / "two", "acd")], judge=judge)
    one, two = facts["runs"]
    first, second = SCENES[:2]
    assert one["scenes"] == {first: [2, 1], second: [2, 0]}
    assert two["scenes"] == {first: [2, 1], second: [2, 2]}
    assert two["clusters"] == {"before": [2, 2], "after": [1, 2]}
    assert one["effective_clusters"] == pytest.approx(1)
    assert two["effective_scenes"] == pytest.approx(3 / 2 ** (2 / 3))  # exp of the entropy of 1/3, 2/3
    assert one["entropy"]["p50"] == pytest.approx(4)
    assert two["entropy"]["mean"] == pytest.approx((4 + 6 + 7) / 3)
    assert sum(two["entropy"]["kept_histogram"]) == 3
    assert sum(two["entropy"]["readable_histogram"]) == 4


def test_only_shared_readable_images_are_judged(tmp_path):
    one = tiny(tmp_path / "one", "ae", "abcde", unreadable="d")
    two = tiny(tmp_path / "two", "cf", "abcdf")
    x = np.float32([*COMPASS, [5, 5]])
    x[3] = np.nan  # the judge could not read it either
    np.save(tmp_path / "judge.npy", x)
    facts = compare([one, two], judge=str(tmp_path / "judge.npy"))
    assert facts["shared"] == 3
    assert [run["coverage"]["dropped"] for run in facts["runs"]] == [2, 2]
    assert [run["coverage"]["kept_judged"] for run in facts["runs"]] == [1, 1]
    assert facts["overlap"]["both"] == [[2, 0], [0, 2]]
    (note,) = facts["notes"]
    assert "4 images are shared by all, out of 5 of one, 5 of two" in note


def test_ids_that_stand_for_different_pixels_are_noticed(tmp_path, judge):
    facts = compare([tiny(tmp_path / "one", "a"), tiny(tmp_path / "two", "a", content="other ")], judge=judge)
    assert facts["notes"] == [
        "4 of the shared ids stand for different pixels: other files, or other bands of the same."
    ]


def test_a_run_that_keeps_everything_has_nothing_to_cover(tmp_path, judge):
    facts = compare([tiny(tmp_path / "one", "abcd"), tiny(tmp_path / "two", "")], judge=judge)
    assert [run["coverage"] for run in facts["runs"]] == [None, None]
    assert facts["overlap"]["jaccard"] == [[1.0, 0.0], [0.0, None]]
    json.dumps(facts, allow_nan=False)


def test_samples_are_bounded_seeded_and_said(tmp_path, judge):
    runs = [tiny(tmp_path / "one", "a"), tiny(tmp_path / "two", "cd")]
    facts = compare(runs, judge=judge, sample=1, seed=3)
    assert [run["coverage"]["dropped_judged"] for run in facts["runs"]] == [1, 1]
    assert compare(runs, judge=judge, sample=1, seed=3) == facts


def test_images_are_judged_by_colour_and_texture(tmp_path):
    run = make_run(tmp_path)
    manifest = list(rows(run.table("scan")))
    x = judge_features("statistics", run, manifest)
    broken = [row["id"] for row, f in zip(manifest, x, strict=True) if np.isnan(f).any()]
    assert broken == ["broken.png"]
    # The same picture is found again by its copies, and the sea lies with the sea.
    at = {row["id"]: i for i, row in enumerate(manifest)}
    np.testing.assert_array_equal(x[at["copy 0.png"]], x[at["copy 1.png"]])
    near = np.argsort(-(x @ x[at["sea/00.png"]]))
    assert all(manifest[i]["id"].startswith("sea") for i in near[:12] if not np.isnan(x[i]).any())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 2), (64, 64, 3), (20, 7, 13)])
def test_statistics_of_any_image(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = colour_texture(image)
    assert (found.shape, found.dtype) == ((37,), np.float32)
    assert np.isfinite(found).all()


def test_statistics_tell_direction_colour_and_scale():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    variogram = colour_texture(stripes)[17:].reshape(5, 4)
    assert variogram[0, 0] == pytest.approx(np.log10((200 / 255) ** 2 + 1e-5), abs=1e-4)  # across, lag 1
    assert variogram[0, 1] == pytest.approx(-5, abs=1e-4)  # along
    assert variogram[1, 0] == pytest.approx(-5, abs=1e-4)  # across, lag 2, is the same stripe again
    red = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    np.testing.assert_allclose(colour_texture(red)[:15].reshape(5, 3), [[1, 0, 0]] * 5)


def test_command(rsprune, tmp_path):
    run = make_run(tmp_path)
    shutil.copytree(run.path, tmp_path / "other")
    few = run.decisions.to_pydict()
    few["kept"] = [kept and i % 2 == 0 for i, kept in enumerate(few["kept"])]
    write_table(tmp_path / "other/decisions.parquet", pa.table(few, schema=run.decisions.schema))
    line = ["compare", run.path, tmp_path / "other", "-o", tmp_path / "new/cmp.png"]
    code, out, said = rsprune(*line, "--json")
    assert (code, said) == (0, "")
    facts = json.loads(out)
    kept = Counter(run.decisions["kept"].to_pylist())[True]
    assert facts["runs"][0]["kept"] == kept
    assert facts["overlap"]["both"][0][1] == facts["runs"][1]["kept"] < kept
    farthest = [r["coverage"]["percentiles"][100] for r in facts["runs"]]
    assert farthest[0] <= farthest[1]
    assert facts["baseline"]["coverage"]["kept_judged"] == kept
    with Image.open(tmp_path / "new/cmp.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    first = (tmp_path / "new/cmp.png").read_bytes()
    code, out, said = rsprune(*line)
    assert (code, said) == (0, "")
    assert "judged by statistics" in out
    assert "<b>town</b>" in out
    assert (tmp_path / "new/cmp.png").read_bytes() == first


def test_an_encoder_that_learns_may_judge(tmp_path):
    run = make_run(tmp_path)
    shutil.copytree(run.path, tmp_path / "other")
    runs = [run, Run.open(tmp_path / "other")]
    facts = compare(runs, judge="rcf")
    assert facts["judge"] == "rcf"
    first, second = (r["coverage"] for r in facts["runs"])
    assert first == second
    assert 0 < first["mean"] < first["p95"] <= 2
    assert compare(runs, judge="rcf") == facts


def test_images_that_have_gone(tmp_path):
    run = make_run(tmp_path)
    shutil.copytree(run.path, tmp_path / "other")
    runs = [run, Run.open(tmp_path / "other")]
    (tmp_path / "tiles/sea/00.png").unlink()
    assert compare(runs)["notes"] == ["1 of 51 images drawn to judge coverage cannot be read any more."]
    for image in (tmp_path / "tiles").rglob("*.png"):
        image.unlink()
    with pytest.raises(ConfigError, match=r"none of the 51 images .* can be read: give .* --judge FILE.npy"):
        compare(runs)


def test_runs_that_cannot_be_compared(rsprune, tmp_path, judge):
    one, two = tiny(tmp_path / "one", "a"), tiny(tmp_path / "two", "a")
    far = tiny(tmp_path / "far", "x", "xyz")
    half = tiny(tmp_path / "half", "a")
    (half.path / ".stages/select.json").unlink()
    for arguments, sentence in (
        ([one.path], "compare needs at least two run folders: give another one"),
        ([one.path, one.path], "are one run folder: give two"),
        ([one.path, tmp_path], "is not a run folder"),
        ([one.path, half.path], "has no finished 'select' stage: run 'rsprune select' first"),
        ([one.path, far.path], "the runs one and far share none of their images by id"),
        ([one.path, two.path, "--judge", "lite0"], "lite0 has selected the images of"),
        ([one.path, two.path, "--judge", "nope"], "nope"),
        ([one.path, two.path, "--judge", tmp_path / "none.npy"], "there is no file"),
    ):
        code, _, said = rsprune("compare", *arguments)
        assert (code, said.count("\n")) == (2, 1), said
        assert said.startswith("rsprune: ")
        assert sentence in said
    np.save(tmp_path / "short.npy", COMPASS[:3])
    code, _, said = rsprune("compare", one.path, two.path, "--judge", tmp_path / "short.npy")
    assert (code, "has 3 rows but the run has 4 images" in said) == (2, True)


def test_features_that_selected_may_not_judge(tmp_path, judge):
    runs = [tiny(tmp_path / "one", "a"), tiny(tmp_path / "two", "b")]
    path = runs[1].path / "config.toml"
    path.write_text(path.read_text().replace('encoder = "lite0"', f'embeddings = "{judge}"'))
    with pytest.raises(ConfigError, match="cannot judge them as well"):
        compare([runs[0], Run.open(runs[1].path)], judge=judge)


@pytest.mark.parametrize("verb", ["compare", "reference"])
def test_help_fits_80_columns(rsprune, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = rsprune(verb, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
