"""What is wrong with the wrong files, said instead of decoded."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image as Pillow

import faults
from image_files import encoded, only, refusal, source_of, texture, write_png, write_tiff
from rsprune.errors import UnreadableImage
from rsprune.sources.codecs import MAX_PIXELS


class TestBrokenFiles:
    def test_empty(self, tmp_path):
        faults.empty(tmp_path / "a.jpg")
        assert refusal(tmp_path) == "is empty (0 bytes)"

    def test_not_an_image(self, tmp_path):
        faults.not_an_image(tmp_path / "a.tif")
        assert refusal(tmp_path) == "is not a JPEG, PNG, WebP, TIFF or JPEG 2000 file"

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.png")
        assert refusal(tmp_path) == "is not a regular file"

    def test_unreadable_scene_is_one_item(self, tmp_path):
        faults.truncated(tmp_path / "a.png", "png", keep=0.005)
        source = source_of(tmp_path, tile=16)
        (item,) = source.items()
        assert (item.id, item.window) == ("a.png", None)

    @pytest.mark.parametrize("bomb", [faults.png_bomb, faults.jpeg_bomb, faults.webp_bomb, faults.tiff_bomb])
    def test_decompression_bombs_are_not_decoded(self, tmp_path, bomb):
        bomb(tmp_path / "a.png")
        assert f"claims 60000 x 60000 = 3600000000 pixels, more than the {MAX_PIXELS}" in refusal(tmp_path)

    def test_pillows_own_limit_does_not_count(self, tmp_path, monkeypatch):
        write_png(tmp_path / "a.png")
        monkeypatch.setattr(
            Pillow, "MAX_IMAGE_PIXELS", 10
        )  # it warns above this, and raises above twice this
        assert only(tmp_path).pixels.shape == (40, 48, 3)

    def test_cmyk_is_refused(self, tmp_path):
        Pillow.fromarray(texture()).convert("CMYK").save(tmp_path / "a.jpg")
        assert "convert it to RGB" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("jpeg", {}),
            ("jpeg", {"progressive": True}),
            ("png", {}),
            ("webp", {}),
            ("webp", {"lossless": True}),
        ],
    )
    def test_a_truncated_file_never_passes(self, tmp_path, kind, options):
        """Cut anywhere, a file gives its pixels (only its end mark was lost) or is refused."""
        path = tmp_path / "a.jpg"
        data = encoded(texture(24, 24), kind, **options)
        path.write_bytes(data)
        source = source_of(tmp_path)
        (item,) = source.items()
        whole = source.read(item).pixels
        for length in range(1, len(data), 7):
            path.write_bytes(data[:length])
            try:
                pixels = source.read(item).pixels
            except UnreadableImage:
                continue
            assert length > len(data) - 30
            np.testing.assert_array_equal(pixels, whole)
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(UnreadableImage):
            source.read(item)

    @pytest.mark.parametrize(
        "options",
        [{}, {"compress": "deflate"}, {"driver": "COG"}, {"driver": "JP2OpenJPEG"}, {"driver": "PNG"}],
        ids=lambda o: "-".join(o.values()) or "strips",
    )
    def test_a_truncated_raster_never_passes(self, tmp_path, options, capfd):
        pixels = texture(64, 64).astype(np.uint16) * 99
        write_tiff(tmp_path / "whole", pixels, **options)
        data = (tmp_path / "whole").read_bytes()
        path = tmp_path / "a.tif"
        path.write_bytes(data)
        source = source_of(path)
        (item,) = source.items()
        whole = source.read(item).pixels
        refused = 0
        for length in range(8, len(data), len(data) // 40):
            path.write_bytes(data[:length])
            try:
                np.testing.assert_array_equal(source.read(item).pixels, whole)
            except UnreadableImage:
                refused += 1
        assert refused >= 39
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
    def test_damaged_bytes_never_raise_anything_else(self, tmp_path, kind):
        rng = np.random.default_rng(0)
        path = tmp_path / "a.png"
        data = encoded(texture(24, 24), kind)
        for _ in range(60):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            source = source_of(tmp_path)
            for item in source.items():
                with suppress(UnreadableImage):
                    assert source.read(item).pixels.ndim == 3
