"""JPEG, PNG and WebP files, and which codec a file needs; that is decided by content, never by extension."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import numpy as np

from rsprune.errors import ConfigError, RspruneError, UnreadableImage
from rsprune.sources.bands import Selection, as_image, stored_dtype
from rsprune.sources.base import Header, Image, Window
from rsprune.sources.blobs import HEAD, Blob, LocalFile, check_bytes
from rsprune.sources.jp2 import check_boxes

_LONG_HEAD = 2**24  # bytes in which the header of a JPEG with long metadata must lie
MAX_PIXELS = 2**28  # decoded at once: 0.8 GB of RGB; a header can claim far more than its file holds

_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6  # PNG colour types
_PNG_BANDS = {_GREY: 1, _RGB: 3, _PALETTE: 3, _GREY_ALPHA: 1, _RGB_ALPHA: 3}


class Scene(Protocol):
    """One opened image file."""

    def header(self, window: Window | None, selection: Selection) -> Header: ...

    def read(self, window: Window | None, selection: Selection) -> Image: ...

    def close(self) -> None: ...


def open_scene(file: str | Blob) -> Scene:
    """Opens an image file, given by its path or as bytes that lie elsewhere, and reads its header.

    Raises:
        UnreadableImage: it is not an image that can be decoded.
        ConfigError: it needs rasterio, which is not installed.
        StoreError: it lies in a store that does not answer.
    """
    with decoding("cannot be read"):
        blob = LocalFile(file) if isinstance(file, str) else file
        head = blob.read(0, HEAD)
        kind = kind_of(head)
        if kind == "JPEG":
            return PlainScene(blob, kind, _jpeg_header(head, blob))
        if kind == "WebP":
            return PlainScene(blob, kind, _webp_header(head))
        if kind == "PNG":
            layout, driver = _png_header(head)
            if not driver:
                return PlainScene(blob, kind, layout)
            kind = driver
    return _open_raster(blob, kind)


class decoding:
    """Turns whatever a decoder raises on broken input into `UnreadableImage`."""

    # Not a generator, which would cost as much per image as opening its file.
    __slots__ = ("what",)

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if (
            error is None
            or isinstance(error, (UnreadableImage, RspruneError))
            or not isinstance(error, Exception)
        ):
            return
        if isinstance(error, OSError):
            why = error.strerror or _one_line(error)
        elif isinstance(error, MemoryError):
            why = "it does not fit into memory"
        else:  # decoders answer hostile bytes with anything from struct.error to IndexError
            why = _one_line(error) or type(error).__name__
        raise UnreadableImage(f"{self.what}: {why}") from error


def check_size(width: int, height: int) -> None:
    """Refuses to decode more than `MAX_PIXELS`. Raises `UnreadableImage`."""
    if width * height > MAX_PIXELS:
        raise UnreadableImage(
            f"claims {width} x {height} = {width * height} pixels, "
            f"more than the {MAX_PIXELS} that are decoded at once"
        )


def check_window(window: Window, width: int, height: int) -> None:
    """Raises `UnreadableImage` where the window leaves a scene of that size."""
    if window.x + window.w > width or window.y + window.h > height:
        raise UnreadableImage(f"has {width} x {height} pixels, too few for the window {tuple(window)}")


@dataclass(frozen=True)
class Layout:
    """What a header says."""

    width: int
    height: int
    bands: int
    dtype: str = "uint8"


class PlainScene:
    """A file that can only be decoded whole; kept decoded while windows of it are read."""

    def __init__(self, blob: Blob, kind: str, layout: Layout):
        check_size(layout.width, layout.height)
        check_bytes(blob.size)
        self._blob, self._kind, self._layout = blob, kind, layout
        self._decoded: tuple[np.ndarray, np.ndarray | None] | None = None

    def header(self, window: Window | None, selection: Selection) -> Header:
        layout, bands = self._layout, self._checked(window, selection)
        _, _, w, h = window or (0, 0, layout.width, layout.height)
        return Header(w, h, len(bands), stored_dtype(layout.dtype), self._blob.size)

    def _checked(self, window: Window | None, selection: Selection) -> tuple[int, ...]:
        if window:
            check_window(window, self._layout.width, self._layout.height)
        return selection.indexes(self._layout.bands)

    def read(self, window: Window | None, selection: Selection) -> Image:
        self._checked(window, selection)  # before the work
        pixels, valid = self._decoded or self._decode()
        if window:
            self._decoded = pixels, valid
            part = np.s_[window.y : window.y + window.h, window.x : window.x + window.w]
            # A copy, so that a small image never keeps its whole scene in memory.
            pixels, valid = pixels[part].copy(), None if valid is None else valid[part].copy()
        if selection.bands or selection.mask_band:
            pixels = pixels[..., [b - 1 for b in selection.indexes(pixels.shape[-1])]]
        return as_image(pixels, valid, [selection.nodata])

    def _decode(self) -> tuple[np.ndarray, np.ndarray | None]:
        with decoding(f"is not a complete {self._kind} file"):
            pixels, valid = _DECODE[self._kind](self._blob.read(), self._layout)
            expected = (self._layout.height, self._layout.width, self._layout.bands)
            if pixels.shape != expected:
                raise UnreadableImage(f"has {pixels.shape} pixels where its header says {expected}")
            return pixels, valid

    def close(self) -> None:
        self._decoded = None


def kind_of(head: bytes) -> str:
    """JPEG, PNG, WebP, or the name of a GDAL driver, by the first bytes of a file. Raises `UnreadableImage`."""
    if not head:
        raise UnreadableImage("is empty (0 bytes)")
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "GTiff"
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or head[:4] == b"\xff\x4f\xff\x51":
        return "JP2OpenJPEG"
    raise UnreadableImage("is not a JPEG, PNG, WebP, TIFF or JPEG 2000 file")


def _jpeg_header(head: bytes, blob: Blob) -> Layout:
    import simplejpeg

    if not (size := _jpeg_size(head)):  # long metadata push the frame header further back
        head = blob.read(0, _LONG_HEAD)
        size = _jpeg_size(head)
    check_size(*size or (0, 0))  # the decoder says something else of sizes that overflow
    height, width, colours, _ = simplejpeg.decode_jpeg_header(head)
    if colours not in ("Gray", "YCbCr", "RGB"):
        # Four inks and four spectral bands look alike here, so converting could be wrong without notice.
        raise UnreadableImage(
            f"is a {colours} JPEG; convert it to RGB, or to GeoTIFF if these are spectral bands"
        )
    return Layout(width, height, 1 if colours == "Gray" else 3)


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Width and height in the first frame header, None where there is none."""
    at = 2
    while head[at : at + 1] == b"\xff" and at + 9 <= len(head):
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return width, height
        at += 1 if marker == 0xFF else 2 + length
    return None


def _png_header(head: bytes) -> tuple[Layout, str | None]:
    """Layout, and the raster driver for those 16-bit files that Pillow would cut to 8 bits."""
    if head[12:16] != b"IHDR" or len(head) < 26:
        raise UnreadableImage("is a PNG file without a header")
    width, height, depth, colours = struct.unpack(">IIBB", head[16:26])
    if colours not in _PNG_BANDS or not width or not height:
        raise UnreadableImage("is a PNG file with a broken header")
    layout = Layout(width, height, _PNG_BANDS[colours], "uint16" if depth == 16 else "uint8")
    return layout, "PNG" if depth == 16 and colours != _GREY else None


def _webp_header(head: bytes) -> Layout:
    chunk = head[12:16]
    if chunk == b"VP8X":
        width, height = (1 + int.from_bytes(head[i : i + 3], "little") for i in (24, 27))
    elif chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b"VP8 ":
        width, height = (size & 0x3FFF for size in struct.unpack("<HH", head[26:30]))
    else:
        raise UnreadableImage("is a WebP file without a header")
    return Layout(width, height, 3)


def _decode_jpeg(data: bytes, layout: Layout) -> tuple[np.ndarray, None]:
    import simplejpeg

    # Strict decoding is what makes a truncated file an error instead of a grey lower half.
    return simplejpeg.decode_jpeg(data, "GRAY" if layout.bands == 1 else "RGB", strict=True), None


def _decode_png(data: bytes, layout: Layout) -> tuple[np.ndarray, np.ndarray | None]:
    from PIL.PngImagePlugin import PngImageFile

    # Not `Image.open`: its limit on pixels is lower than ours, and global.
    with PngImageFile(BytesIO(data)) as image:
        _check_same(image.size, layout)
        image.load()
        transparent = image.info.get("transparency")
        if image.mode in ("I;16", "I;16B", "I"):
            grey = np.asarray(image).astype(np.uint16)[..., None]
            return grey, None if transparent is None else grey[..., 0] != transparent
        if image.mode == "1":
            return np.asarray(image.convert("L"))[..., None], None
        if image.mode == "P":
            return _split_alpha(np.asarray(image.convert("RGB" if transparent is None else "RGBA")))
        if transparent is not None and image.mode in ("L", "RGB"):
            return _split_alpha(np.asarray(image.convert("LA" if image.mode == "L" else "RGBA")))
        return _split_alpha(np.asarray(image))


def _decode_webp(data: bytes, layout: Layout) -> tuple[np.ndarray, np.ndarray | None]:
    from PIL.WebPImagePlugin import WebPImageFile

    with WebPImageFile(BytesIO(data)) as image:
        _check_same(image.size, layout)
        image.load()
        return _split_alpha(np.asarray(image if image.mode in ("RGB", "RGBA") else image.convert("RGB")))


def _check_same(size: tuple[int, int], layout: Layout) -> None:
    """Raises `UnreadableImage` where a decoder found another header than the one whose size was checked."""
    if size != (layout.width, layout.height):
        raise UnreadableImage(
            f"says that it has {layout.width} x {layout.height} pixels and then {size[0]} x {size[1]}"
        )


def _split_alpha(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    if pixels.ndim == 2:
        return pixels[..., None], None
    if pixels.shape[-1] in (2, 4):
        return pixels[..., :-1], pixels[..., -1] > 0
    return pixels, None


_DECODE = {"JPEG": _decode_jpeg, "PNG": _decode_png, "WebP": _decode_webp}


def _open_raster(blob: Blob, driver: str) -> Scene:
    try:
        from rasterio.errors import RasterioError  # noqa: F401
    except ImportError:
        if driver == "PNG":
            raise UnreadableImage(
                "is a 16-bit colour PNG, which needs rasterio: pip install 'rsprune[geo]'"
            ) from None
        raise ConfigError(
            f"{blob.path or 'the image'!r} is a {'TIFF' if driver == 'GTiff' else 'JPEG 2000'} file, "
            "which needs rasterio: pip install 'rsprune[geo]'"
        ) from None
    from rsprune.sources.raster import RasterScene

    with decoding("cannot be opened"):
        if driver == "JP2OpenJPEG":
            check_boxes(blob)
        return RasterScene(blob, driver)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
