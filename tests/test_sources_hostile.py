"""Files made to fill memory, to loop, to lead elsewhere or to be run: each is refused in words, and soon."""

from __future__ import annotations

import contextlib
import resource
import struct
import zlib

import numpy as np
import pytest

from image_files import encoded, refusal, source_of, texture, write_png, write_tiff
from rsprune.errors import UnreadableImage
from rsprune.sources import ids
from rsprune.sources.blobs import MAX_BYTES


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_jpeg_of_65535_by_65535(tmp_path):
    data = encoded(texture(), "jpeg")
    at = data.index(b"\xff\xc0") + 5
    (tmp_path / "a.jpg").write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    assert "claims 65535 x 65535" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_png_whose_text_is_a_bomb(tmp_path, kind):
    """100 MB of text or profile in 100 KB."""
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(100)) + packer.flush()
    start = b"name\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0")
    data = encoded(texture())
    (tmp_path / "a.png").write_bytes(data[:33] + chunk(kind, start + bomb) + data[33:])
    source = source_of(tmp_path)
    (item,) = source.items()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(UnreadableImage):
        assert source.read(item).pixels.shape == (40, 48, 3)  # the text was left alone
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80_000  # KB


def test_a_png_with_more_pixels_than_its_header_says(tmp_path):
    data = bytearray(encoded(np.zeros((2000, 2000, 3), np.uint8)))
    data[16:24] = struct.pack(">II", 8, 8)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    source = source_of(tmp_path)
    (item,) = source.items()
    with contextlib.suppress(UnreadableImage):
        assert source.read(item).pixels.shape == (8, 8, 3)


def test_a_png_with_a_second_header(tmp_path):
    """The first says little, the second is what would be decoded."""
    large = encoded(np.zeros((300, 300, 3), np.uint8))
    small = encoded(np.zeros((1, 1, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(small[:33] + large[8:])
    assert refusal(tmp_path) == "says that it has 1 x 1 pixels and then 300 x 300"


@pytest.mark.parametrize("loop", ["to itself", "to the start", "far away"])
def test_a_tiff_whose_directories_are_a_loop(tmp_path, loop):
    write_tiff(tmp_path / "a.tif", texture())
    data = bytearray((tmp_path / "a.tif").read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    end = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, end, {"to itself": first, "to the start": 0, "far away": 2**32 - 16}[loop])
    (tmp_path / "a.tif").write_bytes(data)
    source = source_of(tmp_path)
    (item,) = source.items()
    np.testing.assert_array_equal(source.read(item).pixels, texture())


@pytest.mark.parametrize("tag", [256, 257, 258, 273, 277, 278, 279])
@pytest.mark.parametrize("value", [0, 2**16 - 1, 2**31 - 1, 2**32 - 1])
def test_a_tiff_with_impossible_numbers(tmp_path, tag, value):
    """Sizes, bits, offsets and counts of strips."""
    write_tiff(tmp_path / "a.tif", texture())
    data = bytearray((tmp_path / "a.tif").read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    for at in range(first + 2, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], 12):
        found, _, count = struct.unpack_from("<HHI", data, at)
        if found == tag:
            struct.pack_into("<HHII", data, at, tag, 4, 1 if count == 1 else value, value)
    (tmp_path / "a.tif").write_bytes(data)
    source = source_of(tmp_path)
    (item,) = source.items()
    with contextlib.suppress(UnreadableImage):
        # Strips that a file does not have are empty to GDAL.
        assert source.read(item).pixels.size <= 2**16 * 48 * 3


@pytest.mark.parametrize("length", [0, 1, 7, 8, 2**31])
@pytest.mark.parametrize("box", [b"ihdr", b"colr", b"jp2h", b"ftyp"])
def test_a_jpeg_2000_file_whose_boxes_lie(tmp_path, box, length):
    """GDAL never comes back from some of them."""
    write_tiff(tmp_path / "a.jp2", texture(), driver="JP2OpenJPEG")
    data = bytearray((tmp_path / "a.jp2").read_bytes())
    struct.pack_into(">I", data, data.index(box) - 4, length)
    (tmp_path / "a.jp2").write_bytes(data)
    source = source_of(tmp_path / "a.jp2")
    (item,) = source.items()
    try:
        read = source.read(item).pixels.shape
    except UnreadableImage:
        read = None
    if (box, length) == (b"jp2h", 8):  # its boxes come after it, and GDAL finds them there
        assert read in (None, (40, 48, 3))
    else:
        assert read is None


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_file_too_large_to_be_an_image(tmp_path, kind):
    """Nothing but its header is read; the rest is a hole."""
    (tmp_path / "a.png").write_bytes(encoded(texture(), kind))
    with (tmp_path / "a.png").open("r+b") as file:
        file.truncate(40 * 2**30)
    assert f"has {40 * 2**30} bytes, more than the {MAX_BYTES}" in refusal(tmp_path)


def test_a_long_jpeg_without_a_header(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"\xff\xe0\xff\xff" * 4)
    with (tmp_path / "a.jpg").open("r+b") as file:
        file.truncate(40 * 2**30)
    assert refusal(tmp_path)


def test_names_of_files_are_text(tmp_path):
    names = [
        "<img src=x onerror=alert(1)>.png",
        "'; DROP TABLE items;--.png",
        "a\nb.png",
        "$(touch pwned).png",
        "%2e%2e.png",
    ]
    for name in names:
        write_png(tmp_path / name)
    source = source_of(tmp_path)
    items = list(source.items())
    assert {ids.decode(item.id) for item in items} == set(names)
    assert all("\n" not in item.id and source.read(item).pixels.any() for item in items)


def test_a_pickle_is_no_image_and_stays_bytes(tmp_path):
    """A sidecar is carried along, never opened."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    write_png(tmp_path / "a.png")
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "b.png").write_bytes(pickle.dumps(Evil()))
    source = source_of(tmp_path)
    good, bad = source.items()
    assert source.originals(good)["npy"] == (tmp_path / "a.npy").read_bytes()
    with pytest.raises(UnreadableImage):
        source.read(bad)
    assert not (tmp_path / "pwned").exists()
