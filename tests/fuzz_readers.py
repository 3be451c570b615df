"""Fuzzes the readers: damaged images, shards and tables must be refused in words, in little memory and time.

Run by hand, as in ``python tests/fuzz_readers.py --seconds 600``; ``pytest`` runs a short part of it. A case that
fails is left as ``crash-*`` in the folder that is printed. ``--make`` writes the seeds anew.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from rsprune.config import SourceConfig
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.sources import open_source

CORPUS = Path(__file__).parent / "data" / "corpus"
MEMORY = 4 * 2**30  # bytes of address space; what a case takes is freed after it
SECONDS = 300  # that 200 cases may take; the one that is too slow is the newest file in the folder
_NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 2**63 - 1, 2**64 - 1]


def damaged(seed: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """`seed` with a few bytes, numbers or stretches changed, or part of `other` in it."""
    data = bytearray(seed)
    for _ in range(int(rng.integers(1, 4))):
        at = (
            int(rng.integers(len(data) + 1))
            if rng.random() < 0.5
            else int(rng.integers(min(len(data), 256) + 1))
        )
        size = int(rng.integers(1, 1 + min(64, len(data) or 1)))
        kind = rng.integers(8)
        if kind < 3:
            data[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 3:
            width = int(rng.choice([1, 2, 4, 8]))
            number = int(rng.choice(len(_NUMBERS)))
            order = "little" if rng.random() < 0.5 else "big"
            data[at : at + width] = (_NUMBERS[number] % 2 ** (8 * width)).to_bytes(width, order)
        elif kind == 4:
            del data[at : at + size]
        elif kind == 5:
            data[at:at] = data[at : at + size]
        elif kind == 6:
            start = int(rng.integers(len(other) + 1))
            data[at : at + size] = other[start : start + size]
        else:
            del data[max(8, at) :]
    return bytes(data)


def read_all(path: Path, **settings) -> str:
    """Lists and reads everything in a file as a run would; what became of it, in a word."""
    try:
        source = open_source(SourceConfig(path=str(path), **settings))
        said = "read"
        for number, item in enumerate(source.items()):
            try:
                header, image = source.header(item), source.read(item)
                if image.pixels.shape != (header.height, header.width, header.bands):
                    raise AssertionError(f"{item} has {image.pixels.shape} where its header says {header}")
                if not item.window:
                    source.originals(item)
            except UnreadableImage as error:
                said = "unreadable"
                if "\n" in str(error) or not str(error):
                    raise AssertionError(f"says {error!r}") from error
            if number > 50:
                break
    except ConfigError:
        return "refused"
    return said


def fuzz(folder: Path, *, seed: int, cases: int | None = None, seconds: float | None = None) -> Counter[str]:
    """Outcomes of that many damaged files, or of as many as that time allows; the last is in `folder`."""
    rng = np.random.default_rng(seed)
    seeds = [(path, path.read_bytes()) for path in sorted(CORPUS.iterdir())]
    outcomes: Counter[str] = Counter()
    end = None if seconds is None else time.monotonic() + seconds
    while outcomes.total() < cases if cases is not None else time.monotonic() < end:
        path, data = seeds[outcomes.total() % len(seeds)]
        case = folder / f"case{path.suffix}"
        case.write_bytes(damaged(data, seeds[int(rng.integers(len(seeds)))][1], rng))
        settings = {"tile": 16} if rng.random() < 0.3 else {}
        try:
            outcomes[f"{path.suffix} {read_all(case, **settings)}"] += 1
        except BaseException:
            case.rename(folder / f"crash-{seed}-{outcomes.total()}{path.suffix}")
            raise
    return outcomes


def make() -> None:
    """Writes the seeds: a few KB of every kind that is read."""
    from image_files import encoded, texture, write_tiff
    from shard_files import write_shard, write_table

    CORPUS.mkdir(exist_ok=True)
    rgb, rgba = texture(20, 24), texture(20, 24, 4)
    files = {
        "rgb.png": encoded(rgb), "alpha.png": encoded(rgba), "grey16.png": encoded(rgb[..., 0].astype(np.uint16) * 99),
        "palette.png": encoded(np.asarray(rgb[..., 0] // 16), "png", bits=4), "baseline.jpg": encoded(rgb, "jpeg"),
        "progressive.jpg": encoded(rgb, "jpeg", progressive=True), "lossy.webp": encoded(rgb, "webp"),
        "lossless.webp": encoded(rgba, "webp", lossless=True),
    }  # fmt: skip
    for name, data in files.items():
        (CORPUS / name).write_bytes(data)
    place = {"crs": "EPSG:32633"}
    write_tiff(CORPUS / "strips.tif", rgb, compress="lzw", **place)
    write_tiff(
        CORPUS / "tiles.tif",
        texture(40, 40).astype(np.uint16) * 9,
        tiled=True,
        blockxsize=16,
        blockysize=16,
        compress="deflate",
    )
    write_tiff(CORPUS / "jpeg.tif", rgb, compress="jpeg", photometric="YCBCR")
    write_tiff(CORPUS / "float.tif", rgb.astype(np.float32), nodata=-1, BIGTIFF="YES", mask=rgb[..., 0] > 9)
    write_tiff(CORPUS / "rgb16.png", rgb.astype(np.uint16) * 99, driver="PNG")
    write_tiff(CORPUS / "a.jp2", rgb, driver="JP2OpenJPEG")
    small, tiny = encoded(rgb[:9, :9]), io.BytesIO()
    np.save(tiny, np.zeros(2), allow_pickle=False)
    write_shard(
        CORPUS / "shard.tar",
        {
            "a.png": small,
            "a.txt": b"sea",
            "b/c.jpg": encoded(rgb, "jpeg"),
            "b/c.npy": tiny.getvalue(),
            "x" * 120 + ".png": small,
        },
    )
    write_table(
        CORPUS / "table.parquet",
        image=[(small, "a.png"), (small, "b.png"), (None, None)],
        caption=["x", None, "y"],
    )
    write_table(CORPUS / "bytes.parquet", image=[small] * 3, id=["a", "b", None])
    (CORPUS / "list.txt").write_bytes(
        b"rgb.png\n# comment\nrgb.png#0,0,8,8\n/nowhere/a.png\ns3:/x\n\xff\xfe.png\r\n"
    )
    for path in CORPUS.glob("*.aux.xml"):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--make", action="store_true", help="write the seeds anew and stop")
    given = parser.parse_args()
    if given.make:
        make()
        return
    faulthandler.enable()
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"cases are written to {folder}", flush=True)
    outcomes: Counter[str] = Counter()
    end, seed = time.monotonic() + given.seconds, given.seed
    while time.monotonic() < end:
        faulthandler.dump_traceback_later(SECONDS, exit=True)  # a decoder that does not come back
        outcomes += fuzz(folder, seed=seed, cases=200)
        seed += 1
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{outcomes.total()} cases, seeds {given.seed} to {seed - 1}, at most {peak} MB")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8d}  {outcome}")


if __name__ == "__main__":
    sys.exit(main())
