"""WebDataset shards: keys, what belongs to an image, and shards that are broken or lie."""

from __future__ import annotations

import os
import sqlite3
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from image_files import encoded, source_of, texture, write_tiff
from rsprune.errors import ConfigError, NoSpace, UnreadableImage
from rsprune.sources import open_source
from rsprune.sources.base import Item
from rsprune.sources.ordered import in_order
from shard_files import add, png, special, write_shard


def items(path, **settings) -> dict[str, Item]:
    source = source_of(path, **settings)
    found = list(source.items())
    assert [i.id for i in found] == sorted(i.id for i in found)
    assert len({i.id for i in found}) == len(found)
    return {i.id: i for i in found}


def refusals(path) -> dict[str, str]:
    """Why items cannot be read, by id; None for those that can."""
    source, said = source_of(path), {}
    for item in source.items():
        try:
            source.header(item)
            source.read(item)
            said[item.id] = None
        except UnreadableImage as error:
            said[item.id] = str(error)
    return said


def test_a_shard_that_was_rewritten_since_it_was_listed(tmp_path):
    """With members as large in another order every place still has an image, of another name."""
    members = {f"{i}.png": encoded(texture(24, 24, seed=i), "png", compress_level=0) for i in range(3)}
    path = write_shard(tmp_path / "s.tar", members)
    found, source = items(path), source_of(path)
    write_shard(path, reversed(members.items()))
    for read in (source.header, source.read, source.originals):
        with pytest.raises(UnreadableImage, match="was changed since it was listed"):
            read(found["0"])
    np.testing.assert_array_equal(source.read(items(path)["0"]).pixels, texture(24, 24, seed=0))


def test_a_copy_with_the_time_in_whole_seconds_is_the_same_shard(tmp_path):
    path = write_shard(tmp_path / "s.tar", {"a.png": png(1)})
    found, source = items(path), source_of(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns // 10**9 * 10**9))
    np.testing.assert_array_equal(source.read(found["a"]).pixels, texture(24, 24, seed=1))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    with pytest.raises(UnreadableImage, match="or copy files with their times"):
        source.read(found["a"])


class TestKeys:
    def test_order_pixels_and_sidecars(self, tmp_path):
        a, b, c = png(1), encoded(texture(seed=2), "jpeg"), encoded(texture(seed=3), "webp")
        write_shard(
            tmp_path / "0.tar",
            {"z.png": a, "z.json": b"{}", "z.cls": b"7", "dir/y.txt": b"sea", "dir/y.jpeg": b},
        )
        write_shard(tmp_path / "1.tar", {"./m.webp": c, "./m.mask.png": png(9), "notes.txt": b"no image"})
        source = source_of(tmp_path)
        found = items(tmp_path)
        assert list(found) == ["dir/y", "m", "z"]
        assert source.originals(found["z"]) == {"png": a, "json": b"{}", "cls": b"7"}
        assert list(source.originals(found["dir/y"])) == ["jpeg", "txt"]
        assert source.originals(found["m"])["mask.png"] == png(9)
        assert source.header(found["z"]).bytes == len(a)
        np.testing.assert_array_equal(source.read(found["z"]).pixels, texture(24, 24, seed=1))

    def test_tiff_members_and_windows(self, tmp_path):
        pixels = texture(40, 56).astype(np.uint16) * 7
        write_tiff(tmp_path / "a.tif", pixels)
        write_shard(tmp_path / "s.tar", {"k.txt": b"x" * 700, "k.tif": (tmp_path / "a.tif").read_bytes()})
        source = source_of(tmp_path / "s.tar", tile=16)
        for item in source.items():
            x, y, w, h = item.window
            assert item.id == f"k#{x},{y},16,16"
            np.testing.assert_array_equal(source.read(item).pixels, pixels[y : y + h, x : x + w])
        with pytest.raises(ConfigError, match="is a window of a scene"):
            source.originals(item)

    @pytest.mark.parametrize(
        ("member", "id"),
        [
            ("a%2Etif%0A.png", "a.tif%0A"),  # as our own export writes an id
            ("a%2Etif#0,0,64,64.png", "a.tif#0,0,64,64"),
            ("50%.png", "50%25"),  # as others write a name
            ("a#b\n.png", "a%23b%0A"),
            ("<b>'; DROP TABLE items;--.png", "<b>'; DROP TABLE items;--"),
            ("ü/" + "x" * 120 + "/" + "y" * 120 + ".png", "ü/" + "x" * 120 + "/" + "y" * 120),
        ],
    )
    def test_a_key_as_id(self, tmp_path, member, id):
        write_shard(tmp_path / "s.tar", {member: png()})
        (item,) = items(tmp_path / "s.tar").values()
        assert item.id == id
        assert list(source_of(tmp_path / "s.tar").originals(item)) == ["png"]

    def test_windows_where_one_key_starts_another(self, tmp_path):
        write_shard(
            tmp_path / "s.tar", {f"{name}.png": png() for name in ("1", "10", "1 0", "1!", "100", "2")}
        )
        assert len(items(tmp_path, tile=8)) == 6 * 9

    @pytest.mark.parametrize("name", ["s-{000..002}.tar", "s-*.tar", "s-{000,001,002}.tar", "s-00[0-2].tar"])
    def test_shards_by_pattern(self, tmp_path, name):
        for i in range(3):
            write_shard(tmp_path / f"s-{i:03d}.tar", {f"{i}.png": png(i)})
        assert list(items(tmp_path / name)) == ["0", "1", "2"]

    def test_a_pattern_that_names_nothing(self, tmp_path):
        write_shard(tmp_path / "s-0.tar", {"a.png": png()})
        with pytest.raises(ConfigError, match=r"no file .*s-1\.tar"):
            source_of(tmp_path / "s-{0..1}.tar").items()
        with pytest.raises(ConfigError, match="nothing is called"):
            source_of(tmp_path / "t-*.tar").items()
        with pytest.raises(ConfigError, match="at most"):
            source_of(tmp_path / "s-{0..99999999}.tar").items()

    def test_images_beside_shards(self, tmp_path):
        write_shard(tmp_path / "s.tar", {"a.png": png()})
        (tmp_path / "b.png").write_bytes(png())
        with pytest.raises(ConfigError, match="holds images and shards"):
            source_of(tmp_path).items()

    def test_compressed_shards(self, tmp_path):
        with tarfile.open(tmp_path / "s.tar.gz", "w:gz"):
            pass
        with pytest.raises(ConfigError, match="is compressed"):
            source_of(tmp_path / "s.tar.gz")
        (tmp_path / "s.tar.gz").rename(tmp_path / "t.tar")
        assert "is not a complete tar file" in refusals(tmp_path / "t.tar")["t.tar"]

    def test_a_changed_shard_has_another_stamp(self, tmp_path):
        write_shard(tmp_path / "s.tar", {"a.png": png()})
        before = items(tmp_path)["a"]
        write_shard(tmp_path / "s.tar", {"a.png": png(), "b.png": png(1)})
        assert items(tmp_path)["a"].stamp != before.stamp
        assert items(tmp_path)["a"].member == before.member

    def test_prefix(self, tmp_path):
        from rsprune.config import SourceConfig

        write_shard(tmp_path / "s.tar", {"a.png": png()})
        source = open_source(SourceConfig(path=str(tmp_path / "s.tar")), prefix="web/")
        assert [i.id for i in source.items()] == ["web/a"]


class TestHostile:
    def test_names_that_lead_elsewhere(self, tmp_path):
        names = ["/etc/a.png", "../b.png", "x/../../c.png", "ok.png", "x//d.png", ".hidden.png"]
        write_shard(tmp_path / "s.tar", {name: png(i) for i, name in enumerate(names)})
        said = refusals(tmp_path)
        assert len(said) == 5
        assert said.pop("ok") is None
        assert set(said.values()) == {"has a name that leads out of its shard"}
        assert not any(".." in id.split("/") or id.startswith("/") for id in said)

    def test_links_devices_and_folders(self, tmp_path):
        path = write_shard(tmp_path / "s.tar", {"a.png": png()})
        (tmp_path / "secret.png").write_bytes(png())
        add(
            path,
            special("link.png", tarfile.SYMTYPE, "../secret.png"),
            special("hard.png", tarfile.LNKTYPE, "a.png"),
            special("device.png", tarfile.CHRTYPE),
            special("pipe.png", tarfile.FIFOTYPE),
            special("folder.png", tarfile.DIRTYPE),
        )
        said = refusals(path)
        assert said["a"] is None
        assert said["link"] == said["hard"] == "is a link in its shard; links are not followed"
        assert said["device"] == said["pipe"] == "is not a regular file in its shard"
        assert len(said) == 5

    def test_keys_that_come_again(self, tmp_path):
        write_shard(
            tmp_path / "0.tar",
            [("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3)), ("a%232.png", png(5))],
        )
        write_shard(tmp_path / "1.tar", {"a.jpg": encoded(texture(), "jpeg"), "c.jpg": b"1", "c.png": b"2"})
        said = refusals(tmp_path)
        assert said["a"] is None
        assert said["b"] is None
        assert "give each a key of its own" in said["c"]
        again = [why for id, why in said.items() if id.startswith("a%232") or id.startswith("a%233")]
        assert again.count("has the id of an image that was listed before it") == 3 - (None in again)
        assert len(said) == 6

    @pytest.mark.parametrize("keep", [1, 511, 512, 600, 1100, 2000, 2500, 3000])
    def test_cut_shards(self, tmp_path, keep):
        data = write_shard(tmp_path / "s.tar", {f"{i}.png": png(i, 12) for i in range(4)}).read_bytes()
        (tmp_path / "s.tar").write_bytes(data[:keep])
        said = refusals(tmp_path)
        assert "is not a complete tar file" in said.pop("s.tar")
        assert all(why is None for why in said.values())

    def test_an_empty_file_and_an_empty_shard(self, tmp_path):
        (tmp_path / "s.tar").write_bytes(b"")
        assert "0 bytes" in refusals(tmp_path)["s.tar"]
        write_shard(tmp_path / "s.tar", {"a.txt": b"no image"})
        with pytest.raises(ConfigError, match="no image in"):
            source_of(tmp_path).items()

    @pytest.mark.parametrize("size", [-512, -(2**40), 2**62, 2**33])
    def test_headers_with_impossible_sizes(self, tmp_path, size):
        info = tarfile.TarInfo("a.png")
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[124:136] = (
            struct.pack(">Bxxxq", 255 if size < 0 else 128, size)
            if size >= 0
            else b"\xff" * 4 + struct.pack(">q", size)
        )
        _checksum(header)
        (tmp_path / "s.tar").write_bytes(bytes(header) + bytes(2048))
        assert "is not a complete tar file" in refusals(tmp_path)["s.tar"]

    def test_a_header_that_claims_a_huge_name(self, tmp_path):
        header = bytearray(special("x", tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT))
        header[124:136] = b"00777777777\0"
        _checksum(header)
        with open(tmp_path / "s.tar", "wb") as file:  # noqa: PTH123
            file.write(header)
            file.truncate(2**31)
        assert "a header claims to have 134217728 bytes" in refusals(tmp_path)["s.tar"]

    def test_a_member_that_is_a_bomb(self, tmp_path):
        import faults

        faults.png_bomb(tmp_path / "bomb.png")
        write_shard(tmp_path / "s.tar", {"a.png": (tmp_path / "bomb.png").read_bytes()})
        assert "claims 60000 x 60000" in refusals(tmp_path / "s.tar")["a"]

    def test_a_shard_that_was_cut_after_it_was_listed(self, tmp_path):
        write_shard(tmp_path / "s.tar", {"a.png": png()})
        source = source_of(tmp_path)
        (item,) = source.items()
        (tmp_path / "s.tar").write_bytes(b"x" * 600)
        with pytest.raises(UnreadableImage, match="it was cut"):
            source.read(replace(item, stamp=""))  # as a row of a table names it
        with pytest.raises(UnreadableImage, match="was changed since it was listed"):
            source.read(item)


def _checksum(header: bytearray) -> None:
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()


def test_where_sorting_finds_no_space_that_is_said(tmp_path, monkeypatch):
    from rsprune.sources import ordered

    connect = sqlite3.connect

    class Full:
        def __init__(self, *_, **__):
            self.table = connect(":memory:", isolation_level=None)
            self.close = self.table.close

        def execute(self, text):
            return self.table.execute(text)

        def executemany(self, *_):
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(ordered.sqlite3, "connect", Full)
    with pytest.raises(NoSpace, match=r"\(database or disk is full\): name a larger one in .*SQLITE_TMPDIR"):
        list(in_order([Item("a", "/a")]))


def test_items_are_sorted_outside_of_memory():
    names = [f"{(i * 7919) % 5000:05d}" for i in range(5000)] + ["00007", "é", "~", "\U0001f600"]
    found = list(in_order(Item(name, "x", member=str(i)) for i, name in enumerate(names)))
    assert [i.id for i in found] == sorted([*names[:5000], "00007%232", "é", "~", "\U0001f600"])
    assert next(i for i in found if i.id == "00007%232").why_unusable
