import sys
from types import SimpleNamespace

import numpy as np
import pytest

from rsprune import plugins
from rsprune.config import FilterConfig, SelectConfig
from rsprune.errors import ConfigError, RspruneError
from rsprune.filters import REASONS
from rsprune.rank import METHODS
from rsprune.selection import decide
from rsprune.strategies import STRATEGIES, Clusters, Strategy, load_strategy

NAMES = sorted(STRATEGIES)


def circle(*degrees):
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def line(*values):
    return np.array(values, np.float32)[:, None]


def run(name, x, labels, budget, entropy=None, seed=0, scenes=None, **settings):
    clusters = Clusters.of(x, np.asarray(labels))
    if scenes is not None:
        clusters = Clusters(clusters.labels, clusters.distance, clusters.centers, np.asarray(scenes))
    scores = {"entropy": np.zeros(len(x)) if entropy is None else np.asarray(entropy)}
    strategy = load_strategy(name, **settings)
    return strategy.order(x, scores, clusters, budget, seed)[:budget].tolist()


def pool(n=120, d=8, k=5, seed=0):
    """Scores, hashes, embeddings, labels, distances, centres and scenes: copies, noise and a bad row."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, d)).astype(np.float32)
    labels = rng.integers(0, k, n).astype(np.int32)
    x = (centers[labels] + rng.normal(size=(n, d))).astype(np.float16)
    entropy, correlation = rng.gamma(4, 1, n).astype(np.float32), np.full(n, 0.9, np.float32)
    hashes = np.array([f"content {i}" for i in range(n)], dtype=object)
    correlation[:8] = 0.01
    x[20:30], labels[20:30], hashes[20:30], entropy[20:30] = (
        x[10:20],
        labels[10:20],
        hashes[10:20],
        entropy[10:20],
    )
    x[-1], labels[-1], hashes[-1], entropy[-1] = np.nan, -1, None, np.nan
    distance = np.square(x.astype(np.float32) - centers[labels]).sum(axis=1)
    scenes = rng.integers(-1, 3, n)
    scenes[20:30] = scenes[10:20]
    return entropy, correlation, hashes, x, labels, distance, scenes, centers


def decided(images, rows, budget, seed=0, **settings):
    entropy, correlation, hashes, x, labels, distance, scenes = (column[rows] for column in images[:-1])
    return decide(
        scores={"entropy": entropy, "autocorrelation": correlation},
        hashes=hashes,
        x=x,
        labels=labels,
        distance=distance,
        centers=images[-1],
        scenes=scenes,
        filters=FilterConfig(),
        select=SelectConfig(**settings),
        budget=budget,
        seed=seed,
    )


# Every strategy


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [0, 1, 17, 60])
def test_the_budget_is_met_exactly(name, budget):
    got = decided(pool(), np.arange(120), budget, strategy=name)
    assert got.kept.sum() == budget
    assert sorted(got.rank[got.kept]) == list(range(budget))


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_above_the_pool_keeps_the_pool(name):
    got = decided(pool(), np.arange(120), 500, strategy=name)
    expected = 119 if name != "rsprune" else (got.reason == 0).sum()
    assert got.kept.sum() == expected > 60


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("of", ["readable", "distinct"])
def test_the_order_of_files_does_not_matter(name, of):
    images = pool()
    shuffle = np.random.default_rng(1).permutation(120)
    first = decided(images, np.arange(120), 40, strategy=name, pool=of)
    second = decided(images, shuffle, 40, strategy=name, pool=of)
    hashes = images[2]

    def best_first(decisions, hashes):
        kept = np.flatnonzero(decisions.kept)
        return hashes[kept[np.argsort(decisions.rank[kept])]].tolist()

    assert best_first(first, hashes) == best_first(second, hashes[shuffle])


@pytest.mark.parametrize("name", NAMES)
def test_subsets_are_nested(name):
    images, previous = pool(), []
    for budget in (1, 5, 30, 31, 80):
        got = decided(images, np.arange(120), budget, strategy=name)
        now = np.flatnonzero(got.kept)[np.argsort(got.rank[got.kept])].tolist()
        assert now[: len(previous)] == previous
        previous = now


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_what_is_left_to_chance(name):
    kept = [decided(pool(), np.arange(120), 40, seed=s, strategy=name).kept for s in (3, 3, 4)]
    np.testing.assert_array_equal(kept[0], kept[1])
    differs = (kept[0] != kept[2]).any()
    # The copies that stay are the seed's choice too, so only chance can change more than them.
    assert differs or name not in ("random", "balanced")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "x", [np.ones((6, 3), np.float16), np.zeros((6, 3), np.float32), np.eye(6, 3, dtype=np.float32)]
)
@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5]])
def test_identical_and_empty_embeddings(name, x, labels):
    assert len(set(run(name, x, labels, 4))) == 4
    assert run(name, x[:0], [], 3) == []
    assert run(name, x[:1], [0], 3) == [0]


# By hand


def test_random_is_uniform():
    x = np.zeros((10, 2), np.float32)
    chosen = [run("random", x, [0] * 10, 3, seed=s) for s in range(400)]
    count = np.bincount(np.ravel(chosen), minlength=10)
    assert count.sum() == 1200
    assert 85 < count.min() <= count.max() < 160  # 120 each, deviation 9


def test_entropy_takes_the_highest_and_nan_last():
    x = np.zeros((4, 2), np.float32)
    assert run("entropy", x, [0] * 4, 3, entropy=[2, np.nan, 5, 2]) == [2, 0, 3]


def test_dedup_keeps_what_a_threshold_would_leave():
    # One cluster around 39 degrees, from far to near: 90, 0, 5, 60, 40; nearest before: -, 90, 5, 30, 20.
    x = circle(0, 5, 40, 60, 90)
    assert run("dedup", x, [0] * 5, 5) == [4, 0, 3, 2, 1]
    # Alone in their clusters, all are kept at any threshold.
    assert run("dedup", x, [0, 1, 2, 3, 4], 5) == [0, 1, 2, 3, 4]


def test_dedup_in_blocks(monkeypatch):
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    labels = np.arange(90) % 2
    whole = run("dedup", x, labels, 90)
    monkeypatch.setattr("rsprune.strategies.BLOCK_BYTES", 4 * 45 * 7)
    assert run("dedup", x, labels, 90) == whole


def test_proportional_takes_the_closest_of_clusters_by_size():
    # Means 1 and 11; the clusters' images go by 4 / 0.5, 1.5, 2.5, 3.5 against 2 / 0.5, 1.5.
    x = line(-2, 0.5, 1.5, 4, 10, 12)
    assert run("proportional", x, [0, 0, 0, 0, 1, 1], 6) == [1, 4, 2, 0, 5, 3]
    assert run("proportional", x, [0, 0, 0, 0, 1, 1], 3) == [1, 4, 2]


def test_balanced_gives_every_cluster_the_same():
    x = line(*range(20))
    labels = np.repeat([0, 1, 2], [14, 4, 2])
    assert np.bincount(labels[run("balanced", x, labels, 6)]).tolist() == [2, 2, 2]
    assert np.bincount(labels[run("balanced", x, labels, 12)]).tolist() == [6, 4, 2]
    assert len({tuple(run("balanced", x, labels, 3, seed=s)) for s in range(10)}) > 1


def test_kcenter_takes_the_farthest():
    # The mean points to 35 degrees; then 180 is farthest, then 90, then the two left are 30 and 10 away.
    assert run("kcenter", circle(0, 30, 90, 100, 180), [0] * 5, 1) == [2]
    assert run("kcenter", circle(0, 40, 50, 170), [0] * 4, 4) == [2, 3, 0, 1]


def test_density_prefers_the_spread_cluster_and_edges():
    x = circle(-1, 0, 1, 70, 90, 110, 179, 180, 181)
    labels = np.repeat([0, 1, 2], 3)
    got = run("density", x, labels, 9)
    # Spread 0.0402 and 0.0001, to the others 1 and 1.5: weights of exp(0.4) to 1, so 1.49 / 1.5 for a second seat.
    assert labels[got[:4]].tolist().count(1) == 2
    assert labels[got[0]] == labels[got[3]] == 1
    assert set(got[:4]) & {1, 4, 7} == set()  # the centres come last
    assert set(got[6:]) == {1, 4, 7}


def test_rsprune_divides_by_scene_then_by_cluster():
    x = np.random.default_rng(0).normal(size=(25, 3)).astype(np.float32)
    scenes, labels = np.repeat([0, 1], [16, 9]), np.repeat([0, 1, 2], [8, 8, 9])
    settings = {"alpha": 0.0, "beta": 0.0}
    got = run("rsprune", x, labels, 7, scenes=scenes, scene_alpha=0.5, **settings)
    assert np.bincount(scenes[got]).tolist() == [4, 3]  # roots of 16 and 9
    assert np.bincount(labels[got]).tolist() == [2, 2, 3]
    got = run("rsprune", x, labels, 6, scenes=scenes, scene_alpha=0.0, **settings)
    assert np.bincount(scenes[got]).tolist() == [3, 3]
    got = run("rsprune", x, labels, 6, scenes=scenes, scene_alpha=None, **settings)
    assert np.bincount(labels[got]).tolist() == [2, 2, 2]
    got = run("rsprune", x, labels, 6, **settings)  # nobody told scenes apart
    assert np.bincount(labels[got]).tolist() == [2, 2, 2]


def test_a_cluster_across_two_scenes_has_a_part_in_each():
    x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    scenes = np.repeat([0, 1], [10, 2])
    got = run("rsprune", x, [0] * 12, 4, scenes=scenes, scene_alpha=0.0)
    assert np.bincount(scenes[got]).tolist() == [2, 2]


def test_unknown_images_get_at_most_their_share_of_what_their_number_gives():
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    scenes = np.repeat([-1, 0, 1], [8, 16, 16])

    def seats(unknown, budget=20):
        chosen = run("rsprune", x, [0] * 40, budget, scenes=scenes, scene_alpha=0.5, unknown=unknown)
        return int((scenes[chosen] == -1).sum())

    assert seats(1.0) == 4  # a fifth of the images
    assert seats(0.5) == 2  # 0.5 * 8 / 32 as much as the others
    assert seats(0.0) == 0
    assert seats(0.0, 40) == 8  # when all others are taken
    assert seats(100.0) == 5  # 2.8 to 4 and 4 by the roots of the sizes
    everything = run("rsprune", x[:8], [0] * 8, 3, scenes=scenes[:8], unknown=0.5)
    assert len(everything) == 3


@pytest.mark.parametrize("rank", METHODS)
def test_every_ranking_of_rsprune(rank):
    first, second = (decided(pool(), np.arange(120), 40, seed=s, rank=rank) for s in (1, 2))
    assert first.kept.sum() == second.kept.sum() == 40
    if rank == "random":
        assert (first.kept != second.kept).any()


def test_clusters_of_means():
    got = Clusters.of(line(0, 4, 5), np.array([7, 7, 2]))
    assert got.labels.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(got.centers, [[5], [2]])
    np.testing.assert_array_equal(got.distance, [4, 4, 0])


# Pools


def test_what_a_strategy_chooses_from():
    images = pool()
    reasons = {}
    for of in ("auto", "readable", "eligible", "distinct"):
        got = decided(images, np.arange(120), 20, strategy="random", pool=of)
        reasons[of] = {REASONS[code] for code in got.reason}
        assert (got.rank >= 0).sum() == np.isin(got.reason, [0, REASONS.index("over_budget")]).sum()
    assert reasons["auto"] == reasons["readable"] == {"kept", "over_budget", "unreadable"}
    assert reasons["eligible"] == reasons["readable"] | {"noise", "low_entropy"}
    assert reasons["distinct"] >= reasons["eligible"] | {"exact_duplicate"}
    everything = decided(images, np.arange(120), 119, strategy="random")
    assert everything.kept[:8].all()
    assert np.isnan(everything.threshold).all()


# Plug-ins


@pytest.fixture
def plugin(monkeypatch):
    """Offers an object as the strategy `mine` of an installed package."""

    def offer(value):
        monkeypatch.setattr(plugins, "find", lambda group, name: value if name == "mine" else None)

    return offer


def good(embeddings, scores, clusters, budget, seed):
    return list(range(budget))


def test_a_package_adds_a_strategy(plugin):
    plugin(good)
    got = decided(pool(), np.arange(120), 20, strategy="mine")
    assert got.kept.sum() == (got.rank >= 0).sum() == 20
    assert not got.kept[:8].any()  # a function is given what passed the filters
    plugin(Strategy("another name", good, pool="readable"))
    assert load_strategy("mine") == Strategy("mine", good, pool="readable")
    with pytest.raises(ConfigError, match=r"no strategy 'yours': give one of random, .*, rsprune"):
        load_strategy("yours")


def test_entry_points_are_read(monkeypatch, tmp_path):
    package = tmp_path / "someone_rsprune"
    package.mkdir()
    (package / "__init__.py").write_text("def first(e, s, c, budget, seed):\n    return range(budget)\n")
    info = tmp_path / "someone_rsprune-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someone-rsprune\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rsprune.strategies]\nfirst = someone_rsprune:first\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert load_strategy("first").order(np.zeros((5, 2)), {}, SimpleNamespace(), 2, 0).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="rsprune, first"):
        load_strategy("second")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda n: [0] * n, r"mine returned 19 of its 20 rows more than once"),
        (lambda n: range(n - 1), r"mine returned 19 rows but was asked for 20"),
        (lambda n: range(n + 1), r"mine returned 21 rows but was asked for 20"),
        (lambda n: [*range(n - 1), 5000], r"mine returned row 5000, but rows go from 0 to \d+"),
        (lambda n: [*range(n - 1), -1], r"mine returned row -1"),
        (lambda n: np.linspace(0, 1, n), r"mine returned float64 \[20\] instead of row numbers"),
        (lambda n: np.ones((n, 2), int), r"mine returned int64 \[20, 2\]"),
        (lambda n: None, r"mine returned object \[\]"),
    ],
)
def test_a_broken_strategy_is_named(plugin, returned, message):
    plugin(lambda embeddings, scores, clusters, budget, seed: returned(budget))
    with pytest.raises(RspruneError, match=message):
        decided(pool(), np.arange(120), 20, strategy="mine")


def test_what_is_no_strategy_is_named(plugin):
    plugin("a text")
    with pytest.raises(RspruneError, match="strategy mine is neither a function nor a Strategy, but str"):
        load_strategy("mine")
    with pytest.raises(RspruneError, match="strategy mine wants the pool 'all': it must be one of readable"):
        Strategy("mine", good, pool="all")
