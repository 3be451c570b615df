"""Files to pixels: every format and depth, masks, coordinates."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image as Pillow

from image_files import encoded, only, refusal, source_of, texture, write_png, write_tiff
from rsprune.errors import ConfigError


class TestPlainFormats:
    @pytest.mark.parametrize("kind", ["png", "webp"])
    @pytest.mark.parametrize("bands", [1, 3])
    def test_lossless_formats_give_the_pixels(self, tmp_path, kind, bands):
        pixels = texture(bands=bands)
        (tmp_path / f"a.{kind}").write_bytes(encoded(pixels.squeeze(), kind, lossless=True))
        image = only(tmp_path)
        # WebP has no grey images.
        expected = np.broadcast_to(pixels, (40, 48, 3)) if kind == "webp" else pixels
        np.testing.assert_array_equal(image.pixels, expected)
        assert image.valid is None

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True}])
    @pytest.mark.parametrize("bands", [1, 3])
    def test_jpeg(self, tmp_path, bands, options):
        pixels = texture(bands=bands)
        data = encoded(pixels.squeeze(), "jpeg", quality=98, subsampling=0, **options)
        (tmp_path / "a.jpg").write_bytes(data)
        assert np.abs(only(tmp_path).pixels.astype(int) - pixels).mean() < 1.5

    def test_jpeg_with_more_metadata_than_is_read_first(self, tmp_path):
        data = encoded(texture(), "jpeg")
        comment = b"\xff\xfe\xff\xff" + bytes(65533)
        (tmp_path / "a.jpg").write_bytes(data[:2] + 3 * comment + data[2:])
        assert only(tmp_path).pixels.shape == (40, 48, 3)

    @pytest.mark.parametrize("kind", ["png", "webp"])
    def test_alpha_is_a_mask(self, tmp_path, kind):
        pixels = texture(bands=4)
        pixels[..., 3] = np.where(pixels[..., 0] > 100, 1, 0)
        (tmp_path / f"a.{kind}").write_bytes(encoded(pixels, kind, lossless=True, exact=True))
        image = only(tmp_path)
        np.testing.assert_array_equal(image.pixels, pixels[..., :3])
        np.testing.assert_array_equal(image.valid, pixels[..., 0] > 100)

    def test_opaque_alpha_is_no_mask(self, tmp_path):
        pixels = texture(bands=4)
        pixels[..., 3] = 255
        write_png(tmp_path / "a.png", pixels)
        assert only(tmp_path).valid is None

    def test_grey_alpha(self, tmp_path):
        pixels = texture(bands=2)
        pixels[:5, :, 1] = 0
        write_png(tmp_path / "a.png", pixels)
        image = only(tmp_path)
        np.testing.assert_array_equal(image.pixels, pixels[..., :1])
        np.testing.assert_array_equal(image.valid, pixels[..., 1] > 0)

    @pytest.mark.parametrize("transparent", [None, 1])
    def test_palette(self, tmp_path, transparent):
        index = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
        picture = Pillow.fromarray(index, "L").convert("P")
        picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        picture.save(tmp_path / "a.png", **({} if transparent is None else {"transparency": transparent}))
        image = only(tmp_path)
        np.testing.assert_array_equal(
            image.pixels, np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])[index]
        )
        if transparent is None:
            assert image.valid is None
        else:
            np.testing.assert_array_equal(image.valid, index != 1)

    def test_bilevel_png(self, tmp_path):
        Pillow.fromarray(texture()[..., 0] > 128).save(tmp_path / "a.png")
        assert set(np.unique(only(tmp_path).pixels)) == {0, 255}

    def test_16_bit_grey_png(self, tmp_path):
        pixels = texture(bands=1).astype(np.uint16) * 257 - 3 * (texture(bands=1) > 9)
        Pillow.fromarray(pixels[..., 0].astype(np.uint16)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(only(tmp_path).pixels, pixels)

    @pytest.mark.parametrize("alpha", [False, True])
    def test_16_bit_colour_png_keeps_16_bits(self, tmp_path, alpha):
        pixels = texture(bands=3 + alpha).astype(np.uint16) * 200 + 7
        if alpha:
            pixels[..., 3] = np.where(pixels[..., 3] > 9000, 65535, 0)
        write_tiff(tmp_path / "a.png", pixels, driver="PNG")
        (tmp_path / "a.png.aux.xml").unlink(missing_ok=True)
        image = only(tmp_path)
        np.testing.assert_array_equal(image.pixels, pixels[..., :3])
        if alpha:
            np.testing.assert_array_equal(image.valid, pixels[..., 3] > 0)

    def test_content_decides_not_the_extension(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(encoded(texture()))
        np.testing.assert_array_equal(only(tmp_path).pixels, texture())

    def test_bands_are_selected_in_order(self, tmp_path):
        write_png(tmp_path / "a.png")
        image = only(tmp_path, bands=(3, 1))
        np.testing.assert_array_equal(image.pixels, texture()[..., [2, 0]])
        assert refusal(tmp_path, bands=(4, 1)) == "has 3 bands, but band 4 was asked for"

    def test_nodata_is_where_every_band_has_it(self, tmp_path):
        pixels = np.maximum(texture(), 1)
        pixels[:5, :, 0] = 0
        pixels[:3] = 0
        write_png(tmp_path / "a.png", pixels)
        expected = np.ones((40, 48), bool)
        expected[:3] = False
        np.testing.assert_array_equal(only(tmp_path, nodata=0).valid, expected)
        np.testing.assert_array_equal(only(tmp_path, nodata=0, bands=(1,)).valid[:6, 0], [False] * 5 + [True])
        assert only(tmp_path, nodata=-9999).valid is None


class TestTiff:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
    @pytest.mark.parametrize("bands", [1, 3, 4, 13])
    def test_depths_and_band_counts(self, tmp_path, dtype, bands):
        pixels = texture(bands=bands).astype(dtype)
        if dtype != "uint8":
            pixels = pixels * np.dtype(dtype).type(100) - np.dtype(dtype).type(0 if dtype == "uint16" else 50)
        write_tiff(tmp_path / "a.tif", pixels, photometric="minisblack")
        image = only(tmp_path)
        np.testing.assert_array_equal(image.pixels, pixels)
        assert image.pixels.dtype == (dtype if dtype in ("uint8", "uint16") else "float32")
        assert image.valid is None

    @pytest.mark.parametrize(
        "options", [{"BIGTIFF": "YES"}, {"driver": "COG"}, {"tiled": True, "compress": "lzw"}]
    )
    def test_layouts(self, tmp_path, options):
        pixels = texture(100, 90).astype(np.uint16)
        write_tiff(tmp_path / "a.tif", pixels, **options)
        np.testing.assert_array_equal(only(tmp_path).pixels, pixels)

    def test_jpeg_2000(self, tmp_path):
        pixels = texture(64, 64).astype(np.uint16) * 10
        write_tiff(tmp_path / "a.jp2", pixels, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
        (tmp_path / "a.jp2.aux.xml").unlink(missing_ok=True)
        np.testing.assert_array_equal(only(tmp_path).pixels, pixels)

    def test_alpha_is_a_mask_unless_it_is_asked_for(self, tmp_path):
        from rasterio.enums import ColorInterp as C

        pixels = texture(bands=4)
        write_tiff(tmp_path / "a.tif", pixels, colorinterp=(C.red, C.green, C.blue, C.alpha))
        image = only(tmp_path)
        np.testing.assert_array_equal(image.pixels, pixels[..., :3])
        np.testing.assert_array_equal(image.valid, pixels[..., 3] > 0)
        near_infrared = only(tmp_path, bands=(4, 3, 2))
        np.testing.assert_array_equal(near_infrared.pixels, pixels[..., [3, 2, 1]])
        assert near_infrared.valid is None

    def test_mask_in_the_file(self, tmp_path):
        import rasterio

        mask = texture(bands=1)[..., 0] > 99
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_tiff(tmp_path / "a.tif", texture(), mask=mask)
        np.testing.assert_array_equal(only(tmp_path).valid, mask)

    def test_mask_beside_the_file(self, tmp_path):
        import rasterio

        mask = texture(bands=1)[..., 0] > 99
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
            write_tiff(tmp_path / "a.tif", texture(), mask=mask)
        assert (tmp_path / "a.tif.msk").exists()
        np.testing.assert_array_equal(only(tmp_path).valid, mask)

    @pytest.mark.parametrize(
        ("dtype", "nodata"),
        [
            ("uint16", 0),
            ("int16", -9999),
            ("float32", -3.4028234663852886e38),
            ("float32", 0.1),
            ("float64", np.nan),
        ],
    )
    def test_nodata_of_the_file(self, tmp_path, dtype, nodata):
        pixels = texture().astype(dtype) + np.dtype(dtype).type(1)
        pixels[:4] = nodata
        pixels[:9, :, 1] = 7
        pixels[:2] = nodata
        write_tiff(tmp_path / "a.tif", pixels, nodata=nodata)
        image = only(tmp_path)
        # One missing band makes a pixel invalid where it is NaN, which has no value to count.
        expected = np.arange(40) >= (4 if np.isnan(nodata) else 2)
        np.testing.assert_array_equal(image.valid, np.broadcast_to(expected[:, None], (40, 48)))
        assert np.isfinite(image.pixels).all()

    def test_declared_nodata_comes_on_top(self, tmp_path):
        pixels = np.full((4, 8, 1), 9, np.uint16)
        pixels[0], pixels[1] = 0, 5
        write_tiff(tmp_path / "a.tif", pixels, nodata=0)
        assert only(tmp_path, nodata=5).valid.any(axis=1).tolist() == [False, False, True, True]

    def test_values_without_meaning_are_invalid(self, tmp_path):
        pixels = texture().astype(np.float64)
        pixels[0, 0, 1], pixels[0, 1, 0], pixels[0, 2, 2] = np.nan, np.inf, 1e300
        write_tiff(tmp_path / "a.tif", pixels)
        image = only(tmp_path)
        assert np.argwhere(~image.valid).tolist() == [[0, 0], [0, 1], [0, 2]]
        assert np.isfinite(image.pixels).all()

    def test_all_nodata(self, tmp_path):
        write_tiff(tmp_path / "a.tif", np.zeros((40, 48, 3), np.uint16), nodata=0)
        assert not only(tmp_path).valid.any()

    def test_complex_pixels_are_refused(self, tmp_path):
        write_tiff(tmp_path / "a.tif", np.zeros((8, 8, 1), np.complex64))
        assert "complex64" in refusal(tmp_path)

    def test_coordinates(self, tmp_path):
        from rasterio import Affine

        utm = {"crs": "EPSG:32618", "transform": Affine(10, 0, 435_730, 0, -10, 4_179_460)}
        write_tiff(tmp_path / "a.tif", texture(128, 128), **utm)
        import rasterio

        with rasterio.open(tmp_path / "a.tif", "r+") as file:
            file.update_tags(TIFFTAG_DATETIME="2019:07:31 15:58:01")
        source = source_of(tmp_path, tile=64)
        headers = {item.window[:2]: source.header(item) for item in source.items()}
        first, right, below = headers[0, 0], headers[64, 0], headers[0, 64]
        assert first.crs == "EPSG:32618"
        assert first.gsd == 10
        assert first.timestamp == "2019-07-31T15:58:01"
        # A degree of latitude is 110.99 km here, one of longitude 111.32 km times cos 37.76 degrees.
        assert (first.centre_lat - below.centre_lat) * 110_990 == pytest.approx(640, rel=0.01)
        assert (right.centre_lon - first.centre_lon) * 111_320 * 0.7906 == pytest.approx(640, rel=0.01)
        assert (first.centre_lat, first.centre_lon) == pytest.approx((37.7573, -75.7260), abs=1e-3)

    def test_degrees_become_metres(self, tmp_path):
        from rasterio import Affine

        write_tiff(
            tmp_path / "a.tif",
            texture(64, 64),
            crs="EPSG:4326",
            transform=Affine(0.01, 0, 10, 0, -0.01, 60.32),
        )
        source = source_of(tmp_path)
        header = source.header(next(source.items()))
        assert (header.centre_lat, header.centre_lon) == pytest.approx((60.0, 10.32))
        assert header.gsd == pytest.approx(1113.2 * np.sqrt(0.5))

    def test_a_scene_without_place_is_read_in_silence(self, tmp_path, capfd):
        write_tiff(tmp_path / "a.tif", texture())
        source = source_of(tmp_path)  # pytest turns warnings into errors
        header = source.header(next(source.items()))
        assert (header.crs, header.gsd, header.centre_lat, header.timestamp) == (None, None, None, None)
        assert capfd.readouterr() == ("", "")


class TestWithoutRasterio:
    @pytest.fixture(autouse=True)
    def _no_rasterio(self, tmp_path, monkeypatch):
        write_tiff(tmp_path / "colour.png", texture().astype(np.uint16), driver="PNG")
        write_tiff(tmp_path / "a.tif", texture())
        (tmp_path / "colour.png.aux.xml").unlink(missing_ok=True)
        for name in [n for n in sys.modules if n.partition(".")[0] == "rasterio"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rasterio", None)

    def test_tiff_stops_with_the_command_to_run(self, tmp_path):
        source = source_of(tmp_path / "a.tif")
        with pytest.raises(ConfigError, match=r"pip install 'rsprune\[geo\]'"):
            source.header(next(source.items()))
        with pytest.raises(ConfigError, match=r"rsprune\[geo\]"):
            list(source_of(tmp_path / "a.tif", tile=16).items())

    def test_16_bit_colour_png_is_not_cut_to_8_bits(self, tmp_path):
        assert "rsprune[geo]" in refusal(tmp_path / "colour.png")
