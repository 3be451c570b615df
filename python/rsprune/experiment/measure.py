"""What is measured of a trained run. A measurement is a function of the request that returns rows.

A row is one number: step, reference kind, metric, value, and what it depends on.
"""

from __future__ import annotations

import numpy as np

from rsprune.evaluation import memorization
from rsprune.evaluation.denoising import Denoiser, denoising_loss
from rsprune.evaluation.extractors import input_side
from rsprune.experiment.distances import Row, distances, features, open_extractor, pool_rows, real_features
from rsprune.experiment.prepare import Prepared
from rsprune.experiment.references import KINDS
from rsprune.experiment.work import Request
from rsprune.files import write_array
from rsprune.training import checkpoint, publish
from rsprune.training.config import SampleConfig
from rsprune.training.sample import draw, load_pipeline


def held_out_loss(request: Request) -> list[Row]:
    """Paired loss of every checkpoint, per time and on average, per reference, and per cluster of the last."""
    measure, references = request.measure, Prepared(request.data).references()
    rows = references.loss_rows(measure.loss_images)
    model = Denoiser.load(request.model, device=request.device)
    found: list[Row] = []
    for step in measure.checkpoints:
        path = request.folder / "losses" / f"step-{step:06d}.npy"
        if path.is_file():
            losses = np.load(path, allow_pickle=False)
        else:
            tensors, _ = checkpoint.load(request.model / f"checkpoint-{step}")
            model.network.load_state_dict(tensors.get("ema", tensors["model"]))
            losses = denoising_loss(
                model, references.pixels[rows], times=measure.times, seed=measure.seed,
                mixed_precision=measure.mixed_precision,
            )  # fmt: skip
            path.parent.mkdir(exist_ok=True)
            write_array(path, losses)
        for kind in KINDS:
            count = len(references.sets[kind][: measure.loss_images])
            mean = references.mean(kind, losses, rows, count)
            about = {"step": step, "reference": kind, "n_real": count}
            found.append({**about, "metric": "loss", "value": float(mean.mean())})
            for time, value in zip(measure.times, mean, strict=True):
                found.append({**about, "metric": "loss", "time": time, "value": float(value)})
        cluster = references.cluster[rows]
        for c in np.unique(cluster):
            mine = losses[cluster == c]
            about = {"step": step, "reference": f"cluster {c}", "n_real": len(mine)}
            found.append({**about, "metric": "loss", "value": float(mine.mean())})
    return found


def sample_quality(request: Request) -> list[Row]:
    """Distances, precision and memorisation of samples from the final model; draws the grid in any case."""
    measure, data = request.measure, Prepared(request.data)
    path = request.folder / "samples.npy"
    count = max(measure.samples, measure.grid)
    if path.is_file():
        samples = np.load(path, allow_pickle=False)
    else:
        pipe = load_pipeline(request.model, device=request.device)
        wish = SampleConfig(n=count, steps=measure.sample_steps, seed=measure.seed)
        samples = np.concatenate(list(draw(pipe, wish)))
        write_array(path, samples)
    publish.write_grid(request.folder / "grid.png", samples[: measure.grid])
    if not measure.samples:
        return []
    found: list[Row] = []
    references = data.references()
    for name in measure.extractors:
        extractor = open_extractor(name, measure.weights, request.device)
        x = features(extractor, samples[: measure.samples])
        about = {
            "step": measure.checkpoints[-1], "extractor": name, "extractor_hash": extractor.weight_hash,
            "resize": input_side(extractor), "n_generated": len(x),
        }  # fmt: skip
        held_out = real_features(data, name, "held_out")
        y = {kind: np.asarray(held_out[references.sets[kind]]) for kind in KINDS}
        for kind in KINDS:
            found += [{**about, "reference": kind, **row} for row in distances(x, y[kind], measure.seed)]
        pool = real_features(data, name, "pool")
        copied = memorization(x, np.asarray(pool[pool_rows(request.kept, data)]), y["natural"])
        for metric in ("ratio", "close", "nearer"):
            value = getattr(copied, metric)
            row = {"reference": "natural", "n_real": len(y["natural"]), "value": value}
            found.append({**about, **row, "metric": f"memorisation: {metric}"})
    return found


MEASUREMENTS = (held_out_loss, sample_quality)
