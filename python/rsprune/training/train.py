"""The training loop, to be read from top to bottom; ``accelerate launch -m rsprune.training.train`` runs it."""

from __future__ import annotations

import contextlib
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from accelerate import Accelerator
from torch.nn.functional import mse_loss, pixel_unshuffle

from rsprune.errors import ConfigError, RspruneError
from rsprune.run import Run, digest, write_atomic, write_json
from rsprune.training import checkpoint, models, publish
from rsprune.training.config import SampleConfig, TrainConfig, differences
from rsprune.training.ema import Ema
from rsprune.training.log import Log, check_tracker
from rsprune.training.objective import learning_rate, make_objective
from rsprune.training.pool import Pool, load
from rsprune.training.sample import draw, make_pipeline
from rsprune.training.sampler import Sampler

STATE = "trainer_state.json"
SAY_EVERY = 10.0  # seconds


class DivergedError(RspruneError):
    """The loss is not a number any more."""

    exit_code = 1


def train(
    settings: TrainConfig,
    output: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains on `settings.data` up to `settings.max_train_steps`, from the newest checkpoint in `output` on.

    Returns:
        The last ``trainer_state.json``.

    Raises:
        ConfigError: The data, the settings or what lies in `output` cannot be used.
        DivergedError: The loss is not finite; the last good checkpoint is kept.
    """
    check_tracker(settings.report_to)
    tracker = settings.report_to if settings.report_to in ("tensorboard", "wandb") else None
    accelerator = Accelerator(cpu=device == "cpu", log_with=tracker, project_dir=str(output))
    main, world = accelerator.is_main_process, accelerator.num_processes
    say = say if main else lambda _: None
    with contextlib.ExitStack() as stack, out_of_memory():
        if main:
            check_folder(output)
            stack.enter_context(Run(output).lock())
        pool = load(settings, say=say)
        resolution = settings.resolution or pool.pixels.shape[1]
        model = models.build(
            settings, bands=pool.pixels.shape[3], resolution=resolution, conditions=len(pool.names)
        )
        micro, forwards = settings.train_batch_size, settings.gradient_accumulation_steps
        per_step = micro * forwards * world
        state = {
            "step": 0,
            "images_seen": 0,
            "max_train_steps": settings.max_train_steps,
            "images_per_step": per_step,
            "resolution": resolution,
            "parameters": sum(p.numel() for p in model.parameters()),
            "data": pool.digest,
            "network": digest({k: v for k, v in model.config.items() if not k.startswith("_")}),
            "settings": settings.identity(),
            "versions": versions(),
        }
        if main:
            prepare_folder(output, state, settings, overwrite=overwrite)
        accelerator.wait_for_everyone()

        model = model.to(accelerator.device)
        ema = Ema(model, decay=settings.ema_decay) if settings.use_ema else None
        # Norms and biases are not decayed (as in nanoGPT): they have one dimension.
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.adam_weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        start = resume(settings, output, state, model, ema, optimizer, say)
        accelerator.wait_for_everyone()  # the main process may delete checkpoints from here on
        ddp = accelerator.prepare_model(model)
        objective = make_objective(settings)
        sampler = Sampler(
            pool,
            seed=settings.seed,
            resolution=resolution,
            center_crop=settings.center_crop,
            random_flip=settings.random_flip,
            condition_dropout=settings.condition_dropout,
        )
        batches = Batches(sampler, pool, accelerator.device, settings)
        autocast = torch.autocast(
            accelerator.device.type, torch.bfloat16, enabled=settings.mixed_precision == "bf16"
        )
        log = Log(output, settings.report_to, step=start, accelerator=accelerator) if main else None
        if log:
            stack.callback(log.close)

        def save(step: int) -> None:
            tensors = {
                "model": model.state_dict(),
                "optimizer": checkpoint.optimizer_tensors(optimizer, model),
                **({"ema": ema.model.state_dict()} if ema else {}),
            }
            checkpoint.save(output, step, tensors, state)
            checkpoint.prune(output, settings.checkpoints_total_limit)
            publish_model()

        def publish_model() -> None:
            publish.write_model(
                output, ema.model if ema else model, objective.scheduler, settings, pool.names
            )
            publish.write_card(output, settings, pool, state)
            write_json(output / STATE, state)

        def validate(step: int) -> None:
            name = models.FOLDERS[settings.model]
            network = ema.model if ema else model
            network.eval()
            pipe = make_pipeline(
                name,
                network,
                objective.scheduler,
                labels=list(pool.names),
                pixel_unshuffle=settings.pixel_unshuffle,
            )
            wish = SampleConfig(n=settings.validation_images, seed=settings.seed)
            images = np.concatenate(list(draw(pipe, wish)))
            publish.write_grid(output / "samples" / f"step-{step:06d}.png", images)
            publish.write_curve(output)
            model.train()

        pending: list[tuple[float, torch.Tensor, torch.Tensor]] = []

        def look(step: int) -> float:
            """Writes the losses up to `step`; waits for the device. Raises `DivergedError`."""
            values = torch.stack([torch.stack(entry[1:]) for entry in pending]).tolist()
            first = step - len(pending) + 1
            for i, ((rate, *_), (loss, norm)) in enumerate(zip(pending, values, strict=True), first):
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise DivergedError(
                        f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite at step {i}; "
                        f"{last_good(output)}; lower --learning-rate (it is {settings.learning_rate:g})"
                    )
                if log:
                    log.write(i, loss=loss, grad_norm=norm, lr=rate, images_seen=i * per_step)
            if log:
                log.flush()
            pending.clear()
            return values[-1][0]

        if main and start == settings.max_train_steps:  # killed after the last checkpoint, before this
            publish_model()
        model.train()
        began = said = time.monotonic()
        for step in range(start + 1, settings.max_train_steps + 1):
            rate = learning_rate(step - 1, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # For dropout, if the network has any: everything else random is the sampler's.
            torch.manual_seed((settings.seed + step * world + accelerator.process_index) % 2**63)
            loss = torch.zeros((), device=accelerator.device)
            for forward in range(forwards):
                begin = (step - 1) * per_step + (forward * world + accelerator.process_index) * micro
                inputs, timestep, target, label = batches.at(begin, micro, objective)
                last = forward == forwards - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(ddp):
                    with autocast:
                        predicted = ddp(inputs, timestep=timestep, class_labels=label).sample
                    part = mse_loss(predicted.float(), target) / forwards
                    accelerator.backward(part)
                loss += part.detach()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if ema:
                ema.update(model, step)
            pending.append((rate, accelerator.reduce(loss, "mean") if world > 1 else loss, norm.detach()))

            end = step == settings.max_train_steps
            checkpoints = step % settings.checkpointing_steps == 0 or end
            draws = (step % settings.validation_steps == 0 or end) and settings.validation_images
            if step % settings.logging_steps == 0 or checkpoints or draws:
                shown = look(step)
                now = time.monotonic()
                if now - said > SAY_EVERY or end:
                    said, speed = now, (step - start) * per_step / (now - began)
                    left = (settings.max_train_steps - step) * per_step / speed
                    say(
                        f"step {step:,} of {settings.max_train_steps:,}, loss {shown:.4f}, "
                        f"{speed:.0f} images/s, about {left:.0f} s left"
                    )
            state.update(step=step, images_seen=step * per_step)
            if main and checkpoints:
                save(step)
            if main and draws:
                validate(step)
        accelerator.wait_for_everyone()
        return state


@dataclass
class Batches:
    """Tensors on the device, from a pool that lies there as well: it is 8-bit, and small beside a network."""

    sampler: Sampler
    pool: Pool
    device: torch.device
    settings: TrainConfig

    def __post_init__(self) -> None:
        self._pixels = torch.from_numpy(self.pool.pixels).to(self.device)
        labels = self.pool.labels
        self._labels = None if labels is None else np.where(labels < 0, len(self.pool.names), labels)

    def at(
        self, begin: int, count: int, objective: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Input, time, target and label of the network for the images at positions `begin` and on."""
        drawn = self.sampler.batch(np.arange(begin, begin + count))
        rows, ys, xs, noise, time, normal_time = (
            torch.from_numpy(a).to(self.device, non_blocking=True)
            for a in (drawn.rows, drawn.ys, drawn.xs, drawn.noise, drawn.time, drawn.normal_time)
        )
        pixels = self._pixels[rows[:, None, None], ys[:, :, None], xs[:, None, :]]  # [B, R, R, C]
        image = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        k = self.settings.pixel_unshuffle
        image, noise = pixel_unshuffle(image, k).contiguous(), pixel_unshuffle(noise, k)
        return *objective.task(image, noise, time, normal_time), self._label(drawn.rows, drawn.unconditional)

    def _label(self, rows: np.ndarray, unconditional: np.ndarray) -> torch.Tensor | None:
        if self._labels is None:  # a transformer always wants one
            zeros = torch.zeros(len(rows), dtype=torch.long, device=self.device)
            return zeros if self.settings.model == "dit" else None
        label = np.where(unconditional, len(self.pool.names), self._labels[rows])
        return torch.from_numpy(label).to(self.device)


# The folder -----------------------------------------------------------------------------------------------


def check_folder(output: Path) -> None:
    """Raises `ConfigError` where `output` holds what no training wrote; cheap, so before the data is read."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file, not a folder: choose another --output")
    if (output / "manifest").is_dir():
        raise ConfigError(f"{output} is a run folder: choose another folder for the model with --output")
    if output.is_dir() and not (output / STATE).is_file() and {p.name for p in output.iterdir()} - {".lock"}:
        raise ConfigError(f"{output} holds files that no training wrote: choose another --output")


def prepare_folder(output: Path, state: dict[str, Any], settings: TrainConfig, *, overwrite: bool) -> None:
    """Makes `output` the folder of this training. Raises `ConfigError` where it belongs to another."""
    checkpoint.clean(output)
    if overwrite and (output / STATE).is_file():
        for folder in checkpoint.everything(output):
            checkpoint.remove(folder)
        (output / STATE).unlink()
        (output / "log.jsonl").unlink(missing_ok=True)
    if (output / STATE).is_file():
        same = ("settings", "data", "network", "images_per_step")
        old, new = Run(output).json(STATE), {name: state[name] for name in same}
        if any(old[name] != new[name] for name in same):
            what = differences(old["settings"], new["settings"]) or differences(
                {name: old[name] for name in same}, new
            )
            raise ConfigError(
                f"{output} holds another training ({what}): choose another --output, or --overwrite it"
            )
        if settings.resume_from_checkpoint == "none" and checkpoint.everything(output):
            raise ConfigError(
                f"{output} holds checkpoints of this training: continue with "
                "--resume-from-checkpoint latest, or --overwrite them"
            )
    else:
        write_json(output / STATE, state)
    values = {name: value for name, value in asdict(settings).items() if value is not None}
    write_atomic(output / "train.toml", lambda f: f.write(tomli_w.dumps({"train": values}).encode()))


def resume(
    settings: TrainConfig,
    output: Path,
    state: dict[str, Any],
    model: torch.nn.Module,
    ema: Ema | None,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
) -> int:
    """Loads a checkpoint and returns its step; 0 where there is none."""
    wish = settings.resume_from_checkpoint
    if wish == "none":
        return 0
    folder = checkpoint.latest(output, say) if wish == "latest" else Path(wish)
    if folder is None:
        say(f"no checkpoint in {output}: starting at step 0")
        return 0
    tensors, saved = checkpoint.load(folder)
    for name in ("settings", "data", "network", "images_per_step"):
        if saved[name] != state[name]:
            raise ConfigError(f"checkpoint {folder} is of another training: give one of this")
    if saved["step"] > settings.max_train_steps:
        raise ConfigError(
            f"checkpoint {folder} is at step {saved['step']:,}, past --max-train-steps "
            f"{settings.max_train_steps:,}: give more steps"
        )
    model.load_state_dict(tensors["model"])
    if ema:
        ema.model.load_state_dict(tensors["ema"])
    checkpoint.load_optimizer(optimizer, model, tensors["optimizer"])
    state.update(step=saved["step"], images_seen=saved["images_seen"])
    say(f"continuing from {folder.name}: step {saved['step']:,} of {settings.max_train_steps:,}")
    return saved["step"]


def last_good(output: Path) -> str:
    """Which checkpoint is left, in words."""
    folders = checkpoint.everything(output)
    return f"the last good checkpoint is {folders[0]}" if folders else "there was no checkpoint yet"


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in ("rsprune", "torch", "diffusers", "accelerate", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Says what to lower when memory does not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        cpu = "can't allocate memory" in str(e)
        if not (cpu or isinstance(e, (MemoryError, torch.OutOfMemoryError))):
            raise
        raise OutOfMemory(
            "out of memory: lower --train-batch-size and raise --gradient-accumulation-steps by as much; "
            "the images per step, and so the run, stay the same"
        ) from e


class OutOfMemory(RspruneError):
    """The network, the batch or the images do not fit."""

    exit_code = 1


if __name__ == "__main__":
    from rsprune.cli import main

    main(["train", *sys.argv[1:]])
