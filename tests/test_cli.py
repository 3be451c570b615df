"""The command line: bad input gets one sentence and the right exit code, and nothing computed is lost."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ground import features, images
from rsprune.terminal import Terminal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
    assert (code, "No such file or directory" in said) == (2, True)
    (tmp_path / "im").mkdir()
    images(tmp_path / "im", 9)
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


def test_names_are_printed_as_they_are(capsys):
    """Also what looks like markup, or like the code of an emoji."""
    path = "/data/[red]x:ok:y/a:id:b"
    Terminal(as_json=True).result({"path": path}, "")
    Terminal().result({}, path)
    Terminal().say(path)
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[0]) == {"path": path}
    assert (said.out.splitlines()[1], said.err) == (path, path + "\n")


def test_after_a_selection_the_way_to_its_page_is_said(rsprune, tmp_path):
    root, x = images(tmp_path / "in", 9), features(tmp_path / "x.npy", 9)
    line = ["run", root, "-o", tmp_path / "run", "--embeddings", x, "--workers", 1, "--n", 3]
    assert f"report: {tmp_path / 'run/report.html'}" in rsprune(*line)[1]
    out, said = rsprune("select", tmp_path / "run", "--n", 5)[1:]
    assert "report:" not in out
    assert f"rsprune report {tmp_path / 'run'}\n" in said


def test_progress_shows_the_rate_after_one_part_and_the_time_it_took(monkeypatch):
    from rich.console import Console

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
    code, _, said = rsprune("run", tmp_path / "in", "-o", tmp_path / "file" / "run", "-q")
    assert (code, "choose another one with -o" in said, said.count("\n")) == (2, True, 1)


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
