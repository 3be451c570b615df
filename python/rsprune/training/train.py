"""The training loop, to be read from top to bottom; ``accelerate launch -m rsprune.training.train`` runs it."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.nn.functional import mse_loss

from rsprune.errors import RspruneError
from rsprune.files import write_json
from rsprune.layout import digest
from rsprune.run import Run
from rsprune.training import checkpoint, latents, models, publish, speed
from rsprune.training.batches import AHEAD, Batches
from rsprune.training.config import TrainConfig
from rsprune.training.ema import Ema
from rsprune.training.folder import STATE, check_folder, last_good, prepare_folder, resume, versions
from rsprune.training.log import Log, check_tracker
from rsprune.training.objective import learning_rate, make_objective
from rsprune.training.sample import make_pipeline
from rsprune.training.sampler import Sampler
from rsprune.training.task import Generation, Task

SAY_EVERY = 10.0  # seconds


class DivergedError(RspruneError):
    """The loss is not a number any more."""

    exit_code = 1


class OutOfMemory(RspruneError):
    """The network, the batch or the images do not fit."""

    exit_code = 1


def train(
    settings: TrainConfig,
    output: Path,
    *,
    task: Task | None = None,
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
        OutOfMemory: A step does not fit into memory.
    """
    check_tracker(settings.report_to)
    task = task or Generation()
    tracker = settings.report_to if settings.report_to in ("tensorboard", "wandb") else None
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # whatever the launcher's configuration says: ours is in the settings
        log_with=tracker,
        project_dir=str(output),
        # The first process may encode a million images while the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
    )
    main, world = accelerator.is_main_process, accelerator.num_processes
    rank, place = accelerator.process_index, accelerator.device
    say = say if main else lambda _: None
    with contextlib.ExitStack() as stack, out_of_memory():
        if main:
            check_folder(output)
            stack.enter_context(Run(output).lock())
        pool = task.pool(settings, say)
        resolution, bands = settings.resolution or pool.pixels.shape[1], pool.pixels.shape[3]
        vae, seen, side = None, [pool.digest], resolution
        if settings.vae:
            latents.check(pool, settings, resolution)
            vae = latents.load_vae(settings.vae, bands=bands, resolution=resolution).to(place)
            seen.append(latents.fingerprint(vae))
            side, bands = resolution // latents.factor(vae), vae.config.latent_channels
        model = models.build(
            settings, bands=bands, resolution=side, conditions=len(pool.names), given=task.given_bands
        )
        task.start(model)
        micro, forwards = settings.train_batch_size, settings.gradient_accumulation_steps
        per_step = micro * forwards * world
        state = {
            "step": 0,
            "images_seen": 0,
            "max_train_steps": settings.max_train_steps,
            "images_per_step": per_step,
            "resolution": resolution,
            "bits": 8 * pool.pixels.itemsize,
            "parameters": sum(p.numel() for p in model.parameters()),
            "data": seen[0] if len(seen) == 1 else digest(*seen),
            "network": digest({k: v for k, v in model.config.items() if not k.startswith("_")}),
            "settings": settings.identity() | task.identity(),
            "versions": versions(),
        }
        if main:
            prepare_folder(output, state, settings, overwrite=overwrite)
        codes, drawn_from = None, pool
        if vae is not None:
            wish = (settings.seed, settings.random_flip, resolution)
            name = f"latents-{digest(state['data'], *wish)[:16]}.npy"
            with accelerator.main_process_first():
                codes = latents.cached(
                    output / name, lambda: latents.encode(pool, vae, settings, resolution, device=place)
                )
            drawn_from = replace(pool, pixels=codes[0])
        accelerator.wait_for_everyone()

        # The network ---------------------------------------------------------------------------------------

        model = model.to(place)
        if place.type == "cpu":
            speed.prepare_cpu(model)
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
        network = torch.compile(ddp) if settings.compile else ddp
        objective = make_objective(settings)
        bf16 = settings.mixed_precision == "bf16"
        autocast = torch.autocast(place.type, torch.bfloat16, enabled=bf16)

        # What it is fed ------------------------------------------------------------------------------------

        sampler = Sampler(
            drawn_from,
            seed=settings.seed,
            resolution=side,
            center_crop=settings.center_crop,
            random_flip=settings.random_flip,
            condition_dropout=settings.condition_dropout,
        )
        ahead = 0 if place.type == "cpu" else AHEAD
        batches = Batches(sampler, drawn_from, place, settings, latents=codes, ahead=ahead)
        if not batches.is_resident:
            say("the images do not fit on the device beside the network: they stay in the machine's memory")
        positions = (
            np.arange(micro) + (step - 1) * per_step + (forward * world + rank) * micro
            for step in range(start + 1, settings.max_train_steps + 1)
            for forward in range(forwards)
        )
        feed = stack.enter_context(contextlib.closing(batches.feed(positions)))
        log = Log(output, settings.report_to, step=start, accelerator=accelerator) if main else None
        if log:
            stack.callback(log.close)

        # What comes out ------------------------------------------------------------------------------------

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
            averaged = ema.model if ema else model
            scheduler, names = objective.scheduler, pool.names
            publish.write_model(output, averaged, scheduler, settings, names, vae=vae, residual=task.residual)
            publish.write_card(output, model, settings, pool, state)
            write_json(output / STATE, state)

        def validate(step: int) -> None:
            averaged = ema.model if ema else model
            averaged.eval()
            pipe = make_pipeline(
                models.FOLDERS[settings.model],
                averaged,
                objective.scheduler,
                labels=list(pool.names),
                pixel_unshuffle=settings.pixel_unshuffle,
                vae=vae,
                residual=task.residual,
            )
            metrics = task.validate(pipe, output, step, settings)
            if log and metrics:
                log.judge(step, **metrics)
            model.train()

        pending: list[tuple[float, torch.Tensor, torch.Tensor]] = []

        def look(step: int) -> float:
            """Writes the losses up to `step`; waits for the device. Raises `DivergedError`."""
            losses = torch.stack([torch.stack(entry[1:]) for entry in pending])
            values: list[list[float]] = losses.tolist()
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

        # The steps -----------------------------------------------------------------------------------------

        if main and start == settings.max_train_steps:  # killed after the last checkpoint, before this
            publish_model()
        model.train()
        meter = speed.Meter(per_step, speed.peak(place, bf16=bf16), processes=world)
        said = 0.0
        for step in range(start + 1, settings.max_train_steps + 1):
            rate = learning_rate(step - 1, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            # For dropout, if the network has any: everything else random is the sampler's.
            torch.manual_seed((settings.seed + step * world + rank) % 2**63)
            loss = torch.zeros((), device=place)
            for forward in range(forwards):
                batch = next(feed)
                given, image = task.given(batch), batch.image
                if given is not None and task.residual:
                    image = (image - given[:, : image.shape[1]]) / task.residual
                inputs, time, target = objective.task(image, batch.noise, batch.time, batch.normal_time)
                inputs = inputs if given is None else torch.cat([inputs, given], dim=1)
                if main and meter.flops is None:
                    meter.flops = speed.step_flops(model, inputs, time, batch.label) / micro
                last = forward == forwards - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(ddp):
                    with autocast:
                        predicted = network(inputs, timestep=time, class_labels=batch.label).sample
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
                meter.stop(step)
                if meter.now - said > SAY_EVERY or end:
                    said, words = meter.now, meter.words(settings.max_train_steps - step)
                    say(f"step {step:,} of {settings.max_train_steps:,}, loss {shown:.4f}{words}")
            state.update(step=step, images_seen=step * per_step)
            if main and checkpoints:
                save(step)
            if main and draws:
                validate(step)
            if step == start + 1 or checkpoints or draws:
                meter.begin(step)
        accelerator.wait_for_everyone()
        return state


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


if __name__ == "__main__":
    from rsprune.cli import main

    main(["train", *sys.argv[1:]])
