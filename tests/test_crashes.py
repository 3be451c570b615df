"""Whatever ends a run: the same command finishes it, and nothing tells that it was ever interrupted."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import collection

POINTS = 50
KINDS = ("worker", "parent", "disk", "store")
SETTINGS = [
    "--part-size", "4", "--max-bad", "0.4", "--keep", "0.3", "--encoder", "rcf", "--entropy-drop", "0.1", "--transform-sample", "12",
]  # fmt: skip


class Server:
    """A warm process that runs commands, one after the other (`fault_server`)."""

    def __init__(self):
        program = Path(__file__).with_name("fault_server.py")
        self.process = subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, images: Path, out: Path, *, workers: int = 1, fault: dict[str, str] | None = None) -> int:
        """Exit code of the command, negative for the signal that killed it; `fault["at"]` is never met by {}."""
        out.parent.mkdir(exist_ok=True)
        arguments = ["run", str(images), "-o", str(out), "--workers", str(workers), *SETTINGS]
        print(
            json.dumps({"arguments": arguments, "out": str(out), "fault": fault}),
            file=self.process.stdin,
            flush=True,
        )
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """29 small images in 16 bits, so that their radiometry is estimated."""
    root = tmp_path_factory.mktemp("images")
    for i, tile in enumerate(collection.tiles()):
        pixels = np.asarray(Image.open(tile).convert("L"))[:32, :32].astype(np.uint16) * 40 + 300
        collection.save(root / f"{i % 3}/{i:02d}.png", pixels)
        if i < 5:
            shutil.copy(root / f"{i % 3}/{i:02d}.png", root / f"{i % 3}/copy {i}.png")
    return root


NEVER = {"at": "", "kind": "parent"}


@pytest.fixture(scope="module")
def undisturbed(server, images, tmp_path_factory):
    """The run, and the events of it by name in the order of the first time, with whether a worker meets them."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert server.run(images, out) == 0, said(out)
    events: dict[str, bool] = {}
    for line in out.with_name("events.jsonl").read_text().splitlines():
        events.setdefault(*json.loads(line))
    return out, events


def said(out: Path) -> str:
    return out.with_name("said.txt").read_text()


def results(out: Path) -> dict[str, bytes]:
    files = [f for f in out.rglob("*") if f.is_file() and f.name not in (".lock", "log.jsonl", "config.toml")]
    return {str(f.relative_to(out)): f.read_bytes() for f in files}


def points(events: dict[str, bool]) -> list[dict[str, str]]:
    """Where faults are met, in the order of the events: 50 seeded ones of all that happen, each kind in its turn."""
    order = {name: k for k, name in enumerate(events)}
    kinds = {
        "worker": [name for name, in_part in events.items() if in_part],
        "parent": list(events),
        "disk": [name for name in events if not name.startswith(("read", "part", "remove"))],
        "store": [name for name in events if name.startswith("read")],
    }
    chance, chosen = random.Random(6), []
    for kind in KINDS * (POINTS // len(KINDS) + 1):
        # Most events are images that are read: what happens, and in which folder, is chosen first.
        alike = chance.choice(sorted({sort(name) for name in kinds[kind]}))
        at = chance.choice([name for name in kinds[kind] if sort(name) == alike])
        chosen.append({"kind": kind, "at": at})
    return sorted(chosen[:POINTS], key=lambda point: order[point["at"]])


def sort(event: str) -> tuple[str, str]:
    what, _, where = event.partition(" ")
    return what, where.partition(" ")[0] if what == "part" else where.rpartition("/")[
        0
    ] if what != "read" else ""


def test_a_fault_at_any_point_leaves_no_trace(server, images, undisturbed, tmp_path):
    expected = results(undisturbed[0])
    todo = points(undisturbed[1])
    chains = [todo[k::10] for k in range(10)]  # faults that follow each other in one folder
    for k, chain in enumerate(chains):
        out = tmp_path / f"{k}" / "run"
        for n, fault in enumerate(chain):
            hit = out.with_name("hit")
            hit.unlink(missing_ok=True)
            workers = 2 if fault["kind"] == "worker" else 1
            code = server.run(images, out, workers=workers, fault=fault)
            if not hit.exists():  # that was done before, so nothing has stopped this command
                assert code == 0, said(out)
                assert_same(out, expected, chain[:n])
                out = tmp_path / f"{k} {n}" / "run"
                code = server.run(images, out, workers=workers, fault=fault)
                assert out.with_name("hit").exists(), fault
            expected_codes = {"worker": {0}, "parent": {-9}, "disk": {1}, "store": {0, 1, 5}}[fault["kind"]]
            assert code in expected_codes, (fault, code, said(out))
            if fault["kind"] == "worker":
                assert_same(out, expected, chain[: n + 1])
        assert server.run(images, out, fault=NEVER) == 0, said(out)
        assert_same(out, expected, chain)


def assert_same(out: Path, expected: dict[str, bytes], after: list[dict[str, str]]) -> None:
    ours = results(out)
    assert ours.keys() == expected.keys(), after
    assert [name for name in ours if ours[name] != expected[name]] == [], after
