from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rsprune.config import SelectConfig
from rsprune.errors import ConfigError
from rsprune.explain import explain, format_explanation, smallest_keep
from rsprune.files import write_table
from rsprune.sources import ids
from run_folder import HOSTILE, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("explain"))


def of_reason(run, reason):
    return [d for d in run.decisions.to_pylist() if d["reason"] == reason]


def test_kept(run):
    for position, name in enumerate(run.kept_ids, 1):
        facts = explain(run, name)
        assert (facts["kept"], facts["reason"], facts["position"]) == (True, "kept", position)
        assert facts["nearest_kept"] is None
        text = format_explanation(facts)
        assert text.startswith(f"{name} was kept.\n")
        assert f"In the whole ranking it is {position} of 27; the first 10 were kept." in text
        assert f"(--n {position} or more)" in text


def test_over_budget_says_from_which_budget_on(run):
    for d in of_reason(run, "over_budget"):
        facts = explain(run, d["id"])
        assert facts["position"] == d["rank"] + 1 > 10
        keep = float(re.search(r"It would be kept from --keep ([\d.]+) on", facts["change"])[1])
        assert SelectConfig(keep=keep).budget(51) == d["rank"] + 1
        assert SelectConfig(keep=keep - 0.001).budget(51) == d["rank"]
        assert (
            f"The nearest kept image is {d['nearest_kept']} (cosine {d['nearest_kept_similarity']:.4f})."
            in (format_explanation(facts))
        )


def test_over_budget_of_a_strategy_that_ranks_only_what_it_keeps(tmp_path):
    run = make_run(tmp_path)
    table = run.decisions
    rank = pc.if_else(table["kept"], table["rank"], pa.scalar(None, pa.int64()))
    table = table.set_column(table.column_names.index("rank"), "rank", rank)
    write_table(run.path / "decisions.parquet", table)
    facts = explain(run, of_reason(run, "over_budget")[0]["id"])
    assert (facts["position"], facts["cluster"]["position"]) == (None, None)
    assert facts["change"].startswith("The strategy ranks only what it keeps")
    assert format_explanation(facts).endswith(facts["change"])


def test_budget_that_is_named_really_keeps_the_image(tmp_path):
    first = make_run(tmp_path / "a")
    image = of_reason(first, "over_budget")[0]["id"]
    keep = float(re.search(r"--keep ([\d.]+)", explain(first, image)["change"])[1])
    assert image in make_run(tmp_path / "b", keep=keep).kept_ids
    assert image not in make_run(tmp_path / "c", keep=keep - 0.02).kept_ids


def test_low_entropy(run):
    d = of_reason(run, "low_entropy")[3]
    facts = explain(run, d["id"])
    text = format_explanation(facts)
    assert facts["position"] is None
    assert f"Its entropy is {d['score']:.2f} bits, below the threshold of {d['threshold']:.2f}." in text
    assert float(re.search(r"--entropy-min ([\d.]+) or less", text)[1]) <= d["score"]
    assert "in cluster 3 of 12 images, 0 of which were kept." in text


def test_noise_and_nodata(run):
    noise = format_explanation(explain(run, "noise/0.png"))
    assert "dropped: noise" in noise
    assert "autocorrelation 0.01 (at least 0.1)" in noise
    assert 0.0098 < float(re.search(r"--autocorrelation-min ([\d.]+) or less", noise)[1]) <= 0.01
    nodata = format_explanation(explain(run, "edge/1.png"))
    assert "85.0 % nodata (at most 50 %)" in nodata
    assert 0.85 <= float(re.search(r"--nodata-max ([\d.]+) or more", nodata)[1]) < 0.8502


def test_exact_duplicate_names_the_one_that_stays(run):
    copies = of_reason(run, "exact_duplicate")
    hashes = dict(zip(*(run.table("score")[c].to_pylist() for c in ("id", "content_hash")), strict=True))
    for d in copies:
        facts = explain(run, d["id"])
        stays = facts["duplicate_of"]
        assert hashes[stays] == hashes[d["id"]]
        assert stays not in [c["id"] for c in copies]
        assert f"It is a duplicate of {stays} (cosine 1.0000)." in format_explanation(facts)
        assert "No setting keeps both" in facts["change"]


def test_near_duplicate_names_the_one_that_stays(run):
    for d in of_reason(run, "near_duplicate"):
        facts = explain(run, d["id"])
        assert facts["duplicate_of"] == "woods/tile 08.png"
        x = run.embeddings().astype(np.float64)
        rows = [pc.index(run.decisions["id"], name).as_py() for name in (d["id"], "woods/tile 08.png")]
        a, b = (x[r] / np.linalg.norm(x[r]) for r in rows)
        assert facts["duplicate_similarity"] == pytest.approx(a @ b, abs=1e-4)
        assert facts["duplicate_similarity"] >= 0.98
        named = float(re.search(r"--near-duplicate ([\d.]+) or more", facts["change"])[1])
        assert facts["duplicate_similarity"] < named < facts["duplicate_similarity"] + 2e-4
        assert facts["thresholds"]["near_duplicate"] == 0.98
        assert facts["thresholds"]["entropy"] == pytest.approx(of_reason(run, "kept")[0]["threshold"])


def test_unreadable(run):
    facts = explain(run, "broken.png")
    assert facts["error"] == "is damaged"
    assert facts["scores"]["entropy"] is None
    text = format_explanation(facts)
    assert "It could not be used: it is damaged." in text
    assert "entropy" not in text
    assert "Mend or replace the file" in text


def test_facts_are_plain_json(run):
    for name in run.decisions["id"].to_pylist():
        facts = explain(run, name)
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts
        assert "nan" not in format_explanation(facts).lower()
        assert "None" not in format_explanation(facts)


def test_cluster_numbers_are_those_of_the_decisions(run):
    for d in run.decisions.to_pylist():
        cluster = explain(run, d["id"])["cluster"]
        if d["cluster"] < 0:
            assert cluster is None
            continue
        mine = [o for o in run.decisions.to_pylist() if o["cluster"] == d["cluster"]]
        assert cluster["size"] == len(mine)
        assert cluster["kept"] == sum(o["kept"] for o in mine)
        ranks = sorted(o["rank"] for o in mine if o["rank"] is not None)
        assert cluster["position"] == (None if d["rank"] is None else ranks.index(d["rank"]) + 1)


def test_hostile_ids_are_found(run):
    for name in HOSTILE:
        assert explain(run, ids.encode(name))["id"] == ids.encode(name)


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("tile 08.png", "woods/tile 08.png"),
        ("/data/tiles/BROKEN.png", "broken.png"),
        ("wods/tle 08.png", "woods/tile 08.png"),
    ],
)
def test_unknown_ids_come_with_those_that_may_be_meant(run, unknown, meant):
    with pytest.raises(ConfigError, match=re.escape(f"has no image {unknown!r}; did you mean {meant}")):
        explain(run, unknown)


@pytest.mark.parametrize("unknown", ["", "zzzzzzzzzzzzzzzzzzzzzzzzzz", "(["])
def test_unknown_ids_without_a_like(run, unknown):
    with pytest.raises(ConfigError, match=r"its ids are in decisions\.parquet"):
        explain(run, unknown)


@pytest.mark.parametrize("readable", [1, 2, 9, 51, 1000, 12_345])
def test_smallest_keep(readable):
    for position in {1, 2, readable // 3 + 1, readable}:
        if position > readable:
            continue
        keep = smallest_keep(position, readable)
        assert SelectConfig(keep=keep).budget(readable) >= position
        step = 10 ** -max(2, len(str(readable)))
        if position > 1:
            assert SelectConfig(keep=keep - step).budget(readable) < position
