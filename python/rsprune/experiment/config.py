"""Settings of an experiment: one TOML file says all that decides its numbers."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from rsprune import config as run_config
from rsprune.config import STRICT
from rsprune.errors import ConfigError
from rsprune.evaluation.config import TIMES
from rsprune.finetuning.config import SemanticConfig, SuperResolutionConfig
from rsprune.toml import load_values
from rsprune.training.config import TrainConfig

REGIONS = ("pool", "reference", "metric", "tuning")
BUILT_IN = ("bluemarble", "sentinel2")
WITH_LAYOUT = "bluemarble"  # the one that has a map of classes
MOST_CHECKPOINTS = 100  # of a run at once: of 2.8 M weights that is 4 GB
# What a selection must not be given, by section and name, and what to do instead.
SET = {
    ("select", "keep"): "give the arm's keep",
    ("select", "strategy"): "give the arm's strategy",
    ("cluster", "reference"): 'for an arm without scenes, give it select.select = { stratify = "none" }',
    ("scan", "sources"): "give [[data.scenes]], and [selection.source] for how images are read",
}
DOWNSTREAM = {"super-resolution": SuperResolutionConfig, "semantic": SemanticConfig}


@dataclass(frozen=True, config=STRICT)
class SceneConfig:
    """A picture that tiles are cut from: one of `BUILT_IN`, or an 8-bit RGB file beside the experiment's."""

    path: str
    stride: int = Field(ge=1)  # pixels between tiles of the pool; of held-out ones see `regions.split`
    block: int = Field(ge=16)  # side (pixels) of the squares that belong to one region

    @property
    def name(self) -> str:
        return Path(self.path).stem


@dataclass(frozen=True, config=STRICT)
class FaultConfig:
    """Faults of the dirty pool, each as a share of the natural pool's images; all 0 is the natural pool."""

    near_duplicates: float = Field(default=0.0, ge=0)  # copies are added, `copies` of each chosen image
    copies: int = Field(default=4, ge=1)
    nodata: float = Field(default=0.0, ge=0, le=1)  # black border over 30 to 90 % of the image
    noise: float = Field(default=0.0, ge=0, le=1)  # of the sensor, sigma 15 to 60 of 255
    jpeg: float = Field(default=0.0, ge=0, le=1)  # blocks, quality 5 to 15
    imbalance: float = Field(default=0.0, ge=0, lt=1)  # taken away from all scenes but the most common one

    @property
    def any(self) -> bool:
        return any(v for k, v in asdict(self).items() if k != "copies")


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    scenes: tuple[SceneConfig, ...] = Field(min_length=1)
    tile: int = Field(default=32, ge=8)  # pixels
    margin: int = Field(
        default=16, ge=0
    )  # pixels of a block's rim without tiles, so neighbours lie twice that apart
    # In the order of `REGIONS`.
    shares: tuple[float, float, float, float] = (0.6, 0.2, 0.1, 0.1)
    faults: FaultConfig = field(default_factory=FaultConfig)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, config=STRICT)
class ReferenceConfig:
    """The held-out sets; see `references`."""

    region: Literal["reference", "tuning"] = "reference"
    n: int = Field(default=1024, ge=8)  # images of each reference, or what there is
    clusters: int = Field(default=16, ge=2)  # of colour and texture, that the balanced reference has alike
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, config=STRICT)
class MeasureConfig:
    checkpoints: tuple[int, ...] = Field(min_length=1)
    loss_images: int = Field(default=512, ge=1)  # of each reference
    times: tuple[float, ...] = TIMES
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = Field(default=0, ge=0)
    samples: int = Field(
        default=0, ge=0
    )  # drawn from the last checkpoint, for distances; 0 draws the grid only
    sample_steps: int = Field(default=25, ge=1)
    grid: int = Field(default=64, ge=1)  # of the samples that are shown
    extractors: tuple[str, ...] = ("alexnet",)
    weights: str | None = None  # archive of the extractors' weights, where the cache lacks them


@dataclass(frozen=True, config=STRICT)
class ArmConfig:
    """What one arm trains on.

    Attributes:
        strategy: As in ``--strategy``; `full` is everything, `reweighted` everything drawn with the weights
            that give the parts of the pool the shares that `rsprune` gives them.
        keep: Share of the pool; of no meaning for `full`; for `reweighted`, that of the `rsprune` it follows.
        select: Further settings of the selection by section, as in a run's ``config.toml``.
    """

    strategy: str
    name: str = ""
    keep: float = Field(default=0.15, gt=0, le=1)
    select: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        whole = self.strategy in ("full", "reweighted")
        return self.strategy if whole else f"{self.strategy} {100 * self.keep:g} %"

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", self.label.lower().replace("%", "")).strip("-")


@dataclass(frozen=True, config=STRICT)
class DownstreamConfig:
    """A fine-tuning of the arms' models, alike for all; see `downstream`.

    Attributes:
        task: As in ``rsprune finetune``.
        arms: Labels of those whose models it starts from; all if not given.
        from_scratch: Whether fresh weights are trained as well, as the control.
        settings: Of the task.
        training: Of `rsprune train`, over those that the foundation was trained with.
    """

    task: Literal["super-resolution", "semantic"]
    arms: tuple[str, ...] = ()
    from_scratch: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.task} x{self.settings['scale']}" if "scale" in self.settings else self.task

    @property
    def slug(self) -> str:
        return self.label.replace(" ", "-")

    def checked(self) -> SuperResolutionConfig | SemanticConfig:
        """Settings of the task, paths left out. Raises `ConfigError` where it or training knows no such setting."""
        given = {"foundation": ".", **({"masks": "."} if self.task == "semantic" else {})}
        run_config.checked(TrainConfig, {**self.training, "data": "."})
        return run_config.checked(DOWNSTREAM[self.task], {**given, **self.settings})


@dataclass(frozen=True, config=STRICT)
class ExperimentConfig:
    name: str
    data: DataConfig
    measure: MeasureConfig
    arms: tuple[ArmConfig, ...] = Field(min_length=1)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    training: dict[str, Any] = field(default_factory=dict)  # settings of `rsprune train`
    network: dict[str, Any] = field(default_factory=dict)  # arguments of the diffusers model
    selection: dict[str, dict[str, Any]] = field(default_factory=dict)  # of all arms, by section
    seeds: tuple[int, ...] = (0, 1, 2)
    # Two comparisons that were named before anything was run; p-values are corrected for these.
    primary: tuple[str, ...] = ()  # labels: the first is compared with each of the others
    downstream: tuple[DownstreamConfig, ...] = ()
    title: str = ""
    workers: int = Field(default=1, ge=1)  # processes, each with one thread
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _check(self) -> ExperimentConfig:
        labels = [arm.label for arm in self.arms]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}: give one of them a name")
        scratch = ["from-scratch"] if self.downstream else []  # the control of fine-tunings
        _check_apart("arms", [*scratch, *(arm.slug for arm in self.arms)])
        _check_apart("fine-tunings", [task.slug for task in self.downstream])
        _check_apart("scenes", [scene.name for scene in self.data.scenes])
        for sections in (self.selection, *(arm.select for arm in self.arms)):
            for (section, name), instead in SET.items():
                if name in sections.get(section, {}):
                    raise ValueError(f"{section}.{name} is set by the experiment itself: {instead}")
        unknown = [label for label in self.primary if label not in labels]
        if unknown:
            raise ValueError(
                f"primary names {unknown[0]!r}, which is no arm: give one of {', '.join(labels)}"
            )
        for task in self.downstream:
            unknown = [label for label in task.arms if label not in labels]
            if unknown:
                raise ValueError(
                    f"downstream names {unknown[0]!r}, which is no arm: give {', '.join(labels)}"
                )
            if task.task == "semantic" and WITH_LAYOUT not in (scene.path for scene in self.data.scenes):
                raise ValueError(
                    f"downstream has a semantic task, whose layouts are of {WITH_LAYOUT}: add it"
                )
        if list(self.measure.checkpoints) != sorted(set(self.measure.checkpoints)):
            raise ValueError("measure.checkpoints must rise")
        if (saved := self.steps // self.saving_steps) > MOST_CHECKPOINTS:
            raise ValueError(
                f"measure.checkpoints have the common divisor {self.saving_steps}, so a run would keep {saved:,} "
                f"checkpoints until they are measured: give steps that need at most {MOST_CHECKPOINTS}"
            )
        for name in ("data", "kept", "seed", "sample_weights", "max_train_steps", "model_config"):
            if name in self.training:
                raise ValueError(f"training.{name} is set by the experiment itself: leave it out")
        return self

    @property
    def steps(self) -> int:
        return self.measure.checkpoints[-1]

    @property
    def saving_steps(self) -> int:
        """Steps between checkpoints, which are kept until those to be measured are."""
        return math.gcd(*self.measure.checkpoints)

    def identity(self) -> dict[str, Any]:
        """All that the numbers of a run depend on; arms and seeds may be added to an experiment later."""
        free = ("arms", "downstream", "seeds", "workers", "device", "primary", "title")
        return {name: value for name, value in asdict(self).items() if name not in free}


def _check_apart(what: str, names: list[str]) -> None:
    """Raises `ValueError` where two of these would have one folder."""
    for name in names:
        if not name:
            raise ValueError(
                f"one of the {what} has a name without letters a-z and digits, of which folders' names are made"
            )
        if names.count(name) > 1:
            raise ValueError(
                f"two {what} would have the folder {name!r}: give them names that differ in letters a-z and digits"
            )


def load(path: Path) -> ExperimentConfig:
    """The experiment that a TOML file describes. Raises `ConfigError`."""
    values = load_values(path)
    values.setdefault("name", path.stem)
    for scene in values.get("data", {}).get("scenes", []):
        if scene.get("path") not in (*BUILT_IN, None):
            scene["path"] = str(path.parent.absolute() / scene["path"])
    try:
        found = run_config.checked(ExperimentConfig, values)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None
    # Wrong names in the sections that others own must not show after hours.
    run_config.checked(TrainConfig, {**found.training, "data": "."})
    for task in found.downstream:
        task.checked()
    for sections in (found.selection, *(arm.select for arm in found.arms)):
        others = {name: section for name, section in sections.items() if name != "source"}
        source = {"path": ".", **sections.get("source", {})}
        run_config.settings({**others, "scan": {**others.get("scan", {}), "sources": [source]}})
    return found
