"""The command line: bad input gets one sentence and the right exit code, and nothing computed is lost."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import collection
from rsprune.run import Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def images(root: Path, n: int, *, size: int = 64, dtype: type = np.uint8, bands: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        ramp = np.add.outer(np.arange(size), np.arange(size))[..., None] * (1 + i % 5)
        pixels = (ramp + rng.normal(0, 4, (8, 8, bands)).repeat(size // 8, 0).repeat(size // 8, 1)) % 256
        if dtype == np.uint8 and bands == 3:
            collection.save(root / f"{i:03d}.png", pixels.astype(np.uint8))
        else:
            tif(root / f"{i:03d}.tif", (pixels * (1 if dtype == np.uint8 else 16)).astype(dtype))
    return root


def tif(path: Path, pixels: np.ndarray) -> None:
    import rasterio
    from rasterio.transform import from_origin

    path.parent.mkdir(parents=True, exist_ok=True)
    h, w, c = pixels.shape
    profile = {
        "driver": "GTiff",
        "width": w,
        "height": h,
        "count": c,
        "dtype": pixels.dtype,
        "crs": "EPSG:32618",
    }
    east = 440000 + 10 * w * int(path.stem) if path.stem.isdigit() else 440000  # each on ground of its own
    with rasterio.open(path, "w", transform=from_origin(east, 4180000, 10, 10), **profile) as f:
        f.write(pixels.transpose(2, 0, 1))


def features(path: Path, n: int) -> Path:
    np.save(path, np.random.default_rng(1).normal(size=(n, 12)).astype(np.float32))
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--keep", "0"], "--keep is 0.0: input should be greater than 0"),
        (["--keep", "1.5"], "--keep is 1.5: input should be less than or equal to 1"),
        (["--prune", "1"], "--prune is 1: give a share from 0 to below 1"),
        (["--keep", "0.1", "--n", "3"], "--keep, --prune and --n exclude each other: give one of them"),
        (["--stride", "32"], "--stride needs --tile: give the side of the windows as well"),
        (["--tile", "64", "--scale", "5,5"], "--scale needs LO < HI, got 5,5"),
        (
            ["--bands", "4,x"],
            "--bands is 'x': input should be a valid integer, unable to parse string as an integer",
        ),
        (["--n-clusters", "50"], "--n-clusters is 50 but only 9 distinct images are eligible: give fewer"),
        (["--strategy", "nope"], "there is no strategy 'nope': give one of random, entropy, dedup"),
        (["--encoder", "nope"], "nope"),
        (["--device", "tpu"], "device is 'tpu': give auto, cpu, cuda or cuda:INDEX"),
        (["--workers", "0"], "workers is 0: give at least 1"),
        (["--reference", "missing"], "missing: give a folder with a folder per class, or a .parquet file"),
        (["--config", "missing.toml"], "cannot read settings from missing.toml: No such file or directory"),
    ],
)
def test_wrong_arguments_get_one_sentence(rsprune, tmp_path, arguments, sentence):
    x = features(tmp_path / "x.npy", 9)
    given = ["--embeddings", x] if "--encoder" not in arguments else []
    code, _, said = rsprune(
        "run", images(tmp_path / "in", 9), "-o", tmp_path / "run", "-q", *given, *arguments
    )
    assert code == 2
    assert said.startswith("rsprune: ")
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "in", "-o", "run", "--nope"], "no such option: --nope"),
        (["run", "in"], "missing option '-o' / '--out' (see 'rsprune run --help')"),
        (["runn"], "no such command 'runn'"),
        (["run", "in", "-o", "run", "--rank", "best"], "'best' is not one of 'herding', 'closest'"),
        (["export", "run", "-o", "kept", "--format", "zip"], "'zip' is not one of 'list', 'copy'"),
        (["run", "in", "-o", "run", "--keep", "few"], "invalid value for '--keep'"),
    ],
)
def test_what_is_no_command_gets_one_sentence(rsprune, arguments, sentence):
    code, out, said = rsprune(*arguments)
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert said.startswith("rsprune: ")
    assert sentence in said


def test_the_command_after_a_mistyped_one_is_not_refused(rsprune, tmp_path):
    code, _, said = rsprune("run", tmp_path / "im", "-o", tmp_path / "run", "-q")
    assert (code, "No such file or directory" in said) == (2, True)
    images(tmp_path / "in", 9)
    line = ["--embeddings", features(tmp_path / "x.npy", 9), "--workers", 1, "-q"]
    assert rsprune("run", tmp_path / "in", "-o", tmp_path / "run", *line)[0] == 0
    code, _, said = rsprune("run", tmp_path / "im", "-o", tmp_path / "run", *line)
    assert (code, "holds results of stage 'scan' for other settings" in said) == (2, True)


def test_many_scenes_are_summed_up_in_the_closing_table(capsys, reported, monkeypatch):
    from rsprune import terminal

    facts = terminal.summarise(reported)
    facts["scenes"] = {f"class-{i:02d}": [100 - i, 10] for i in range(20)}
    monkeypatch.setattr(terminal, "summarise", lambda run: facts)
    terminal.Terminal().summary(reported)
    out = capsys.readouterr().out
    assert out.count("class-") == 11
    assert re.search(rf"9 smaller ones +│ +{sum(range(81, 90))} +│ +90 ", out)


def test_after_a_selection_the_way_to_its_page_is_said(rsprune, tmp_path):
    root, x = images(tmp_path / "in", 9), features(tmp_path / "x.npy", 9)
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", x, "--workers", 1, "--n", 3]
    assert f"report: {tmp_path / 'run/report.html'}" in rsprune(*line)[1]
    out, said = rsprune("select", tmp_path / "run", "--n", 5)[1:]
    assert "report:" not in out
    assert f"rsprune report {tmp_path / 'run'}\n" in said


def test_progress_shows_the_rate_after_one_part_and_the_time_it_took(monkeypatch):
    from rich.console import Console

    from rsprune.terminal import Terminal

    terminal, now = Terminal(), [0.0]
    shown = io.StringIO()
    terminal.err = Console(file=shown, force_terminal=True, width=80, get_time=lambda: now[0])

    def parts():
        for n in (100, 300):
            now[0] += 10 if n == 100 else 20
            yield n

    for n in terminal.progress(parts(), "embed", 400):
        if n == 100:
            terminal.err._live_stack[0].refresh()
            assert "10 images/s 30 s left" in shown.getvalue()
    assert "in 30 s" in shown.getvalue()


def test_a_mistyped_strategy_costs_no_selection(rsprune, tmp_path):
    root, x = images(tmp_path / "in", 9), features(tmp_path / "x.npy", 9)
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", x, "--workers", 1, "--n", 3, "-q"]
    assert rsprune(*line)[0] == 0
    kept = (tmp_path / "run/kept.txt").read_text()
    code, _, said = rsprune("select", tmp_path / "run", "--strategy", "nope", "-q")
    assert (code, "there is no strategy 'nope'" in said) == (2, True)
    assert (tmp_path / "run/kept.txt").read_text() == kept
    assert rsprune("select", tmp_path / "run", "-q")[0] == 0


def test_missing_folders(rsprune, tmp_path):
    code, _, said = rsprune("run", tmp_path / "nowhere", "-o", tmp_path / "run", "-q")
    assert (code, said.count("\n")) == (2, 1)
    assert "nowhere" in said
    (tmp_path / "empty").mkdir()
    code, _, said = rsprune("run", tmp_path / "empty", "-o", tmp_path / "run", "-q")
    assert (code, said.count("\n")) == (2, 1)
    code, _, said = rsprune("select", tmp_path / "empty", "--keep", "0.1")
    assert (code, "is not a run folder" in said) == (2, True)
    (tmp_path / "file").write_text("")
    code, _, said = rsprune("run", images(tmp_path / "in", 2), "-o", tmp_path / "file", "-q")
    assert (code, "is a file, not a folder" in said) == (2, True)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_small_input_works(rsprune, tmp_path, n):
    code, out, said = rsprune("run", images(tmp_path / "in", n), "-o", tmp_path / "run", "--json")
    assert (code, said) == (0, "")
    facts = json.loads(out.splitlines()[-1])
    assert (facts["images"], facts["kept"]) == (n, 1)


@pytest.mark.parametrize(
    ("dtype", "bands"), [(np.uint8, 1), (np.uint16, 3), (np.float32, 4), (np.uint16, 13)]
)
def test_depths_and_bands(rsprune, tmp_path, dtype, bands):
    root = images(tmp_path / "in", 12, dtype=dtype, bands=bands)
    code, _, said = rsprune("run", root, "-o", tmp_path / "run", "--n", 3, "--workers", 1)
    assert code == 0, said
    assert ("without --scale, so it was estimated on 12 images" in said) == (dtype != np.uint8)
    assert len(Run.open(tmp_path / "run").kept_ids) == 3


def test_a_scene_is_cut_into_windows(rsprune, tmp_path):
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 3000, (20, 25, 4)).repeat(10, 0).repeat(10, 1).astype(np.uint16)
    tif(tmp_path / "in/scene.tif", scene)
    line = [
        "run",
        tmp_path / "in",
        "-o",
        tmp_path / "run",
        "--tile",
        64,
        "--bands",
        "3,2,1",
        "--scale",
        "0,3000",
    ]
    code, _, said = rsprune(*line, "--n", 2, "-q", "--workers", 1)
    assert code == 0, said
    run = Run.open(tmp_path / "run")
    assert sorted(run.table("scan")["id"].to_pylist()) == sorted(
        f"scene.tif#{x},{y},64,64"
        for x in (0, 64, 128)
        for y in (0, 64, 128)
        if x + 64 <= 250 and y + 64 <= 200
    )
    assert run.json("radiometry.json")[0]["scale"] == [[0.0, 3000.0]]
    assert run.table("scan")["gsd"].to_pylist()[0] == pytest.approx(10)


def test_several_sources_have_their_own_radiometry_and_ids(rsprune, tmp_path):
    first, second = images(tmp_path / "a/tiles", 6), images(tmp_path / "b/tiles", 5, dtype=np.uint16)
    line = ["--embeddings", features(tmp_path / "x.npy", 11), "-q", "--workers", 1, "-o", tmp_path / "run"]
    code, _, said = rsprune("run", first, second, *line)
    assert (code, said) == (2, "rsprune: two sources are called 'tiles': rename one with PATH=NAME\n")
    code, _, said = rsprune("run", first, f"{second}=deep", *line)
    assert code == 0, said
    run = Run.open(tmp_path / "run")
    assert run.table("scan")["id"].to_pylist() == [f"deep/{i:03d}.tif" for i in range(5)] + [
        f"tiles/{i:03d}.png" for i in range(6)
    ]
    assert run.table("scan")["source"].to_pylist() == [1] * 5 + [0] * 6
    assert [d["dtype"] for d in run.json("radiometry.json")] == ["uint8", "uint16"]


def test_broken_files_are_recorded_and_too_many_stop_the_run(rsprune, tmp_path):
    root = images(tmp_path / "in", 12)
    (root / "zero.png").write_bytes(b"")
    (root / "text.jpg").write_text("not an image")
    (root / "cut.png").write_bytes((root / "000.png").read_bytes()[:300])
    Image.new("1", (60_000, 60_000)).save(root / "bomb.png")
    (root / "loop").symlink_to(root)
    strange = os.fsencode(root) + b"/a \"b'\nc\xff.png"
    Path(os.fsdecode(strange)).write_bytes((root / "001.png").read_bytes())
    x = features(tmp_path / "x.npy", len(list(root.iterdir())))
    line = ["run", root, "-o", tmp_path / "run", "-q", "--embeddings", x, "--workers", 1]
    code, _, said = rsprune(*line)
    assert code == 3
    assert "images are unreadable, more than --max-bad 0.05 allows" in said
    code, _, said = rsprune(*line, "--max-bad", "0.5")
    assert code == 0, said
    run = Run.open(tmp_path / "run")
    bad = {d["id"] for d in run.decisions.to_pylist() if d["reason"] == "unreadable"}
    assert bad == {"zero.png", "text.jpg", "cut.png", "bomb.png", "loop"}
    assert "a \"b'%0Ac%FF.png" in run.table("scan")["id"].to_pylist()
    assert len(run.kept_ids) == round(0.15 * (len(run.decisions) - len(bad)))
    code, _, said = rsprune(*line[:3], tmp_path / "stop", *line[4:], "--on-error", "stop")
    assert (code, said.count("\n")) == (3, 1)


def test_mixed_band_counts_are_recorded(rsprune, tmp_path):
    root = images(tmp_path / "in", 10)
    images(root / "more", 1, bands=5)
    Image.fromarray(np.arange(64, dtype=np.uint8)[None].repeat(64, 0)).save(root / "grey.png")
    line = ["run", root, "-o", tmp_path / "run", "-q", "--workers", 1, "--max-bad", "0.2"]
    code, _, said = rsprune(*line, "--embeddings", features(tmp_path / "x.npy", 12))
    assert code == 0, said
    bad = [d for d in Run.open(tmp_path / "run").table("score").to_pylist() if d["error"]]
    assert [d["id"] for d in bad] == ["more/000.tif"]
    assert "5 bands" in bad[0]["error"]


def test_a_scene_without_data_cannot_meet_the_budget(rsprune, tmp_path):
    tif(tmp_path / "in/scene.tif", np.zeros((256, 256, 3), np.uint8))
    line = ["run", tmp_path / "in", "-o", tmp_path / "run", "--tile", 64, "--nodata", 0, "-q", "--workers", 1]
    code, _, said = rsprune(*line, "--embeddings", features(tmp_path / "x.npy", 16))
    assert (code, said.count("\n")) == (4, 1)
    assert "no image is left to keep (16 nodata)" in said
    assert set(Run.open(tmp_path / "run").decisions["reason"].to_pylist()) == {"nodata"}


def test_more_than_there_are_cannot_be_kept(rsprune, tmp_path):
    root, x = images(tmp_path / "in", 9), features(tmp_path / "x.npy", 9)
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", x, "-q"]
    code, _, said = rsprune(*line, "--n", 10)
    assert (code, said) == (4, "rsprune: 10 images are to be kept but only 9 can be read: lower --n\n")
    code, _, said = rsprune(
        "run", root, "-o", tmp_path / "run", "--embeddings", x, "--n", 9, "--entropy-drop", 0.2
    )
    assert code == 0
    assert "9 images were asked for, but only 8 pass the filters: all of them are kept" in said


def test_a_reference_without_class_folders(rsprune, tmp_path):
    root = images(tmp_path / "in", 9)
    code, _, said = rsprune("run", root, "-o", tmp_path / "run", "--reference", root, "-q", "--workers", 1)
    assert (code, said.count("\n")) == (2, 1)
    assert "put each into a folder named after its class" in said


def test_a_reference_of_images_needs_an_encoder(rsprune, tmp_path):
    root, x = images(tmp_path / "in", 9), features(tmp_path / "x.npy", 9)
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", x, "--reference", collection.TILES, "-q"]
    code, _, said = rsprune(*line)
    assert code == 2
    assert "give the reference as .parquet with columns embedding and label" in said


def test_a_reference_as_parquet(rsprune, tmp_path):
    rng = np.random.default_rng(0)
    root = images(tmp_path / "in", 40)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    x[:20] += 4
    np.save(tmp_path / "x.npy", x)
    labelled = pa.table({"embedding": list(np.r_[x[:20], x[20:]]), "label": ["town"] * 20 + ["sea"] * 20})
    pq.write_table(labelled, tmp_path / "ref.parquet")
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", tmp_path / "x.npy", "-q"]
    assert rsprune(*line, "--reference", tmp_path / "ref.parquet")[0] == 0
    scenes = Run.open(tmp_path / "run").table("cluster")["scene"].to_pylist()
    assert scenes[:20].count("town") > 15
    assert scenes[20:].count("sea") > 15


def test_an_unreadable_folder_is_recorded(tmp_path):
    """In a process of another user, as root may read everything."""
    root = images(tmp_path / "in", 30)
    images(root / "locked", 2)
    (root / "locked").chmod(0)
    code = (
        "import os\nfrom rsprune.config import SourceConfig\nfrom rsprune.errors import UnreadableImage\n"
        "from rsprune.sources import open_source\n"
        f"source = open_source(SourceConfig({str(root)!r}))\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "items = list(source.items())\n"
        "print(len(items))\n"
        "try: source.header(next(i for i in items if i.id == 'locked'))\n"
        "except UnreadableImage as e: print(e)\n"
    )
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (root / "locked").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "31"
    assert len(done.stdout.splitlines()) == 2


def test_a_full_disk_gets_one_sentence_and_the_run_continues(tmp_path):
    """A limit on the size of files stands in for a full disk; both fail in the same call."""
    root, x = images(tmp_path / "in", 60), features(tmp_path / "x.npy", 60)
    line = ["run", str(root), "-o", str(tmp_path / "run"), "--embeddings", str(x), "--workers", "1", "-q"]
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
    for code, expected in ((limited, 1), ("", 0)):
        code += "import sys; from rsprune.cli import main; main(sys.argv[1:])"
        done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        if expected:
            assert done.stderr.startswith("rsprune: no space left to write to")
            assert done.stderr.count("\n") == 1


def test_info_names_what_is_missing(rsprune, monkeypatch):
    code, out, _ = rsprune("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["extras"]["torch"] is True
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(facts["extras"]) == set(project["optional-dependencies"]) - {"test", "bench", "docs", "lint"}
    monkeypatch.setattr("rsprune.about._found", lambda module: False)
    said = rsprune("info")[1]
    assert "Missing: train (torch, diffusers, accelerate), for training and sampling\n" in said
    assert "to install it: pip install 'rsprune[train]'\n" in said


def test_help_fits_80_columns(rsprune, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for verb in (
        [],
        ["run"],
        ["scan"],
        ["score"],
        ["embed"],
        ["cluster"],
        ["select"],
        ["report"],
        ["export"],
        ["explain"],
        ["demo"],
        ["info"],
        ["compare"],
        ["reference"],
        ["evaluate"],
        ["train"],
        ["sample"],
        ["experiment"],
        ["finetune"],
        ["finetune", "semantic"],
        ["finetune", "super-resolution"],
    ):
        code, out, _ = rsprune(*verb, "--help")
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80


def test_help_names_values_and_breaks_no_list_of_choices(rsprune, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = rsprune("run", "--help")[1]
    assert "--bands         <B,B,...>" in out
    assert "<str>" not in out
    assert not [row for row in out.splitlines() if "<bool>" in row and "--help" not in row]
    assert "webdataset, parquet, huggingface," in rsprune("export", "--help")[1]


@pytest.mark.parametrize(
    ("verb", "unused"),
    [
        ("compare", ["--workers", "--config", "--overwrite"]),
        ("evaluate", ["--workers"]),
        ("reference", ["--transform-sample"]),
        ("report", ["--seed", "--workers", "--device"]),
        ("explain", ["--seed", "--device", "--quiet"]),
    ],
)
def test_options_without_effect_are_not_offered(rsprune, verb, unused):
    out = rsprune(verb, "--help")[1]
    assert "--json" in out
    assert [option for option in unused if option in out] == []


def test_completion_is_there_for_the_shell(rsprune, monkeypatch):
    monkeypatch.setenv("_RSPRUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "rsprune ex")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert rsprune()[1].split() == ["export", "explain", "experiment"]


def test_a_folder_whose_name_is_not_utf8(rsprune, tmp_path):
    root = images(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), 2)
    code, _, said = rsprune("run", root, "-o", tmp_path / "run", "-q")
    assert (code, said.count("\n")) == (2, 1)
    assert "is not UTF-8: rename it, or give the folder above it" in said
