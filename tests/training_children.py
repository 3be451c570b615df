"""Trainings in processes that are killed, or that share the work; run as a script, so that torch is imported once.

python training_children.py DATA WORK
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import numpy as np
import torch

import training_case
from rsprune.training import checkpoint, ema, train
from training_case import settings

KILLS = 5


def child(work) -> int:
    """Forks a process for `work`; returns its process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(data: Path, work: Path) -> None:
    """One training in peace, and one that is killed five times: in a step, or while a checkpoint is written."""
    wish = settings(data, max_train_steps=24, checkpointing_steps=3, train_batch_size=2, random_flip=True)
    train.train(wish, work / "whole", device="cpu")
    rng = np.random.default_rng(3)
    for number in range(KILLS):
        countdown = [int(rng.integers(1, 4) if number % 2 else rng.integers(3, 7))]

        def until_killed(number=number, countdown=countdown) -> None:
            if number % 2:  # in the middle of a checkpoint: one of its files is half written
                save = checkpoint.save_tensors

                def save_some(path, values):
                    countdown[0] -= 1
                    if not countdown[0]:
                        path.write_bytes(b"half")
                        die()
                    save(path, values)

                checkpoint.save_tensors = save_some
            else:
                update = ema.Ema.update

                def update_some(*args):
                    update(*args)
                    countdown[0] -= 1
                    if not countdown[0]:
                        die()

                ema.Ema.update = update_some
            train.train(wish, work / "killed", device="cpu")

        _, status = os.waitpid(child(until_killed), 0)
        assert os.WIFSIGNALED(status), "the training ended before it was killed"
        assert os.WTERMSIG(status) == signal.SIGKILL
    train.train(wish, work / "killed", device="cpu")
    assert training_case.losses(work / "whole") == training_case.losses(work / "killed")
    whole, other = (checkpoint.load(work / name / "checkpoint-24")[0] for name in ("whole", "killed"))
    assert whole.keys() == other.keys() == {"model", "ema", "optimizer"}
    for file, tensors in whole.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[file][name]), f"{file} {name}"
    assert not list((work / "killed").glob(".*.tmp"))


def shared(data: Path, work: Path) -> None:
    """Batches of 8: in one process, in two halves, and in two processes with two halves each."""
    common = {"max_train_steps": 5, "random_flip": True}
    train.train(settings(data, train_batch_size=8, **common), work / "one", device="cpu")
    halves = settings(data, train_batch_size=4, gradient_accumulation_steps=2, **common)
    train.train(halves, work / "halves", device="cpu")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]

    def rank(number: int):
        def work_on() -> None:
            os.environ.update(
                RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
            )  # fmt: skip
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)  # the parent was a single process
            quarters = settings(data, train_batch_size=2, gradient_accumulation_steps=2, **common)
            state = train.train(quarters, work / "two", device="cpu")
            assert state["images_per_step"] == 8

        return work_on

    pids = [child(rank(0)), child(rank(1))]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    one = training_case.losses(work / "one")
    for name in ("halves", "two"):
        np.testing.assert_allclose(training_case.losses(work / name), one, rtol=0, atol=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed(Path(sys.argv[1]), Path(sys.argv[2]))
    shared(Path(sys.argv[1]), Path(sys.argv[2]))
