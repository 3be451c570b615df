"""Semantic synthesis: the network is given a layout, a map of classes, and draws an image that follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch.nn.functional import pixel_unshuffle

from rsprune.encoders import Encoder, rgb_bands
from rsprune.errors import ConfigError
from rsprune.evaluation import kernel_distance
from rsprune.finetuning import comparison
from rsprune.finetuning.config import SemanticConfig
from rsprune.finetuning.finetune import Finetuning, Say
from rsprune.finetuning.foundation import Foundation
from rsprune.finetuning.given import check_classes, drawn, layout
from rsprune.finetuning.held_out import centred
from rsprune.finetuning.masks import Layouts, scene_sizes
from rsprune.finetuning.segmenter import confusion, mean_iou, predicted, taught
from rsprune.training.batches import Images
from rsprune.training.config import TrainConfig
from rsprune.training.pipeline import TilePipeline
from rsprune.training.pool import Pool

SHOWN = 10  # held-out layouts in the picture
_LEAST = 8  # held-out images, of whose halves the kernel distance is the floor
MANY = 64  # classes that nobody means: more are asked for by name


class Semantic(Finetuning):
    """Images that follow a layout of classes."""

    name = "semantic"
    settings: SemanticConfig

    def __init__(self, settings: SemanticConfig, foundation: Foundation, *, device: str = "cpu"):
        super().__init__(settings, foundation, device=device)
        self.classes = 0  # until the masks are read
        self._extractor: Encoder | None = None

    @property
    def given_bands(self) -> int:
        return self.classes

    def about(self) -> dict[str, Any]:
        return {"classes": self.classes, "masks": xxhash.xxh3_128_hexdigest(self._masks.data)}

    def check(self, training: TrainConfig) -> None:
        self._layouts = Layouts(self.settings.masks)
        if self.settings.kd:
            from rsprune.evaluation.extractors import load_extractor

            rgb_bands(self.foundation.bands)
            weights = Path(self.settings.weights) if self.settings.weights else None
            self._extractor = load_extractor("alexnet", weights=weights, device=self.device)

    def pool(self, settings: TrainConfig, say: Say) -> Pool:
        pool = super().pool(settings, say)
        if self._extractor is not None and (n := len(self.held_out.ids)) < _LEAST:
            raise ConfigError(
                f"{n} held-out images are too few for the kernel distance of two halves: hold out {_LEAST} or more "
                "with --held-out or --validation-data, or give --no-kd"
            )
        resize = settings.fit == "resize"
        held_out, other = self.held_out, self.settings.validation_data or settings.data
        self._pixels, size = pool.pixels, pool.pixels.shape[1:3]
        self._masks = self._layouts.stack(
            pool.ids, size, scene_size=scene_sizes(settings.data), resize=resize
        )
        masks = self._layouts.stack(
            held_out.ids, held_out.pixels.shape[1:3], scene_size=scene_sizes(other), resize=resize
        )
        self.classes = self.settings.classes or max(2, int(self._masks.max()) + 1)
        if self.settings.classes is None and self.classes > MANY:
            raise ConfigError(
                f"the masks have class {self._masks.max()}: number classes from 0 on, or say with --classes how many "
                "there are"
            )
        for ids, all_of_them in ((pool.ids, self._masks), (held_out.ids, masks)):
            worst = int(all_of_them.max(axis=(1, 2)).argmax())
            check_classes(ids[worst], all_of_them[worst], self.classes)
        self._asked = centred(masks, self.truth.shape[1])
        say(f"{self.classes} classes, of which {len(np.unique(self._masks))} occur")
        return pool

    def given(self, batch: Images) -> torch.Tensor:
        rows, ys, xs = batch.drawn.rows, batch.drawn.ys, batch.drawn.xs
        masks = self._masks[rows[:, None, None], ys[:, :, None], xs[:, None]]
        given = layout(torch.from_numpy(masks).to(batch.image.device), self.classes)
        return pixel_unshuffle(given, self.foundation.unshuffle)

    def validate(
        self, pipe: TilePipeline, output: Path, step: int, settings: TrainConfig
    ) -> dict[str, float]:
        rows = slice(settings.validation_images)
        pixels = self._drawn(pipe, self._asked[rows], settings)
        self._show(output / "samples" / f"step-{step:06d}.png", rows, {"generated": pixels})
        return {}

    def measure(self, pipe: TilePipeline, training: TrainConfig, output: Path) -> dict[str, Any]:
        wish = {"steps": self.settings.segmenter_steps, "seed": training.seed}
        images = centred(self._pixels, self.truth.shape[1])
        masks = centred(self._masks, self.truth.shape[1])
        judge = taught(images, masks, self.classes, device=self.device, **wish)
        pixels = self._drawn(pipe, self._asked, training)
        real = predicted(judge, self.truth)
        # Every layout against what is seen in another image.
        order = np.random.default_rng(training.seed).permutation(len(real))
        scores = {
            "generated": self._agreement(predicted(judge, pixels), self._asked),
            "real": self._agreement(real, self._asked),
            "shuffled": self._agreement(real[order], self._asked[np.roll(order, 1)]),
            "kd": self._kernel_distance(pixels, training.seed),
        }
        # Those with most of what is not their commonest class.
        share = [np.bincount(mask.ravel()).max() / mask.size for mask in self._asked]
        rows = np.argsort(share, kind="stable")[:SHOWN]
        self._show(output / "samples" / "held-out.png", rows, {"generated": pixels[rows]})
        return {
            "drawn": {"generated": {"steps": self.settings.sample_steps, "mean_of": 1}},
            "segmenter": {**wish, "parameters": sum(p.numel() for p in judge.parameters())},
            "scores": scores,
        }

    def _drawn(self, pipe: TilePipeline, masks: np.ndarray, settings: TrainConfig) -> np.ndarray:
        given = layout(torch.from_numpy(masks), self.classes)
        bits = 8 * self.truth.itemsize
        return drawn(pipe, given, bits=bits, steps=self.settings.sample_steps, seed=settings.seed)

    def _agreement(self, found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        counts = confusion(found, truth, self.classes)
        return {
            "miou": mean_iou(counts),
            "accuracy": float(np.trace(counts) / counts.sum()),
            "confusion": counts.tolist(),
        }

    def _kernel_distance(self, pixels: np.ndarray, seed: int) -> dict[str, Any] | None:
        if self._extractor is None:
            return None
        shift = 8 * pixels.itemsize - 8
        made, real = (
            self._extractor([(image >> shift).astype(np.uint8) for image in images])
            for images in (pixels, self.truth)
        )
        half, other = np.array_split(np.random.default_rng(seed).permutation(len(real)), 2)
        found, floor = (
            kernel_distance(made, real, seed=seed),
            kernel_distance(real[half], real[other], seed=seed),
        )
        return {
            "name": "KD-AlexNet",
            "value": found.value,
            "deviation": found.deviation,
            "floor": floor.value,
            "subsets": found.subsets,
            "subset_size": found.subset_size,
            "weight_hash": self._extractor.weight_hash,
        }

    def _show(self, path: Path, rows: slice | np.ndarray, columns: dict[str, np.ndarray]) -> None:
        comparison.write(path, {"layout": coloured(self._asked[rows]), **columns, "truth": self.truth[rows]})


def coloured(masks: np.ndarray) -> np.ndarray:
    """Classes [N, H, W] as colours [N, H, W, 3] uint8."""
    import matplotlib

    colours = matplotlib.colormaps["tab20"](np.arange(256) % 20, bytes=True)[:, :3]
    return colours[masks]
