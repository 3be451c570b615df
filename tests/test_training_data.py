"""The pool of training images, and which of them come when."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
from PIL import Image

import collection
import training_case
from rsprune.errors import ConfigError
from rsprune.radiometry import Radiometry
from rsprune.reading import Reader, rows
from rsprune.training.pool import Pool, load
from rsprune.training.sampler import Sampler
from run_folder import make_run
from training_case import settings, tiles


def pool(n: int = 5, *, side: int = 8, bands: int = 3, weights: np.ndarray | None = None) -> Pool:
    pixels = (
        np.arange(n * side * side * bands, dtype=np.uint32).reshape(n, side, side, bands).astype(np.uint8)
    )
    return Pool([str(i) for i in range(n)], pixels, None, (), weights, {})


# Pool -----------------------------------------------------------------------------------------------------


def test_kept_images_of_a_run_are_read_without_an_export(tmp_path):
    run = make_run(tmp_path)
    loaded = load(settings(run.path, resolution=64))
    assert loaded.ids == sorted(run.kept_ids)
    reader, row_of = Reader(run), {row["id"]: row for row in rows(run.table("scan"))}
    for id, pixels in zip(loaded.ids, loaded.pixels, strict=True):
        np.testing.assert_array_equal(pixels, reader.uint8(row_of[id]))


def test_all_images_of_a_run_are_its_readable_ones(tmp_path):
    run = make_run(tmp_path)
    readable = [r["id"] for r in rows(run.table("scan")) if r["status"] == "ok"]
    assert load(settings(run.path, kept="all")).ids == sorted(readable)


def test_a_list_from_another_run_folder_selects_from_a_plain_folder(tmp_path):
    data = tiles(tmp_path / "data", 6)
    everything = load(settings(data)).ids
    (tmp_path / "kept.txt").write_text("".join(f"{id}\n" for id in everything[:2]))
    assert load(settings(data, kept=str(tmp_path / "kept.txt"))).ids == everything[:2]


def test_kept_ids_that_are_not_there(tmp_path):
    data = tiles(tmp_path / "data", 3)
    (tmp_path / "kept.txt").write_text("gone/1.png\ngone/2.png\n" + load(settings(data)).ids[0] + "\n")
    with pytest.raises(ConfigError, match=r"2 of 3 kept ids are not in .*'gone/1.png'"):
        load(settings(data, kept=str(tmp_path / "kept.txt")))


@pytest.mark.parametrize(("shape", "said"), [((16, 24, 3), "24 x 16 pixels"), ((32, 32), "1 bands where")])
def test_images_of_another_kind_are_named(tmp_path, shape, said):
    data = tiles(tmp_path / "data", 3)
    collection.save(data / "zzz.png", np.zeros(shape, np.uint8))
    with pytest.raises(ConfigError, match=f"'zzz.png' has {said}"):
        load(settings(data))


def test_resize_brings_all_to_one_size(tmp_path):
    data = tiles(tmp_path / "data", 2)
    collection.save(data / "wide.png", np.full((40, 90, 3), 77, np.uint8))
    loaded = load(settings(data, fit="resize"))
    assert loaded.pixels.shape == (3, 16, 16, 3)
    assert (loaded.pixels[loaded.ids.index("wide.png")] == 77).all()


def test_images_smaller_than_the_resolution(tmp_path):
    with pytest.raises(ConfigError, match="32 x 32 pixels, too few for 48 x 48"):
        load(settings(tiles(tmp_path / "data", 2), resolution=48))


@pytest.mark.parametrize(("bits", "top"), [(None, 65535), (16, 65535), (8, 255)])
def test_sixteen_bit_values_are_scaled_and_it_is_said(tmp_path, bits, top):
    (tmp_path / "data").mkdir()
    ramp = np.linspace(1000, 9000, 1024).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "data" / "a.tif")
    said = []
    loaded = load(settings(tmp_path / "data", bits=bits), say=said.append)
    ((lo, hi),) = loaded.facts["scales"][0]["scale"]
    assert (1000 < lo < 1100, 8900 < hi < 9000) == (True, True)
    expected = np.clip((ramp - lo) / (hi - lo) * (top + 1), 0, top)
    assert np.abs(loaded.pixels[0, ..., 0].astype(float) - expected).max() <= 1
    assert loaded.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert "not 8-bit" in said[0]


def sixteen_bits(folder, values, names="abcd"):
    """Writes images of one value each, and returns their folder."""
    folder.mkdir()
    for name, value in zip(names, values, strict=False):
        Image.fromarray(np.full((32, 32), value, np.uint16)).save(folder / f"{name}.tif")
    return folder


def test_an_image_has_the_same_pixels_in_every_selection_of_a_folder(tmp_path):
    """The range is that of the folder, not of what is kept."""
    data = sixteen_bits(tmp_path / "data", (1000, 2000, 8000, 9000))
    (tmp_path / "kept.txt").write_text("a.tif\nb.tif\n")
    whole, kept = (load(settings(data, kept=k)) for k in ("all", str(tmp_path / "kept.txt")))
    assert kept.ids == ["a.tif", "b.tif"]
    np.testing.assert_array_equal(kept.pixels, whole.pixels[:2])
    assert load(settings(data), radiometry=Radiometry(((0.0, 2**16),))).pixels[:, 0, 0, 0].tolist() == [
        1000, 2000, 8000, 9000,
    ]  # fmt: skip


def test_a_file_of_another_type_is_named(tmp_path):
    data = tiles(tmp_path / "data", 3)
    Image.fromarray(np.full((32, 32), 500, np.uint16)).save(data / "zzz.png")
    with pytest.raises(ConfigError, match="'zzz.png' is uint16 where others are uint8: make a run"):
        load(settings(data))


def test_more_images_than_memory(tmp_path, monkeypatch):
    class Memory:
        available = 3 * 32 * 32 * 3 - 1

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(
        ConfigError, match="3 images of 32 x 32 pixels need 0.0 GiB of memory.*give --fit resize"
    ):
        load(settings(tiles(tmp_path / "data", 3)))


def test_scenes_of_a_folder_are_its_folders(tmp_path):
    loaded = load(settings(tiles(tmp_path / "data"), condition="scene"))
    assert [loaded.names[i] for i in loaded.labels] == [id.split("/")[0] for id in loaded.ids]


def test_one_folder_around_all_scenes_is_said(tmp_path):
    tiles(tmp_path / "data" / "train")
    with pytest.raises(
        ConfigError, match="all images lie in the one folder 'train': give that folder as --data"
    ):
        load(settings(tmp_path / "data", condition="scene"))


def test_scenes_of_a_run(tmp_path):
    run = make_run(tmp_path)
    loaded = load(settings(run.path, condition="scene", kept="all"))
    table = run.table("cluster", ["id", "scene"]).to_pydict()
    scene = dict(zip(table["id"], table["scene"], strict=True))
    assert [loaded.names[i] if i >= 0 else None for i in loaded.labels] == [scene[id] for id in loaded.ids]


def test_balanced_weights_give_every_scene_the_same_share(tmp_path):
    loaded = load(settings(tiles(tmp_path / "data"), sample_weights="scene"))
    folder = np.array([id.split("/")[0] for id in loaded.ids])
    shares = [loaded.weights[folder == name].sum() for name in np.unique(folder)]
    np.testing.assert_allclose(shares, 1 / len(shares))


def test_weights_from_a_file(tmp_path):
    data = tiles(tmp_path / "data", 3)
    ids = load(settings(data)).ids
    (tmp_path / "w.tsv").write_text("".join(f"{id}\t{i}\n" for i, id in enumerate(ids)))
    loaded = load(settings(data, sample_weights=str(tmp_path / "w.tsv")))
    np.testing.assert_allclose(loaded.weights, np.array([0, 1, 2]) / 3)
    (tmp_path / "w.tsv").write_text(f"{ids[0]}\t1\n")
    with pytest.raises(ConfigError, match="no weight for 2 images"):
        load(settings(data, sample_weights=str(tmp_path / "w.tsv")))


# Sampler --------------------------------------------------------------------------------------------------


def test_every_pass_has_every_image_once_in_another_order():
    sampler = Sampler(pool(7), seed=3, resolution=8)
    rows_ = sampler.rows(np.arange(21)).reshape(3, 7)
    assert (np.sort(rows_, axis=1) == np.arange(7)).all()
    assert len({tuple(r) for r in rows_}) == 3


def test_a_position_does_not_depend_on_its_batch():
    make = lambda: Sampler(pool(side=12), seed=1, resolution=8, random_flip=True, condition_dropout=0.5)  # noqa: E731
    whole = make().batch(np.arange(40))
    sampler = make()
    parts = [sampler.batch(np.arange(a, a + 5)) for a in (35, 0, 10, 5, 15, 30, 20, 25)]
    order = np.argsort([35, 0, 10, 5, 15, 30, 20, 25])
    for name in vars(whole):
        joined = np.concatenate([getattr(parts[i], name) for i in order])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_another_seed_is_another_everything():
    a, b = (Sampler(pool(50), seed=s, resolution=8).batch(np.arange(50)) for s in (0, 1))
    assert (a.rows != b.rows).any()
    assert abs(np.corrcoef(a.noise.ravel(), b.noise.ravel())[0, 1]) < 0.05


def test_noise_is_standard_normal_and_time_uniform():
    drawn = Sampler(pool(), seed=0, resolution=8).batch(np.arange(2000))
    assert abs(drawn.noise.mean()) < 0.01
    assert abs(drawn.noise.std() - 1) < 0.01
    assert abs(np.corrcoef(drawn.noise[:-1].ravel(), drawn.noise[1:].ravel())[0, 1]) < 0.01
    np.testing.assert_allclose(np.quantile(drawn.time, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    assert abs(drawn.normal_time.std() - 1) < 0.08  # five standard errors


def test_crops_reach_every_place_and_stay_inside():
    drawn = Sampler(pool(side=10), seed=0, resolution=8).batch(np.arange(200))
    assert set(drawn.ys[:, 0]) == set(drawn.xs[:, 0]) == {0, 1, 2}
    assert (np.diff(drawn.ys) == 1).all()
    centred = Sampler(pool(side=10), seed=0, resolution=8, center_crop=True).batch(np.arange(9))
    assert set(centred.ys[:, 0]) == {1}


def test_half_of_the_images_are_mirrored_each_way():
    drawn = Sampler(pool(side=8), seed=0, resolution=8, random_flip=True).batch(np.arange(1000))
    for index in (drawn.ys, drawn.xs):
        mirrored = index[:, 0] == 7
        assert 0.45 < mirrored.mean() < 0.55
        np.testing.assert_array_equal(index[mirrored], np.arange(8)[::-1][None].repeat(mirrored.sum(), 0))


def test_weights_are_met_within_one_image_per_pass():
    weights = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    sampler = Sampler(pool(5, weights=weights), seed=0, resolution=8)
    passes = sampler.rows(np.arange(500)).reshape(100, 5)
    counts = np.array([np.bincount(p, minlength=5) for p in passes])
    assert (np.abs(counts - 5 * weights) < 1).all()
    np.testing.assert_allclose(counts.mean(0), 5 * weights, atol=0.15)


def test_the_condition_is_left_out_at_its_share():
    drawn = Sampler(pool(), seed=0, resolution=8, condition_dropout=0.2).batch(np.arange(2000))
    assert abs(drawn.unconditional.mean() - 0.2) < 0.03


def test_the_digest_sees_pixels_labels_and_weights(tmp_path):
    data = tiles(tmp_path / "data", 8)
    digests = {
        load(training_case.settings(data, **c)).digest
        for c in ({}, {"condition": "scene"}, {"sample_weights": "scene"}, {"fit": "resize"})
    }
    assert len(digests) == 4
