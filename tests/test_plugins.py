"""What installed packages add: found, refused with their names, and the example package in a whole run."""

import sys
from pathlib import Path

import numpy as np
import pytest

import image_files
from rsprune import config, plugins, prune
from rsprune.encoders import load_encoder
from rsprune.errors import ConfigError, RspruneError
from rsprune.locations import source_values
from rsprune.sources import open_source
from rsprune.strategies import load_strategy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = Path(__file__).parent.parent / "examples" / "plugin"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a module on the path with the metadata that pip would write for it."""

    def install(name: str, entry_points: dict[str, dict[str, str]], module: str, source: str) -> None:
        site = tmp_path / "site"
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items())
            for group, e in entry_points.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield install
    for path in (tmp_path / "site").glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def example(install):
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (source,) = EXAMPLE.glob("*.py")
    install(project["name"], project["entry-points"], source.stem, source.read_text())


def test_nothing_is_found_where_nothing_is_installed():
    assert plugins.find(plugins.ENCODERS, "no such thing") is None
    assert "lite0" not in plugins.names(plugins.ENCODERS)


def test_names_import_nothing(install):
    install(
        "theirs",
        {plugins.ENCODERS: {"b": "broken:B", "a": "broken:A"}},
        "broken",
        "raise OSError('no licence')",
    )
    assert {"a", "b"} <= set(plugins.names(plugins.ENCODERS))
    with pytest.raises(
        RspruneError, match=r"'a' of the package theirs cannot be loaded \(OSError: no licence\)"
    ):
        plugins.find(plugins.ENCODERS, "a")
    with pytest.raises(ConfigError, match=r"no encoder 'c': give one of lite0, rcf, .*, a, b, or embeddings"):
        load_encoder("c")


def test_a_name_that_its_module_lacks(install):
    install("theirs", {plugins.STRATEGIES: {"s": "empty:missing"}}, "empty", "")
    with pytest.raises(RspruneError, match="'s' of the package theirs cannot be loaded"):
        load_strategy("s")


def test_two_packages_of_one_name(install):
    for package, module in (("one", "mod_one"), ("two", "mod_two")):
        install(package, {plugins.ENCODERS: {"same": f"{module}:X"}}, module, "X = 1")
    with pytest.raises(RspruneError, match="one and two both offer 'same'"):
        load_encoder("same:3")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return lambda images: None", "encoder e of an installed package has no name"),
        ("return type('E', (), {'name': 'e', 'weight_hash': '', 'device': 'cpu'})()", "has no dim"),
        (
            "return type('E', (), {'name': 'e', 'weight_hash': '', 'device': 'cpu', 'dim': 2})()",
            "cannot be called",
        ),
    ],
)
def test_what_is_no_encoder(install, body, message):
    source = f"def make(argument, *, device):\n    {body}\n"
    install("theirs", {plugins.ENCODERS: {"e": "theirs_e:make"}}, "theirs_e", source)
    with pytest.raises(RspruneError, match=message):
        load_encoder("e")


def test_an_encoder_that_gives_other_features_than_it_says(install, tmp_path):
    source = (
        "import numpy as np\n"
        "class E:\n"
        "    name, weight_hash, device, dim = 'e', '', 'cpu', 3\n"
        "    def __init__(self, argument, *, device): pass\n"
        "    def __call__(self, images): return np.ones((1, 3), np.float32)\n"
    )
    install("theirs", {plugins.ENCODERS: {"e": "short:E"}}, "short", source)
    for i in range(3):
        image_files.write_png(tmp_path / f"{i}.png", image_files.texture(seed=i))
    with pytest.raises(
        RspruneError, match=r"encoder e gave features \[1, 3\] for 3 images of 3 features each"
    ):
        prune(tmp_path, tmp_path / "run", n=1, workers=1, settings={"embed": {"encoder": "e"}})


def test_a_source_that_nobody_reads(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no file or folder tar:x, and no installed package reads 'tar:' .*npz:"
    ):
        open_source(config.SourceConfig(path="tar:x"))
    Path("odd:name").mkdir()  # a folder that is there is a folder
    image_files.write_png(tmp_path / "odd:name" / "a.png")
    assert [item.id for item in open_source(config.SourceConfig(**source_values("odd:name"))).items()] == [
        "a.png"
    ]


def test_paths_of_plugins_stay_as_they_are():
    assert source_values("npz:x.npz=tiles") == {"path": "npz:x.npz", "name": "tiles"}
    assert source_values("/a/npz:x")["path"] == "/a/npz:x"
    assert Path(source_values("x.npz")["path"]).is_absolute()


def test_the_example(example, tmp_path):
    tiles = {f"tile {i:02d}": image_files.texture(32, 32, seed=i) for i in range(30)}
    np.savez(tmp_path / "tiles.npz", **tiles, flat=np.zeros((32, 32), np.uint8))
    run = prune(
        f"npz:{tmp_path / 'tiles.npz'}", tmp_path / "run", n=5, workers=1,
        settings={
            "scan": {"max_bad": 0.1},
            "embed": {"encoder": "histogram:16"},
            "select": {"strategy": "sharpest"},
        },
    )  # fmt: skip
    assert run.embeddings().shape == (31, 16)
    scores = run.table("score", ["id", "sharpness", "error"]).to_pylist()
    assert [row["id"] for row in scores if row["error"]] == ["flat"]
    decided = {row["id"]: row for row in run.decisions.to_pylist()}
    eligible = [r for r in scores if decided[r["id"]]["reason"] in ("kept", "over_budget")]
    expected = sorted(eligible, key=lambda row: -row["sharpness"])[:5]
    assert run.kept_ids == [row["id"] for row in expected]
    assert set(run.kept_ids) <= set(tiles)


def test_the_example_says_what_is_wrong(example, tmp_path):
    (tmp_path / "x.npz").write_text("text")
    with pytest.raises(ConfigError, match="is not a NumPy archive"):
        open_source(config.SourceConfig(path=f"npz:{tmp_path / 'x.npz'}"))
    assert load_encoder("histogram")([]).shape == (0, 32)
