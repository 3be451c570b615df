"""Networks in ONNX files, of any number of bands."""

import json
import pickle

import numpy as np
import pytest

import image_files
from rsprune import config
from rsprune.encoders import encoder_files, load_encoder
from rsprune.encoders.preprocess import Preprocessing
from rsprune.errors import ConfigError
from rsprune.locations import source_values
from rsprune.run import Run
from rsprune.stages import Job, embed_images, scan_images, score_images


def images(n, shape=(20, 24, 3)):
    return [image_files.texture(*shape, seed=i) for i in range(n)]


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


def write_model(onnx, path, *, bands=5, size=(8, 8), group="n", inputs=1, kind="mean", seed=0, **metadata):
    """A 1 x 1 convolution to four channels; its maps, their mean, or as tokens."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).normal(size=(4, bands, 1, 1)).astype(np.float32)
    shape = [group, bands, *size]
    nodes = [helper.make_node("Conv", ["pixels", "weights"], ["maps"])]
    outputs = [helper.make_tensor_value_info("maps", TensorProto.FLOAT, None)]
    if kind == "mean":
        nodes.append(helper.make_node("ReduceMean", ["maps", "axes"], ["features"], keepdims=0))
        outputs.insert(0, helper.make_tensor_value_info("features", TensorProto.FLOAT, None))
    elif kind == "tokens":
        nodes += [
            helper.make_node("Reshape", ["maps", "shape"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        ]
        outputs.insert(0, helper.make_tensor_value_info("tokens", TensorProto.FLOAT, None))
    constants = {"weights": weights, "axes": np.array([2, 3]), "shape": np.array([0, 4, -1])}
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(f"pixels{i or ''}", TensorProto.FLOAT, shape) for i in range(inputs)],
        outputs,
        [numpy_helper.from_array(v, k) for k, v in constants.items() if k in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(
        model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    )
    onnx.save(model, path)
    return weights[:, :, 0, 0]


@pytest.mark.parametrize("kind", ["mean", "maps", "tokens"])
@pytest.mark.parametrize("group", ["n", 3])
def test_onnx_features_by_hand(onnx, tmp_path, kind, group):
    mean, std = [0.1 * i for i in range(5)], [0.5, 1, 1, 1, 2]
    path = tmp_path / "model.onnx"
    weights = write_model(onnx, path, kind=kind, group=group, mean=mean, std=std)
    encoder = load_encoder(f"onnx:{path}", "cpu")
    assert (encoder.name, encoder.dim, encoder.device) == (f"onnx:{path}", 4, "cpu")
    pool = images(7, (8, 8, 5))
    x = encoder(pool)
    assert x.dtype == np.float32
    average = np.stack([(i / 255 - mean).mean((0, 1)) / std for i in pool])
    np.testing.assert_allclose(x, average @ weights.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([encoder(pool[:2]), encoder(pool[2:])]), x)
    assert encoder([]).shape == (0, 4)
    encoder.check_bands({"a": 5})
    with pytest.raises(ConfigError, match=r"source b has 3 bands, but .*model\.onnx takes 5"):
        encoder.check_bands({"a": 5, "b": 3})


def test_onnx_rgb_takes_red_green_and_blue(onnx, tmp_path):
    write_model(onnx, tmp_path / "m.onnx", bands=3, mean=[0, 0, 0], std=[1, 1, 1])
    encoder = load_encoder(f"onnx:{tmp_path / 'm.onnx'}", "cpu")
    (full,) = images(1, (8, 8, 13))
    np.testing.assert_array_equal(encoder([full]), encoder([full[:, :, [3, 2, 1]]]))
    with pytest.raises(ConfigError, match="source b: cannot tell which of 7 bands"):
        encoder.check_bands({"a": 4, "b": 7})


def test_onnx_description_beside_the_model(onnx, tmp_path):
    path, beside = tmp_path / "m.onnx", tmp_path / "m.onnx.toml"
    write_model(onnx, path, size=("h", "w"), mean=[9] * 5, std=[9] * 5)
    beside.write_text('size = [8, 10]\nmean = [0, 0, 0, 0, 0.5]\nstd = [1, 1, 1, 1, 1]\noutput = "maps"\n')
    encoder = load_encoder(f"onnx:{path}", "cpu")
    assert encoder.preprocessing == Preprocessing((8, 10), (0, 0, 0, 0, 0.5), (1,) * 5)
    assert encoder_files(f"onnx:{path}") == [path, beside]
    before = encoder.weight_hash
    beside.write_text(beside.read_text().replace("0.5", "0.25"))
    assert load_encoder(f"onnx:{path}", "cpu").weight_hash != before


@pytest.mark.parametrize(
    ("model", "beside", "message"),
    [
        ({}, None, r"does not say how its images are normalised: write mean"),
        ({"mean": [0] * 5, "std": [1] * 5, "size": ("h", "w")}, None, r"leaves the size of its images open"),
        ({"mean": [0] * 3, "std": [1] * 5}, None, r"mean of .* must be 5 numbers"),
        ({"mean": [0] * 5, "std": [0] * 5}, None, r"std of .* must be 5 positive numbers"),
        ({"mean": "zero"}, None, r"the metadata of .* cannot be used"),
        (
            {"mean": [0] * 5, "std": [1] * 5, "output": "logits"},
            None,
            "no output 'logits': give one of features, maps",
        ),
        ({"mean": [0] * 5, "std": [1] * 5}, "maen = 3", r"\.toml cannot be used: there is no key maen"),
        ({"mean": [0] * 5, "std": [1] * 5}, "mean = ", r"\.toml cannot be used"),
        ({"mean": [0] * 5, "std": [1] * 5}, "size = 0", r"size is 0"),
        ({"bands": "c"}, None, r"float32 \[N, C, h, w\] with a fixed C, it has pixels"),
        ({"inputs": 2, "mean": [0] * 5, "std": [1] * 5}, None, r"must have one input"),
    ],
)
def test_onnx_models_that_cannot_be_used(onnx, tmp_path, model, beside, message):
    path = tmp_path / "m.onnx"
    model = dict(model)
    if model.get("bands") == "c":
        from onnx import TensorProto, helper

        ports = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", "c", 8, 8]) for n in ("pixels", "y")
        ]
        graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["y"])], "g", ports[:1], ports[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    else:
        write_model(onnx, path, **model)
    if beside:
        (tmp_path / "m.onnx.toml").write_text(beside)
    with pytest.raises(ConfigError, match=message) as caught:
        load_encoder(f"onnx:{path}", "cpu")
    assert "\n" not in str(caught.value)


def test_onnx_files_and_devices(onnx, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*none\.onnx"):
        load_encoder(f"onnx:{tmp_path}/none.onnx")
    (tmp_path / "bad.onnx").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(ConfigError, match="is not an ONNX model") as caught:
        load_encoder(f"onnx:{tmp_path}/bad.onnx")
    assert "\n" not in str(caught.value)
    write_model(onnx, tmp_path / "m.onnx", mean=[0] * 5, std=[1] * 5)
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ConfigError, match="onnxruntime is without CUDA"):
            load_encoder(f"onnx:{tmp_path}/m.onnx", "cuda")
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        load_encoder(f"onnx:{tmp_path}/m.onnx", "tpu")


def test_onnx_in_a_run(onnx, tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    data = tmp_path / "data"
    data.mkdir()
    for i, pixels in enumerate(images(9, (16, 16, 5))):
        image_files.write_tiff(data / f"{i}.tif", pixels)
    write_model(onnx, tmp_path / "m.onnx", mean=[0] * 5, std=[1] * 5)

    def embedded(name, out, source=data):
        values = {
            "scan": {"sources": [source_values(str(source))], "part_size": 4},
            "embed": {"encoder": name},
        }
        job = Job(Run(tmp_path / out), config.settings(values), workers=1)
        job.run.path.mkdir(exist_ok=True)
        for stage in (scan_images, score_images, embed_images):
            stage(job)
        return job.run

    monkeypatch.chdir(tmp_path)
    run = embedded("onnx:m.onnx", "run")
    assert run.settings.embed.encoder == f"onnx:{tmp_path / 'm.onnx'}"  # the run is continued from anywhere
    assert run.embeddings().shape == (9, 4)
    # The model has changed since: its features are not mixed with the old ones.
    write_model(onnx, tmp_path / "m.onnx", mean=[0] * 5, std=[2] * 5, seed=1)
    with pytest.raises(ConfigError, match="holds results of stage 'embed' for other settings"):
        embedded("onnx:m.onnx", "run")
    image_files.write_png(tmp_path / "rgb.png")
    with pytest.raises(ConfigError, match=r"source rgb has 3 bands, but .*m\.onnx takes 5"):
        embedded("onnx:m.onnx", "other", tmp_path / "rgb.png")
