"""Parquet tables and text lists: ids, cells, paths, and tables that lie about themselves."""

from __future__ import annotations

import os
import resource
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_files import source_of, texture, write_png
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources.sidecars import sidecars
from shard_files import png, write_shard, write_table
from test_sources_tar import items, refusals


class TestParquet:
    def test_hugging_face_layout(self, tmp_path):
        write_table(
            tmp_path / "train.parquet",
            image=[(png(i), f"{'zyx'[i]}/{i}.PNG") for i in range(3)],
            caption=["sea", None, "ice"],
            label=[1, 2, 3],
        )
        found, source = items(tmp_path), source_of(tmp_path)
        assert list(found) == ["x/2.PNG", "y/1.PNG", "z/0.PNG"]
        assert source.originals(found["x/2.PNG"]) == {"PNG": png(2), "txt": b"ice"}
        assert source.originals(found["y/1.PNG"]) == {"PNG": png(1)}
        for i, item in enumerate(reversed(found.values())):
            np.testing.assert_array_equal(source.read(item).pixels, texture(24, 24, seed=i))
            assert source.header(item).bytes == len(png(i))

    def test_ids_by_column_path_or_number(self, tmp_path):
        (tmp_path / "data").mkdir()
        path = tmp_path / "data" / "t.parquet"
        same = [(png(i), "image.png") for i in range(12)]
        write_table(path, image=same, id=[f"k{11 - i}" for i in range(12)])
        assert items(tmp_path)["k0"].member == "11"
        write_table(path, image=same, id=[None, "../up", *range(10)][:2] + [None] * 10)
        assert list(items(tmp_path)) == [f"data/t.parquet%23{i:02d}" for i in range(12)]
        write_table(path, image=same)
        assert list(items(tmp_path))[10:] == ["data/t.parquet%2310", "data/t.parquet%2311"]
        write_table(path, image=[png(i) for i in range(2)], __key__=pa.array([7, 8]))
        assert list(items(path)) == ["7", "8"]
        source = source_of(path)
        assert [list(source.originals(i)) for i in source.items()] == [["png"], ["png"]]

    def test_ids_of_an_export_stay(self, tmp_path):
        given = [
            "a.tif#0,0,24,24",
            "50%25/b%0A.png",
            "<script>alert(1)</script>.png",
            "'; DROP TABLE items;--",
        ]
        write_table(tmp_path / "t.parquet", image=[png(i) for i in range(4)], id=given)
        assert list(items(tmp_path)) == sorted(given)
        assert all(why is None for why in refusals(tmp_path).values())

    def test_rows_of_any_order(self, tmp_path):
        n, rng = 150, np.random.default_rng(0)
        write_table(
            tmp_path / "t.parquet", 70, image=[png(i, 9) for i in range(n)], id=[f"{i:03d}" for i in range(n)]
        )
        found, source = items(tmp_path), source_of(tmp_path)
        for i in rng.permutation(n):
            np.testing.assert_array_equal(source.read(found[f"{i:03d}"]).pixels, texture(9, 9, seed=i))

    def test_paths_with_windows(self, tmp_path):
        (tmp_path / "in").mkdir()
        write_png(tmp_path / "in" / "a.png")
        columns = {"id": ["w", "v"], "uri": ["in/a.png", str(tmp_path / "in/a.png")]}
        windows = {"x": [8, None], "y": [4, None], "w": [16, None], "h": [12, None]}
        write_table(
            tmp_path / "t.parquet", **columns, **{k: pa.array(v, pa.int32()) for k, v in windows.items()}
        )
        found, source = items(tmp_path / "t.parquet"), source_of(tmp_path / "t.parquet")
        np.testing.assert_array_equal(source.read(found["w"]).pixels, texture()[4:16, 8:24])
        np.testing.assert_array_equal(source.read(found["v"]).pixels, texture())
        before = found["v"].stamp
        os.utime(tmp_path / "in/a.png", ns=(1, 1))
        assert items(tmp_path / "t.parquet")["v"].stamp != before

    def test_a_folder_prefers_images(self, tmp_path):
        write_table(tmp_path / "metadata.parquet", id=["a"], path=["nowhere.png"])
        write_png(tmp_path / "b.png")
        assert list(items(tmp_path)) == ["b.png"]

    def test_no_images(self, tmp_path):
        write_table(tmp_path / "t.parquet", a=[1], b=["x"])
        with pytest.raises(
            ConfigError, match=r"no column with images \(its columns: a, b\): give a column 'image'"
        ):
            source_of(tmp_path / "t.parquet").items()
        write_table(tmp_path / "t.parquet", image=pa.array([], pa.binary()))
        with pytest.raises(ConfigError, match="it has no row"):
            source_of(tmp_path / "t.parquet").items()

    def test_empty_cells_and_what_is_no_image(self, tmp_path):
        rows = [(None, "a.png"), (b"", "b.png"), (b"<html>", "c.png"), (png(), "d.png")]
        write_table(tmp_path / "t.parquet", image=rows)
        assert list(refusals(tmp_path / "t.parquet").values()) == [
            "is an empty cell", "is empty (0 bytes)", "is not a JPEG, PNG, WebP, TIFF or JPEG 2000 file", None,
        ]  # fmt: skip

    def test_damaged_tables(self, tmp_path):
        """Cut or with other bytes anywhere: a refusal or rows that say why, never anything else."""
        path = write_table(tmp_path / "t.parquet", image=[(png(i, 9), f"{i}.png") for i in range(4)])
        data, rng = path.read_bytes(), np.random.default_rng(0)
        outcomes = set()
        for trial in range(120):
            damaged = bytearray(data[: rng.integers(1, len(data))] if trial < 10 else data)
            for at in rng.integers(0, len(damaged), 6):
                damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                outcomes |= {type(why) for why in refusals(path).values()}
            except ConfigError as error:
                outcomes.add(type(error))
        assert str in outcomes

    def test_a_table_that_lies_about_its_rows(self, tmp_path):
        path = write_table(tmp_path / "t.parquet", image=[png()])
        data = path.read_bytes()
        for claimed in (2**40, 3):
            path.write_bytes(_with_rows(data, claimed))
            assert any(refusals(path).values())

    def test_a_table_that_was_rewritten_since_it_was_listed(self, tmp_path):
        """Its rows are others now; a window of a scene that a row names is as good as before."""
        path = write_table(tmp_path / "t.parquet", image=[png(1), png(2)], id=["a", "b"])
        found, source = items(path), source_of(path)
        write_table(path, image=[png(0), png(1), png(2)], id=["0", "a", "b"])
        for read in (source.header, source.read, source.originals):
            with pytest.raises(UnreadableImage, match="was changed since it was listed"):
                read(found["a"])
        write_png(tmp_path / "scene.png")
        (tmp_path / "l").mkdir()
        path = write_table(tmp_path / "l/w.parquet", path=["../scene.png"], x=[0], y=[0], w=[8], h=[8])
        (window,) = items(path).values()
        os.utime(path, ns=(1, 1))
        assert source_of(path).read(window).pixels.shape == (8, 8, 3)

    def test_a_row_that_names_a_member_of_a_shard(self, tmp_path):
        """The place is the shard's, so it is the shard that must not change."""
        shard = write_shard(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2)})
        members = {item.id: item.member for item in items(shard).values()}
        path = write_table(tmp_path / "t.parquet", path=["s.tar"], id=["b"], member=[members["b"]])
        (item,) = items(path).values()
        np.testing.assert_array_equal(source_of(path).read(item).pixels, texture(24, 24, seed=2))
        write_shard(shard, {"b.png": png(3), "a.png": png(1)})
        with pytest.raises(UnreadableImage, match="was changed since it was listed"):
            source_of(path).read(item)

    def test_a_small_table_of_many_windows(self, tmp_path):
        """A regular grid takes less than a byte per row; without ids windows are called as everywhere."""
        write_png(tmp_path / "scene.png")
        x, y = (axis.ravel() for axis in np.mgrid[:200, :200])
        side = np.full(x.size, 8)
        table = pa.table({"path": ["scene.png"] * x.size, "x": x, "y": y, "w": side, "h": side})
        pq.write_table(table, tmp_path / "t.parquet", compression="zstd")
        assert (tmp_path / "t.parquet").stat().st_size < x.size
        found = items(tmp_path / "t.parquet")
        assert len(found) == x.size
        pixels = source_of(tmp_path / "t.parquet").read(found["scene.png#9,30,8,8"]).pixels
        np.testing.assert_array_equal(pixels, texture()[30:38, 9:17])

    def test_tables_of_one_name_in_several_folders(self, tmp_path):
        for i, name in enumerate(("train", "val")):
            (tmp_path / "pq" / name).mkdir(parents=True)
            write_table(tmp_path / "pq" / name / "0000.parquet", image=[png(2 * i), png(2 * i + 1)])
        expected = [f"{name}/0000.parquet%23{i}" for name in ("train", "val") for i in range(2)]
        for pattern in ("{train,val}/0000.parquet", "{train,val}/*.parquet", "*/0000.parquet"):
            assert list(items(tmp_path / "pq" / pattern)) == expected
        assert next(iter(items(tmp_path / "pq/train/{0000,0000}.parquet"))) == "0000.parquet%230"

    def test_a_value_that_a_million_rows_repeat(self, tmp_path):
        """Some kilobytes that would be 3 GB once each row has its own copy."""
        value = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(30_000, np.int32)), pa.array([b"\0" * 100_000])
        )
        struct = pa.StructArray.from_arrays([value.cast(pa.dictionary(pa.int32(), pa.binary()))], ["bytes"])
        pq.write_table(pa.table({"image": struct}), tmp_path / "t.parquet", store_schema=False)
        assert (tmp_path / "t.parquet").stat().st_size < 20_000_000
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        source = source_of(tmp_path / "t.parquet")
        for last in source.items():  # noqa: B007
            pass
        with pytest.raises(UnreadableImage):
            source.read(last)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KB


class TestTextList:
    def test_paths_urls_comments_and_line_ends(self, tmp_path):
        (tmp_path / "in").mkdir()
        for name in ("a.png", "b b.png", "é.png"):
            write_png(tmp_path / "in" / name)
        write_png(tmp_path / "out.png")
        (tmp_path / "in" / "list.txt").write_bytes(
            b"\xef\xbb\xbfa.png\r\n\n# a comment\n./b b.png\n../out.png\n"
            + f"{tmp_path}/in/é.png\nfile://{tmp_path}/in/a.png".encode()
        )
        found, source = items(tmp_path / "in" / "list.txt"), source_of(tmp_path / "in" / "list.txt")
        root = str(tmp_path).lstrip("/")
        assert set(found) == {"a.png", "b b.png", f"{root}/out.png", f"{root}/in/é.png", f"{root}/in/a.png"}
        assert all(source.read(item).pixels.shape == (40, 48, 3) and item.stamp for item in found.values())

    def test_a_list_of_ids(self, tmp_path):
        """kept.txt beside the images that it names."""
        write_png(tmp_path / "50%\n.png")
        write_png(tmp_path / "a.png")
        (tmp_path / "kept.txt").write_text("50%25%0A.png\na.png#8,4,16,12\n")
        source = source_of(tmp_path / "kept.txt")
        whole, window = source.items()
        assert (whole.id, window.id) == ("50%25%0A.png", "a.png#8,4,16,12")
        np.testing.assert_array_equal(source.read(window).pixels, texture()[4:16, 8:24])

    def test_a_list_and_what_is_wrong_with_it(self, tmp_path):
        write_png(tmp_path / "a.png")
        (tmp_path / "l.txt").write_bytes(
            b"a.png\na.png\ngone.png\n"
            + b"x" * 200_000
            + b"\n\0.png\ns3://u:geheim@b/x.png\ns3://u:p@\xff/\xfe\n"
        )
        said = refusals(tmp_path / "l.txt")
        assert len(said) == 7
        assert all("\n" not in why and why.encode() for why in said.values() if why)
        assert said["a.png"] is None
        assert said["a.png%232"] == "has the id of an image that was listed before it"
        assert "No such file" in said["gone.png"]
        assert "line of more than" in said["l.txt%23000000004"]
        assert "password" in said["l.txt%23000000006"]
        assert "geheim" not in repr(list(source_of(tmp_path / "l.txt").items()))

    def test_windows_without_a_pixel(self, tmp_path):
        write_png(tmp_path / "a.png")
        (tmp_path / "l.txt").write_text("a.png#0,0,0,4\na.png#0,0,4,0\na.png#0,0,4,4\n")
        said = refusals(tmp_path / "l.txt")
        assert said["a.png#0,0,4,4"] is None
        assert said["a.png#0,0,0,4"] == "has an impossible window [0, 0, 0, 4]"
        assert "impossible" in said["a.png#0,0,4,0"]

    def test_an_empty_list(self, tmp_path):
        (tmp_path / "l.txt").write_text("# nothing\n")
        with pytest.raises(ConfigError, match="give a path or a URL per line"):
            source_of(tmp_path / "l.txt").items()

    def test_sidecars_of_files(self, tmp_path):
        write_png(tmp_path / "a.png")
        for name in ("a.txt", "a.JSON", "a.png.aux.xml", "a.npy", "ab.txt", "a.exe"):
            (tmp_path / name).write_text(name)
        source = source_of(tmp_path)
        (item,) = source.items()
        files = source.originals(item)
        assert next(iter(files)) == "png"
        assert sorted(files) == ["JSON", "npy", "png", "png.aux.xml", "txt"]
        shutil.rmtree(tmp_path)
        with pytest.raises(UnreadableImage, match="No such file"):
            source.originals(item)

    def test_sidecars_are_found_without_looking_at_all_names(self):
        class Names(list):
            looks = 0

            def __getitem__(self, place):
                self.looks += 1
                return super().__getitem__(place)

        names = Names(sorted(f"{i:06d}.{e}" for i in range(20_000) for e in ("png", "txt")))
        assert list(sidecars("012345.png", names)) == [("012345.txt", "txt")]
        assert names.looks < 30


def _with_rows(data: bytes, rows: int) -> bytes:
    """A Parquet file of one row whose footer claims `rows`; thrift writes numbers as zigzag varints."""
    length = int.from_bytes(data[-8:-4], "little")
    footer, body = data[-8 - length : -8], data[: -8 - length]
    number, claimed = rows * 2, bytearray()
    while number > 127:
        claimed.append(number & 127 | 128)
        number >>= 7
    claimed.append(number)
    # The third field of the footer, i64: after the list of schema elements comes "16" with the number of rows.
    at = footer.index(b"\x16\x02\x19")
    footer = footer[: at + 1] + bytes(claimed) + footer[at + 2 :]
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"
