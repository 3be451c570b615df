"""Ids, windows and folders: which images a collection has, in which order."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import faults
from image_files import encoded, only, source_of, texture, write_png, write_tiff
from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import harmonise, ids, open_source
from rsprune.sources.base import Image, Window
from shard_files import png, write_shard


class TestIds:
    @given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
    def test_every_file_name_survives(self, name):
        path = os.fsdecode(name)
        assert ids.decode(ids.encode(path)) == path

    @given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
    def test_an_id_is_one_line_of_utf8_without_a_window(self, name):
        text = ids.encode(os.fsdecode(name))
        assert len(text.encode("utf-8").decode("utf-8").splitlines()) == 1
        assert "#" not in text

    @given(st.text(), st.text())
    def test_paths_join_as_their_ids_do(self, a, b):
        a, b = (s.encode("utf-8", "ignore").decode() for s in (a, b))
        assert ids.encode(f"{a}/{b}") == f"{ids.encode(a)}/{ids.encode(b)}"

    def test_what_is_encoded(self):
        assert ids.encode("a b/ü.tif") == "a b/ü.tif"
        assert ids.encode("50%#\n\udcff\u2028") == "50%25%23%0A%FF%E2%80%A8"
        assert ids.window_id("a.tif", Window(1, 2, 3, 4)) == "a.tif#1,2,3,4"


class TestWindows:
    @pytest.mark.parametrize("kind", ["png", "tif"])
    def test_only_whole_tiles(self, tmp_path, kind):
        pixels = texture(40, 56)
        write = write_tiff if kind == "tif" else write_png
        write(tmp_path / f"a.{kind}", pixels)
        source = source_of(tmp_path, tile=16)
        items = list(source.items())
        assert sorted(item.window for item in items) == [(x, y, 16, 16) for x in (0, 16, 32) for y in (0, 16)]
        for item in items:
            x, y, w, h = item.window
            assert item.id == f"a.{kind}#{x},{y},{w},{h}"
            np.testing.assert_array_equal(source.read(item).pixels, pixels[y : y + h, x : x + w])
            assert (source.header(item).width, source.header(item).height) == (16, 16)

    def test_stride(self, tmp_path):
        write_png(tmp_path / "a.png", texture(16, 33))
        items = source_of(tmp_path, tile=16, stride=8).items()
        assert sorted(item.window.x for item in items) == [0, 8, 16]

    @pytest.mark.parametrize(("size", "windows"), [((16, 16), 1), ((9, 5), 1), ((9, 40), 2)])
    def test_what_is_smaller_than_a_tile_is_one_window(self, tmp_path, size, windows):
        write_png(tmp_path / "a.png", texture(*size))
        source = source_of(tmp_path, tile=16)
        items = list(source.items())
        assert len(items) == windows
        assert all(source.read(i).pixels.shape == (min(16, size[0]), min(16, size[1]), 3) for i in items)

    def test_ids_are_sorted_even_where_one_name_starts_with_another(self, tmp_path):
        for name in ("a.png", "a.png .png", "a.png-.png", "b.png", "a/z.png", "a.png!/q.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write_png(tmp_path / name)
        faults.empty(tmp_path / "a.png+.png")
        for settings in ({}, {"tile": 16}):
            found = [item.id for item in source_of(tmp_path, **settings).items()]
            assert found == sorted(found)
            assert len(found) == len(set(found)) == (7 if not settings else 6 * 6 + 1)

    def test_a_scene_is_decoded_once(self, tmp_path, monkeypatch):
        import simplejpeg

        calls = []
        decode = simplejpeg.decode_jpeg
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(1) or decode(*a, **k))
        (tmp_path / "a.jpg").write_bytes(encoded(texture(), "jpeg"))
        source = source_of(tmp_path, tile=8)
        tiles = [source.read(item) for item in source.items()]
        assert len(tiles) == 30
        assert len(calls) == 1
        assert all(tile.pixels.base is None or tile.pixels.base.size == tile.pixels.size for tile in tiles)

    def test_a_scene_that_changed_is_read_again(self, tmp_path):
        write_png(tmp_path / "a.png", texture(seed=1))
        source = source_of(tmp_path, tile=16)
        item = next(source.items())
        source.read(item)
        write_png(tmp_path / "a.png", texture(10, 10, seed=2))
        with pytest.raises(UnreadableImage, match="has 10 x 10 pixels, too few for the window"):
            source.read(item)

    def test_masks_are_cut_too(self, tmp_path):
        pixels = texture(32, 32, 4)
        pixels[..., 3] = 255
        pixels[:16, :16, 3] = 0
        write_png(tmp_path / "a.png", pixels)
        source = source_of(tmp_path, tile=16)
        valid = {item.window[:2]: source.read(item).valid for item in source.items()}
        assert not valid.pop((0, 0)).any()
        assert set(map(type, valid.values())) == {type(None)}


class TestFolder:
    def test_order_hidden_files_and_nested_folders(self, tmp_path):
        for name in ("b.PNG", "a/c.png", "a.png", ".hidden.png", ".git/x.png", "notes.txt", "z/y/x.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            write_png(tmp_path / name)
        source = source_of(tmp_path)
        assert [item.id for item in source.items()] == ["a.png", "a/c.png", "b.PNG", "z/y/x.png"]
        assert [ids.decode(i.uri) for i in source.items()][1] == str(tmp_path / "a" / "c.png")

    def test_prefix(self, tmp_path):
        write_png(tmp_path / "a.png")
        source = open_source(SourceConfig(path=str(tmp_path), tile=32), prefix="s2#/")
        assert [item.id for item in source.items()] == ["s2%23/a.png#0,0,32,32"]

    def test_a_single_file_of_any_name(self, tmp_path):
        write_png(tmp_path / "picture")
        assert only(tmp_path / "picture").pixels.shape == (40, 48, 3)

    @pytest.mark.parametrize("kind", ["png", "tif"])
    def test_awkward_names(self, tmp_path, kind):
        """Names with spaces, quotes, line breaks and bytes that are not UTF-8 can be listed and read."""
        for name in faults.AWKWARD_NAMES:
            path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
            if kind == "png":
                write_png(path)
            else:
                write_tiff(tmp_path / "a.tif", texture())
                (tmp_path / "a.tif").rename(path)
        source = source_of(tmp_path)
        items = list(source.items())
        assert {os.fsencode(ids.decode(i.id)) for i in items} == set(faults.AWKWARD_NAMES)
        for item in items:
            np.testing.assert_array_equal(source.read(item).pixels, texture())

    @pytest.mark.parametrize("name", ["missing", "missing/a.png", "with\0nul"])
    def test_missing_path(self, tmp_path, name):
        with pytest.raises(ConfigError, match="give a folder or an image file"):
            source_of(f"{tmp_path}/{name}")

    def test_empty_folder(self, tmp_path):
        (tmp_path / "notes.txt").write_text("nothing here")
        with pytest.raises(ConfigError, match="no image below"):
            source_of(tmp_path).items()

    def test_link_loops_are_recorded_and_not_followed(self, tmp_path):
        (tmp_path / "a" / "b").mkdir(parents=True)
        write_png(tmp_path / "a" / "b" / "x.png")
        faults.link_loop(tmp_path)
        (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
        (tmp_path / "ping").symlink_to("pong")
        (tmp_path / "pong").symlink_to("ping")
        source = source_of(tmp_path)
        items = {item.id: item for item in source.items()}
        assert list(items) == ["a/b/up", "a/b/x.png", "loop", "ping", "pong"]
        for name in ("a/b/up", "loop"):
            with pytest.raises(UnreadableImage, match="is a link to a folder that it lies in"):
                source.header(items[name])
        with pytest.raises(UnreadableImage, match="symbolic link"):
            source.header(items["ping"])

    def test_links_to_elsewhere_are_followed_so_far(self, tmp_path):
        data, root = tmp_path / "data", tmp_path / "root"
        for i in range(12):  # two links in each: 4096 paths to the innermost
            (data / str(i)).mkdir(parents=True)
            for name in "ab":
                (data / str(i) / name).symlink_to(data / str(i + 1))
        (data / "12").mkdir()
        root.mkdir()
        write_png(data / "1" / "x.png")
        (root / "link").symlink_to(data / "0")
        (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
        source = source_of(root)
        items = list(source.items())
        assert {"link/a/x.png", "link/b/x.png", "gone.png"} <= {item.id for item in items}
        assert len(items) < 300
        with pytest.raises(UnreadableImage, match="No such file"):
            source.header(items[0])
        too_deep = next(item for item in items if item.id.endswith("/a/a/a/a/a"))
        with pytest.raises(UnreadableImage, match="too many"):
            source.header(too_deep)

    def test_links_to_folders_that_are_not_there_are_recorded(self, tmp_path):
        """As of a disk that is not mounted."""
        (tmp_path / "2019").mkdir()
        write_png(tmp_path / "2019" / "a.png")
        (tmp_path / "2020").symlink_to(tmp_path / "mnt" / "2020")
        source = source_of(tmp_path)
        there, gone = source.items()
        assert (there.id, gone.id) == ("2019/a.png", "2020")
        with pytest.raises(UnreadableImage, match="No such file"):
            source.header(gone)

    def test_of_a_folder_of_shards_what_cannot_be_listed_is_recorded_too(self, tmp_path, monkeypatch):
        for name in ("a", "locked"):
            (tmp_path / name).mkdir()
            write_shard(tmp_path / name / "0.tar", {f"{name}.png": png()})
        (tmp_path / "away").symlink_to(tmp_path / "mnt")
        faults.deny_listing(monkeypatch, tmp_path / "locked")
        found = {item.id: item.why_unusable for item in source_of(tmp_path).items()}
        assert list(found) == ["a", "away", "locked"]
        assert found["a"] is None
        assert "No such file" in found["away"]
        assert found["locked"]

    def test_a_folder_that_cannot_be_listed_is_recorded(self, tmp_path, monkeypatch):
        write_png(tmp_path / "a.png")
        (tmp_path / "locked").mkdir()
        faults.deny_listing(monkeypatch, tmp_path / "locked")
        source = source_of(tmp_path, tile=16)
        locked = next(item for item in source.items() if item.id == "locked")
        with pytest.raises(UnreadableImage, match="cannot be listed: Permission denied"):
            source.header(locked)

    def test_a_root_that_cannot_be_listed(self, tmp_path, monkeypatch):
        faults.deny_listing(monkeypatch, tmp_path)
        with pytest.raises(ConfigError, match="Permission denied"):
            source_of(tmp_path).items()


class TestHarmonise:
    def test_one_band_is_repeated(self):
        image = Image(texture(bands=1), np.ones((40, 48), bool))
        out = harmonise(image, 3)
        np.testing.assert_array_equal(out.pixels, np.repeat(image.pixels, 3, axis=-1))
        assert out.valid is image.valid
        assert harmonise(image, 1) is image

    @pytest.mark.parametrize(("has", "wanted"), [(13, 3), (3, 1), (4, 3)])
    def test_other_counts_need_a_source_of_their_own(self, has, wanted):
        with pytest.raises(
            UnreadableImage, match=f"has {has} bands where the source has {wanted}; put it into"
        ):
            harmonise(Image(texture(bands=has)), wanted)
