"""Runs commands in forks of one warm process, and lets each of them meet its fault.

A line of JSON on stdin is an order, one on stdout its outcome. A fault is met at a file-system event below the run
folder: a file opened for writing, a sync, a rename, a removal, a new folder; or at an image that is read, or a part
that begins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import multiprocessing
import os
import re
import signal
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rsprune import cli, engine, reading, stages
from rsprune.errors import StoreError

_WRITING = os.O_WRONLY | os.O_RDWR
_HELD = (".lock", "log.jsonl", "events.jsonl")


class Events:
    """Tells what happens, in the words of `name`, and does what the fault says when it is its turn."""

    def __init__(self, out: Path, fault: dict[str, str] | None):
        self.out, self.fault, self.broken, self.in_part = str(out), fault, False, False
        self.log = out.with_name("events.jsonl")
        self.hit = out.with_name("hit")

    def audit(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & _WRITING:
            self.happens("open", arguments[0])
        elif event in ("os.rename", "os.remove", "os.mkdir"):
            self.happens(event[3:], str(arguments[1] if event == "os.rename" else arguments[0]))

    def name(self, what: str, where: str) -> str:
        """The same in every run; empty where it is none of the run folder's business."""
        if what in ("read", "part"):
            return f"{what} {where}"
        if not where.startswith(self.out + os.sep) or where.endswith(_HELD):
            return ""
        return f"{what} " + re.sub(r"\.(.+)\.\d+\.tmp$", r"\1", where[len(self.out) + 1 :])

    def happens(self, what: str, where: str) -> None:
        name = self.name(what, where)
        if not name:
            return
        if self.fault is None:
            with self.log.open("a") as f:
                f.write(json.dumps([name, self.in_part]) + "\n")
        elif self.broken or name == self.fault["at"]:
            self.strike(what, name)

    def strike(self, what: str, name: str) -> None:
        kind = self.fault["kind"]
        if kind in ("parent", "worker"):
            with contextlib.suppress(FileExistsError):  # once in all processes and attempts
                os.close(os.open(self.hit, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "disk" and what not in ("read", "part", "remove"):
            self.broken = True  # a full disk stays full
            self.hit.touch()
            raise OSError(errno.ENOSPC, "No space left on device", name)
        elif kind == "store" and what == "read":
            self.hit.touch()
            raise StoreError("the store does not answer")

    def is_next(self, name: str) -> bool:
        """Whether the fault is met there, which it is once unless a disk is full."""
        if self.fault is None:
            return False
        return self.broken or (name == self.fault["at"] and not self.hit.exists())


def install(events: Events) -> None:
    attempt, image, item_of = engine.attempt, reading.Reader.image, stages.scan.item_of

    def sync(descriptor: int) -> None:  # which only a power cut could tell from nothing
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        name = events.name("sync", str(path))
        if name and events.is_next(name) and path.is_file():
            os.ftruncate(descriptor, path.stat().st_size // 2)  # as much as got there
        events.happens("sync", str(path))

    @functools.wraps(attempt)
    def observed(function, task):
        events.in_part = True
        try:
            events.happens("part", f"{function.__name__} {getattr(task, 'name', '')}")
            return attempt(function, task)
        finally:
            events.in_part = False

    def read(self, row):
        events.happens("read", row["id"])
        return image(self, row)

    def header_of(row):
        events.happens("read", f"{row['id']} header")
        return item_of(row)

    os.fsync, engine.attempt = sync, observed
    reading.Reader.image, stages.scan.item_of = read, header_of
    sys.addaudithook(events.audit)


@functools.cache
def pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))


def forked_pool(workers: int) -> ProcessPoolExecutor:
    if pool(workers)._broken:
        pool.cache_clear()
    return pool(workers)


def obey(order: dict) -> int:
    os.setpgid(0, 0)
    out = Path(order["out"])
    said = os.open(out.with_name("said.txt"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    install(Events(out, order["fault"]))
    try:
        cli.main(order["arguments"])
    except SystemExit as done:
        return done.code or 0
    return 0


def wait_until_free(lock: Path) -> None:
    """They were forked, so that the lock is theirs as well until they are gone."""
    if lock.exists():
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def main() -> None:
    engine.PAUSE, engine._pool = 0.0, forked_pool
    stages.write_page = lambda job: None  # takes longer than all the rest
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            code = 99
            try:
                code = obey(order)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError):  # workers of a parent that was killed
            os.killpg(child, signal.SIGKILL)
        wait_until_free(Path(order["out"]) / ".lock")
        print(code, flush=True)


if __name__ == "__main__":
    main()
