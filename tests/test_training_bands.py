"""Images of many bands and of 16 bits: trained on, drawn, written, and read again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError
from rsprune.sources import open_source
from rsprune.training.config import SampleConfig
from rsprune.training.pictures import Writer
from rsprune.training.publish import viewable
from rsprune.training.sample import draw
from rsprune.training.task import Generation
from rsprune.training.train import train
from training_case import settings, tiles

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def scenes(folder, *, bands: int, n: int = 6, side: int = 16):
    """Writes `n` 16-bit TIFF files of noise in 1000..3000."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(1000, 3000, (bands, side, side), np.uint16)
        profile = {"driver": "GTiff", "width": side, "height": side, "count": bands, "dtype": "uint16"}
        with rasterio.open(folder / f"{i}.tif", "w", **profile) as file:
            file.write(pixels)
    return folder


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bands")
    train(settings(scenes(folder / "data", bands=13), pixel_unshuffle=2), folder / "m", device="cpu")
    return folder / "m"


def read(folder) -> np.ndarray:
    source = open_source(SourceConfig(path=str(folder)))
    return np.stack([source.read(item).pixels for item in source.items()])


def test_thirteen_bands_of_sixteen_bits(thirteen, tmp_path, rsprune):
    assert json.loads((thirteen / "trainer_state.json").read_text())["bits"] == 16
    common = [thirteen, "--n", "3", "--steps", "2", "--device", "cpu"]
    for format in ("tif", "npy"):
        code, _, err = rsprune("sample", *common, "-o", tmp_path / format, "--format", format)
        assert code == 0, err
    array = np.load(tmp_path / "npy" / "samples.npy")
    assert (array.shape, array.dtype) == ((3, 16, 16, 13), np.uint16)
    assert len(np.unique(array)) > 1000  # of 9,984 values: more than 8 bits can tell apart
    np.testing.assert_array_equal(read(tmp_path / "tif"), array)
    code, _, err = rsprune("sample", *common, "-o", tmp_path / "png")
    assert (code, "PNG holds 1 or 3 bands and the model draws 13: use --format tif or npy" in err) == (
        2,
        True,
    )
    code, _, err = rsprune("sample", *common, "-o", tmp_path / "eight", "--format", "npy", "--bits", "8")
    eight = np.load(tmp_path / "eight" / "samples.npy")
    assert eight.dtype == np.uint8
    assert np.abs(eight.astype(float) * 257 - array).max() <= 129


def test_the_card_says_what_the_values_mean(thirteen):
    card = (thirteen / "README.md").read_text()
    assert "16 x 16 pixels, 13 bands and 16 bits" in card
    assert "| range of values |" in card


@pytest.mark.parametrize("bands", [1, 3])
def test_png_of_sixteen_bits(tmp_path, bands):
    image = np.arange(8 * 9 * bands, dtype=np.uint16).reshape(8, 9, bands) * 300
    Writer("png", bands, 16).write(tmp_path / "0.png", image)
    np.testing.assert_array_equal(read(tmp_path)[0], image)


def test_colours_of_sixteen_bits_need_rasterio(monkeypatch):
    monkeypatch.setattr("rsprune.training.pictures.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"16-bit png of 3 bands needs rasterio: run pip install 'rsprune\[geo\]'"
    ):
        Writer("png", 3, 16)
    Writer("png", 3, 8)
    Writer("png", 1, 16)


@pytest.mark.parametrize("bits", [4, 12, 32])
def test_other_numbers_of_bits(bits):
    from rsprune.training.config import checked

    with pytest.raises(ConfigError, match=f"--bits is {bits}"):
        checked(SampleConfig, {"bits": bits})


# What a network is given beside the noise ------------------------------------------------------------------


class Grey(Generation):
    """Colours for a grey image: the smallest task with an image that is given."""

    given_bands = 1

    def __init__(self):
        self.seen: list = []

    def identity(self):
        return {"task": "grey"}

    def start(self, model):
        torch.nn.init.zeros_(model.conv_in.weight)

    def given(self, batch):
        folded = batch.image.unflatten(1, (3, 4))
        self.seen.append((batch.image, folded.mean(1)))
        return self.seen[-1][1]

    def validate(self, pipe, output, step, settings):
        grey = torch.zeros(2, 1, 16, 16)
        images = pipe(given=grey, num_inference_steps=2, output_type="np").images
        with pytest.raises(ValueError, match="given must have 1 channels"):
            pipe(num_inference_steps=2)
        return {"mean": float(images.mean())}


def test_a_task_gives_the_network_an_image_and_judges_it(tmp_path):
    data = tiles(tmp_path / "data", 8)
    task = Grey()
    wish = settings(data, pixel_unshuffle=2, max_train_steps=2, validation_steps=1, validation_images=2)
    train(wish, tmp_path / "m", task=task, device="cpu")
    network = json.loads((tmp_path / "m" / "unet" / "config.json").read_text())
    assert (network["in_channels"], network["out_channels"]) == (16, 12)
    image, grey = task.seen[0]
    assert image.shape == (4, 12, 8, 8)
    assert grey.shape == (4, 4, 8, 8)
    metrics = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2]
    assert all(0 <= m["mean"] <= 1 for m in metrics)
    with pytest.raises(ConfigError, match="task was 'grey' and is None"):
        train(wish, tmp_path / "m", device="cpu")


def test_samples_of_sixteen_bits_are_those_of_eight():
    pipe = SimpleNamespace(config=SimpleNamespace(labels=[]))
    values = np.linspace(0, 1, 300).reshape(1, 10, 10, 3)
    draws = lambda **_: SimpleNamespace(images=values)  # noqa: E731
    network = SimpleNamespace(config=SimpleNamespace(in_channels=3, out_channels=3))
    own = {"config": pipe.config, "network": network, "__call__": lambda self, **k: draws(**k)}
    pipe = type("Pipe", (), own)()
    (wide,) = draw(pipe, SampleConfig(n=1, bits=16))
    (narrow,) = draw(pipe, SampleConfig(n=1))
    np.testing.assert_array_equal(wide, np.round(values * 65535).astype(np.uint16))
    np.testing.assert_array_equal(narrow, np.round(values * 255).astype(np.uint8))


def test_a_grid_of_many_bands_shows_the_first_three(tmp_path):
    from rsprune.training import publish

    publish.write_grid(tmp_path / "g.png", np.full((2, 4, 4, 13), 51200, np.uint16))
    shown = np.asarray(Image.open(tmp_path / "g.png"))
    assert shown.shape == (6, 12, 3)
    assert shown[2, 2].tolist() == [200, 200, 200]


def test_pictures_show_the_first_three_bands_or_grey():
    sixteen = np.arange(4, dtype=np.uint16).reshape(1, 1, 1, 4) << 8
    assert viewable(sixteen).tolist() == [[[[0, 1, 2]]]]
    assert viewable(np.full((1, 1, 1, 2), 7, np.uint8)).tolist() == [[[[7, 7, 7]]]]
