"""Encoders made of other people's networks: transformers, open_clip and timm."""

import importlib.machinery
import importlib.util
import json
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest

import image_files
from rsprune.encoders import encoder_files, load_encoder
from rsprune.encoders.preprocess import Preprocessing
from rsprune.errors import ConfigError


def images(n, shape=(20, 24, 3)):
    return [image_files.texture(*shape, seed=i) for i in range(n)]


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("onnx:model.onnx", "onnxruntime", "onnx"), ("hf:folder", "transformers", "hf"), ("hf:folder", "torch", "hf"),
        ("open_clip:ViT-B-32:file.pt", "open_clip", "open-clip"), ("timm:resnet18", "timm", "timm"),
    ],
)  # fmt: skip
def test_a_missing_package_names_the_extra(monkeypatch, name, module, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == module else object())
    with pytest.raises(ConfigError, match=rf"needs .*: run `pip install 'rsprune\[{extra}\]'`"):
        load_encoder(name)


@pytest.mark.parametrize("name", ["onnx", "onnx:", "hf:", "lite0:x", "rcf:512", "timm", "open_clip"])
def test_a_name_without_its_argument(name):
    with pytest.raises(ConfigError, match=f"no encoder '{name}': give --encoder {name.partition(':')[0]}"):
        load_encoder(name)


def test_nothing_of_others_is_imported_until_it_is_asked_for():
    code = (
        "import sys, rsprune.encoders, rsprune.stages\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'timm', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_preprocessing_by_hand():
    prepare = Preprocessing((1, 2), (0.5, 0.0), (0.5, 2.0))
    image = np.array([[[0, 51], [255, 102]]], np.uint8)
    np.testing.assert_allclose(prepare(image), [[[-1, 1]], [[0.1, 0.2]]], rtol=1e-6)
    with pytest.raises(ValueError, match="must have 2 bands, got 3"):
        prepare(np.zeros((4, 4, 3), np.uint8))
    rgb = Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3)
    full = image_files.texture(4, 4, 13)
    np.testing.assert_allclose(rgb(full), full[:, :, [3, 2, 1]].transpose(2, 0, 1) / 255, rtol=1e-6)
    stripes = np.repeat(np.uint8([[[0], [255]] * 8]), 16, axis=0)
    averaged = Preprocessing((4, 4), (0.0,), (1.0,))(stripes)
    np.testing.assert_allclose(averaged, 0.5, atol=0.15)  # averaged, not picked


# transformers

CONFIG = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2,
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "do_normalize": True, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_resize": True,
}  # fmt: skip


@pytest.fixture
def vit(tmp_path):
    """Saves a tiny network; gives the folder and the network as transformers would be called by hand."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def save(pooling=True, name="vit", **processor):
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = transformers.ViTModel(
                transformers.ViTConfig(**CONFIG), add_pooling_layer=pooling
            ).eval()
        network.save_pretrained(tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | processor))
        return tmp_path / name, network

    return save


def by_hand(network, pool):
    import torch

    mean, std = (torch.tensor(PROCESSOR[k])[:, None, None] for k in ("image_mean", "image_std"))
    x = torch.stack([(torch.from_numpy(i).permute(2, 0, 1) / 255 - mean) / std for i in pool])
    with torch.inference_mode():
        return network(pixel_values=x)


def test_hf_pooled_output(vit):
    folder, network = vit()
    encoder = load_encoder(f"hf:{folder}", "cpu")
    assert (encoder.name, encoder.dim, encoder.device) == (f"hf:{folder}", 8, "cpu")
    pool = images(11, (16, 16, 3))
    x = encoder(pool)
    np.testing.assert_allclose(x, by_hand(network, pool).pooler_output.numpy(), atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([encoder(pool[:3]), encoder(pool[3:])]), x)
    assert load_encoder(f"hf:{folder}", "cpu").weight_hash == encoder.weight_hash
    assert {f.name for f in encoder_files(f"hf:{folder}")} >= {"model.safetensors", "config.json"}
    with pytest.raises(ConfigError, match="source b: cannot tell which of 5 bands"):
        encoder.check_bands({"b": 5})


def test_hf_without_weights_for_pooling_averages_tokens(vit):
    # transformers would fill the pooling layer with new random numbers every time.
    folder, network = vit(pooling=False)
    pool = images(3, (16, 16, 3))
    expected = by_hand(network, pool).last_hidden_state.mean(1).numpy()
    for _ in range(2):
        np.testing.assert_allclose(load_encoder(f"hf:{folder}", "cpu")(pool), expected, atol=1e-5)


def test_hf_prepares_images_as_the_model_says(vit):
    folder, _ = vit(
        do_center_crop=True, crop_size={"height": 16, "width": 16}, size={"shortest_edge": 20}, resample=3
    )
    assert load_encoder(f"hf:{folder}", "cpu").preprocessing == Preprocessing(
        (16, 16), pytest.approx((0.5, 0.4, 0.3)), pytest.approx((0.5, 0.6, 0.7)), 3
    )


def test_hf_image_half_of_a_text_model(tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = {**{k: CONFIG[k] for k in list(CONFIG)[:4]}, "vocab_size": 12, "max_position_embeddings": 6,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
    network = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=CONFIG, projection_dim=6)
    )
    network.eval().save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    x = load_encoder(f"hf:{tmp_path / 'clip'}", "cpu")(images(3, (16, 16, 3)))
    assert x.shape == (3, 6)
    assert len(np.unique(x, axis=0)) == 3


def test_hf_what_it_refuses(vit, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder, network = vit()
    weights = load_file(folder / "model.safetensors")
    lacking = sorted(k for k in weights if "pooler" not in k)[0]
    save_file(
        {k: v for k, v in weights.items() if k != lacking}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ConfigError, match="lacks 1 weights, for example") as caught:
        load_encoder(f"hf:{folder}", "cpu")
    assert "\n" not in str(caught.value)

    folder, network = vit(name="pickled")
    (folder / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has to have its weights as \.safetensors"):
        load_encoder(f"hf:{folder}", "cpu")

    folder, _ = vit(name="unprepared")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"cannot tell how hf:.* wants its images"):
        load_encoder(f"hf:{folder}", "cpu")

    # A model that brings code of its own.
    folder, _ = vit(name="code")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="cannot load hf:"):
        load_encoder(f"hf:{folder}", "cpu")
    assert not (tmp_path / "ran").exists()


# open_clip and timm, which cannot be tested themselves: they depend on a torchvision that fits the torch


def stand_in(monkeypatch, name, **members):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


def tiny_network(outputs=5):
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, outputs, 4, 4), torch.nn.ReLU())


@pytest.fixture
def timm(monkeypatch):
    pytest.importorskip("torch")
    calls = []

    def create_model(name, **options):
        calls.append((name, options))
        if name == "nonsense":
            raise RuntimeError("Unknown model (nonsense)\nmore")
        return tiny_network()

    stated = {"input_size": (3, 8, 12), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    data = types.SimpleNamespace(resolve_model_data_config=lambda network: stated)
    stand_in(monkeypatch, "timm", create_model=create_model, data=data)
    return calls


def test_timm(timm, tmp_path):
    import torch
    from safetensors.torch import save_file

    encoder = load_encoder("timm:resnet18.a1_in1k", "cpu")
    assert timm == [("resnet18.a1_in1k", {"pretrained": True, "num_classes": 0})]
    assert encoder.preprocessing == Preprocessing((8, 12), (0.5,) * 3, (0.25,) * 3, 3)
    pool = images(9, (8, 12, 3))
    x = torch.from_numpy(np.stack(pool)).permute(0, 3, 1, 2) / 255
    expected = tiny_network()((x - 0.5) / 0.25).mean((2, 3)).detach().numpy()
    np.testing.assert_allclose(encoder(pool), expected, atol=1e-5)

    weights = {k: 2 * v for k, v in tiny_network().state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        own = load_encoder(f"timm:resnet18:{tmp_path / file}", "cpu")
        assert timm[-1] == ("resnet18", {"pretrained": False, "num_classes": 0})
        np.testing.assert_allclose(own(pool), 2 * expected, atol=1e-5)
        assert own.weight_hash != encoder.weight_hash
        assert encoder_files(own.name) == [tmp_path / file]
    load_encoder("timm:hf-hub:somebody/model", "cpu")
    assert timm[-1] == ("hf-hub:somebody/model", {"pretrained": True, "num_classes": 0})


def test_timm_refuses(timm, tmp_path):
    import torch

    with pytest.raises(ConfigError, match=r"cannot load timm:nonsense: Unknown model \(nonsense\)$"):
        load_encoder("timm:nonsense", "cpu")
    with pytest.raises(ConfigError, match=r"there is no file /none/w\.pth"):
        load_encoder("timm:resnet18:/none/w.pth", "cpu")
    torch.save({"0.weight": tiny_network()[0].weight.detach()}, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match=r"lacks 1 weights of resnet18, for example 0\.bias"):
        load_encoder(f"timm:resnet18:{tmp_path}/part.pth", "cpu")
    torch.save(tiny_network(7).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ConfigError, match="does not fit resnet18"):
        load_encoder(f"timm:resnet18:{tmp_path}/wide.pth", "cpu")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="is not a file of weights"):
        load_encoder(f"timm:resnet18:{tmp_path}/list.pth", "cpu")


class Bomb:
    def __reduce__(self):
        return open, ("ran", "w")


def test_no_code_of_a_checkpoint_is_run(timm, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb", "bare"):
        with pytest.raises(ConfigError, match=f"{name}.pth"):
            load_encoder(f"timm:resnet18:{tmp_path}/{name}.pth", "cpu")
    assert not (tmp_path / "ran").exists()


def test_open_clip(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    calls = []

    class Clip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = tiny_network()
            stated = {"size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear"}
            self.visual.preprocess_cfg = stated

        def encode_image(self, x):
            return self.visual(x).mean((2, 3))

    def create_model(arch, **options):
        calls.append((arch, options))
        if options["pretrained"] == "none":
            raise RuntimeError("no such tag")
        return Clip()

    stand_in(monkeypatch, "open_clip", create_model=create_model)
    safe = {"weights_only": True, "require_pretrained": True}
    encoder = load_encoder("open_clip:ViT-B-32:laion2b", "cpu")
    assert calls == [("ViT-B-32", {"pretrained": "laion2b", **safe})]
    assert (encoder.dim, encoder.preprocessing.size, encoder.preprocessing.resample) == (5, (8, 8), 2)
    assert encoder(images(3)).shape == (3, 5)
    (tmp_path / "remote.pt").touch()
    load_encoder(f"open_clip:ViT-B-32:{tmp_path}/remote.pt", "cpu")
    assert calls[-1] == ("ViT-B-32", {"pretrained": f"{tmp_path}/remote.pt", **safe})
    load_encoder("open_clip:local-dir:/some/where", "cpu")
    assert calls[-1] == ("local-dir:/some/where", {"pretrained": None, **safe})
    for name, message in (
        ("ViT-B-32", r"names no weights and would be random: give open_clip:ViT-B-32:TAG"),
        ("ViT-B-32:none", "cannot load open_clip:ViT-B-32:none: no such tag"),
        ("ViT-B-32:/none.pt", "there is no file /none.pt"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_encoder(f"open_clip:{name}", "cpu")
