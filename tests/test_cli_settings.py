"""What a command makes of settings: early refusal, options that replace each other, and what a run remembers."""

from __future__ import annotations

import pytest

from decided import rsprune
from ground import features, images
from rsprune import toml
from rsprune.config import SourceConfig
from rsprune.export import export
from rsprune.locations import source_values
from rsprune.run import Run
from rsprune.stages import cluster


def run_of(tmp_path, *more):
    if not (tmp_path / "in").exists():
        images(tmp_path / "in", 12)
        features(tmp_path / "x.npy", 12)
    given = ("--embeddings", tmp_path / "x.npy", "--n", 3)
    return rsprune("run", tmp_path / "in", "-o", tmp_path / "run", *given, *more)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reference", "classses"], "there is no reference"),
        (["--reference", "a/x", "--reference", "b/x"], "two references are called 'x'"),
        (["--exclude-from", "nowhere"], "there is nothing to exclude at"),
        (["--exclude-reference"], "--exclude-reference needs a --reference"),
        (["--strategy", "best"], "there is no strategy 'best'"),
        (["--embeddings", "gone.npy"], "cannot read"),
        (["--entropy-min", 3, "--entropy-otsu"], "--entropy-min and --entropy-otsu exclude each other"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_what_later_stages_would_refuse_is_said_before_an_image_is_read(
    tmp_path, monkeypatch, arguments, said, dry
):
    monkeypatch.chdir(tmp_path)
    given = [] if "--embeddings" in arguments else ["--embeddings", features(tmp_path / "x.npy", 12)]
    line = [
        "run",
        images(tmp_path / "in", 12),
        "-o",
        "run",
        *given,
        *arguments,
        *(["--dry-run"] if dry else []),
    ]
    done = rsprune(*line)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("run/manifest/*"))


def test_a_threshold_takes_the_place_of_the_one_before(tmp_path):
    assert run_of(tmp_path, "--entropy-min", 1).returncode == 0
    filters = toml.load(tmp_path / "run/config.toml").filter
    assert (filters.entropy_min, filters.entropy_otsu) == (1, False)
    for arguments, expected in (
        (["--entropy-otsu"], (0.05, None, True)),
        (["--entropy-drop", 0.3], (0.3, None, False)),
        (["--entropy-min", 2], (0.05, 2, False)),
    ):
        assert rsprune("select", tmp_path / "run", *arguments).returncode == 0
        filters = toml.load(tmp_path / "run/config.toml").filter
        assert (filters.entropy_drop, filters.entropy_min, filters.entropy_otsu) == expected


def test_a_refused_seed_leaves_that_of_the_run(tmp_path):
    assert run_of(tmp_path, "--seed", 4).returncode == 0
    kept = (tmp_path / "run/kept.txt").read_text()
    done = run_of(tmp_path, "--seed", 5)
    assert done.returncode == 2
    assert "holds results of stage 'embed' for other settings" in done.stderr
    assert toml.load(tmp_path / "run/config.toml").seed == 4
    assert rsprune("embed", tmp_path / "run").returncode == 0
    assert rsprune("select", tmp_path / "run").returncode == 0
    assert (tmp_path / "run/kept.txt").read_text() == kept
    assert run_of(tmp_path, "--seed", 5, "--overwrite").returncode == 0
    assert toml.load(tmp_path / "run/config.toml").seed == 5


def test_the_same_command_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    assert run_of(tmp_path).returncode == 0

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_assign", interrupted)
        assert rsprune("select", tmp_path / "run", "--entropy-drop", 0).returncode == 130
    done = rsprune("select", tmp_path / "run", "--entropy-drop", 0)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('select = "rsprune"', "[select] is 'rsprune': give a table of settings"),
        ("[scan]\nsources = 3", "scan.sources is 3: give a list of paths or tables"),
        ("[scan]\nsources = [3]", "scan.sources has 3: give a path, or a table with one"),
        ('[select]\nstrategie = "random"', "there is no setting select.strategie"),
    ],
)
def test_a_file_of_settings_that_makes_no_sense(tmp_path, text, said):
    (tmp_path / "c.toml").write_text(text)
    done = rsprune("run", images(tmp_path / "in", 3), "-o", tmp_path / "run", "--config", tmp_path / "c.toml")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("sources", "name"), [('[scan]\nsources = ["in/"]', "in"), ('[[scan.sources]]\npath = "in/"', "")]
)
def test_paths_in_a_file_of_settings_hold_in_every_folder(tmp_path, monkeypatch, sources, name):
    images(tmp_path / "in", 12)
    features(tmp_path / "x.npy", 12)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(f'{sources}\n[embed]\nembeddings = "x.npy"\n[select]\nn = 3')
    done = rsprune("run", "-o", "run", "--config", "c.toml")
    assert done.returncode == 0, done.stderr
    assert toml.load("run/config.toml").scan.sources == (SourceConfig(str(tmp_path / "in"), name),)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert export(Run.open("../run"), "kept", "copy").count == 3


@pytest.mark.parametrize(
    ("text", "path", "name"),
    [
        ("s3://b/tiles/year=2020", "s3://b/tiles/year=2020", "year=2020"),
        ("s3://b/tiles/year=2020/=recent", "s3://b/tiles/year=2020/", "recent"),
        ("s3://b/tiles/=old", "s3://b/tiles/", "old"),
        ("s3://b/web/a.tar=old", "s3://b/web/a.tar", "old"),
        ("s3://b/tiles/year=2020/", "s3://b/tiles/year=2020/", "year=2020"),
    ],
)
def test_names_of_sources_in_a_store(text, path, name):
    assert source_values(text) == {"path": path, "name": name}
