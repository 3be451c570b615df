"""Reading: images per second of `rsprune score` on JPEG tiles of 256 pixels, beside bare decoding and CleanVision."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import simplejpeg
from jpeg_tiles import write_tiles
from rates import record

from rsprune.config import ScanConfig, Settings, SourceConfig
from rsprune.run import Run
from rsprune.stages.job import Job
from rsprune.stages.scan import scan_images
from rsprune.stages.score import score_images

# So many that what a stage costs once (0.1 s to hand out parts and to write them safely) does not count.
TILES, WORKERS, CHUNK, ROUNDS = 8192, 2, 256, 5


def decode(paths: list[str]) -> int:
    """Bytes of pixels that libjpeg-turbo makes of the files: the least that scoring can cost."""
    count = 0
    for path in paths:
        count += simplejpeg.decode_jpeg(Path(path).read_bytes(), "RGB").nbytes
    return count


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    return [str(path) for path in write_tiles(tmp_path_factory.mktemp("tiles"), TILES)]


def scanned(paths: list[str], folder: Path) -> Job:
    source = SourceConfig(path=str(Path(paths[0]).parent), name="tiles")
    part_size = min(ScanConfig().part_size, -(-len(paths) // WORKERS))  # as is usual, but work for all
    settings = Settings(scan=ScanConfig(sources=(source,), part_size=part_size))
    run = Run(folder)
    run.path.mkdir()
    run.save_settings(settings)
    job = Job(run, settings, workers=WORKERS)
    scan_images(job)
    return job


def score_again(job: Job) -> None:
    (job.run.path / ".stages" / "score.json").unlink(missing_ok=True)
    shutil.rmtree(job.run.path / "scores", ignore_errors=True)
    score_images(job)


def test_score(benchmark, paths, tmp_path):
    kilobytes = sum(Path(path).stat().st_size for path in paths) / len(paths) / 1e3
    benchmark.group = (
        f"score, {len(paths)} JPEG tiles of 256 px, {kilobytes:.1f} kB each, {WORKERS} processes, images/s"
    )
    job = scanned(paths, tmp_path / "run")
    parts = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    with ProcessPoolExecutor(WORKERS) as pool:
        calls = {"rsprune": lambda: score_again(job), "decode only": lambda: sum(pool.map(decode, parts))}
        record(benchmark, len(paths), "images", calls, ROUNDS)


def test_against_cleanvision(benchmark, paths, tmp_path):
    """Its entropy check alone, against all of our scores."""
    cleanvision = pytest.importorskip("cleanvision")
    some = tmp_path / "some"
    some.mkdir()
    few = [shutil.copy(path, some) for path in paths[:2048]]
    benchmark.group = f"score against CleanVision's low_information, {len(few)} of these tiles, {WORKERS} processes, images/s"
    job = scanned(few, tmp_path / "run")

    def low_information() -> None:
        lab = cleanvision.Imagelab(data_path=str(some), verbose=False)
        lab.find_issues({"low_information": {}}, n_jobs=WORKERS, verbose=False)

    calls = {"rsprune": lambda: score_again(job), "CleanVision": low_information}
    record(benchmark, len(few), "images", calls, ROUNDS)
