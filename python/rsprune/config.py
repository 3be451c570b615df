"""Settings: one frozen dataclass per stage, with the reason beside each default.

The resolved settings of a run are written to ``config.toml`` in its folder. A knob belongs to the stage
that owns it; `Settings` only holds the stages together.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from rsprune.errors import ConfigError
from rsprune.locations import absolute

STRICT = ConfigDict(extra="forbid")
T = TypeVar("T")


def _numbers(value: Any) -> Any:
    """ "4,3,2" as a list; anything else as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    return [_numbers(pair) for pair in value] if isinstance(value, (list, tuple)) else value


def _auto(value: Any) -> Any:
    return None if value == "auto" else value


def _strata(value: Any) -> Any:
    return () if value in ("none", "") else _numbers(value)


def _listed(value: Any) -> Any:
    return [absolute(v) for v in value] if isinstance(value, (list, tuple)) else value


def _mask(value: Any) -> Any:
    """The mask with its file as an absolute path, so that a run can be continued from any folder."""
    from rsprune.sources.masks import parse

    return str(parse(value)) if isinstance(value, str) else value


def _collection(value: str) -> str:
    """As `absolute`; empty stays empty, for settings of collections whose places are said elsewhere."""
    return absolute(value) if value else value


def _absolute_file(value: str | None) -> str | None:
    return None if value is None else absolute(value)


def _absolute_encoder(value: str) -> str:
    """The name of an encoder with the path in it, if there is one, made absolute."""
    kind, _, argument = value.partition(":")
    before, _, last = argument.rpartition(":")
    if (kind == "onnx" and argument) or (kind == "hf" and Path(argument).expanduser().is_dir()):
        return f"{kind}:{absolute(argument)}"
    if kind in ("open_clip", "timm") and before and Path(last).expanduser().is_file():
        return f"{kind}:{before}:{absolute(last)}"
    return value


Bands = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_numbers)]
Scale = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_pairs)]


@dataclass(frozen=True, config=STRICT)
class SourceConfig:
    """One image collection and the radiometry that is declared for all of it."""

    path: Annotated[str, AfterValidator(_collection)]
    name: str = ""  # prefixes the ids where a run has several sources
    tile: int | None = Field(default=None, ge=8, description="Cut scenes into windows of this side (pixels).")
    stride: int | None = Field(
        default=None, ge=1, description="Step between windows (pixels); the side if not given."
    )
    bands: Bands | None = Field(
        default=None, description="1-based bands to read, such as 4,3,2; all if not given."
    )
    scale: Scale | None = Field(default=None, description="LO,HI that map to 0..1: once, or once per band.")
    nodata: float | None = Field(
        default=None, description="A pixel with this value in every band holds no data."
    )
    # Which numbers mean cloud differs from product to product, so there is no rule by default.
    mask: Annotated[str | None, BeforeValidator(_mask)] = Field(
        default=None,
        description="BAND, FILE or _SUFFIX with :bits=N, :values=N or :valid=N; masked is no data.",
    )

    @model_validator(mode="after")
    def _check(self) -> SourceConfig:
        if self.stride and not self.tile:
            raise ValueError("--stride needs --tile: give the side of the windows as well")
        for lo, hi in self.scale or ():
            if not lo < hi:
                raise ValueError(f"--scale needs LO < HI, got {lo:g},{hi:g}")
        if self.mask and self.bands and self.mask.split(":")[0] in map(str, self.bands):
            raise ValueError(
                f"--mask reads band {self.mask.split(':')[0]}, which --bands has as well: give it once"
            )
        if self.scale and self.bands and len(self.scale) not in (1, len(self.bands)):
            raise ValueError(
                f"--scale has {len(self.scale)} pairs for {len(self.bands)} bands: give one, or one per band"
            )
        return self


@dataclass(frozen=True, config=STRICT)
class ScanConfig:
    sources: tuple[SourceConfig, ...] = ()
    # A crash costs at most one part per worker; smaller parts cost more files.
    part_size: int = Field(
        default=1024, ge=1, description="Images per part, the unit of work and of resuming."
    )
    max_bad: float = Field(
        default=0.05, ge=0, le=1, description="Stop when more than this share is unreadable."
    )
    on_error: Literal["record", "stop"] = Field(
        default="record", description="What to do with an unreadable image."
    )


@dataclass(frozen=True, config=STRICT)
class ScoreConfig:
    # Small enough that a smooth ramp does not look rich, large enough that 1,024 pixels fill a histogram.
    patch: int = Field(default=32, ge=2, le=4096, description="Side of an entropy patch (pixels).")


@dataclass(frozen=True, config=STRICT)
class EmbedConfig:
    encoder: Annotated[str, AfterValidator(_absolute_encoder)] = Field(
        default="lite0", description="What describes images: lite0, rcf, onnx:PATH, hf:NAME and others."
    )
    embeddings: Annotated[str | None, AfterValidator(_absolute_file)] = Field(
        default=None, description=".npy or .parquet, a row per image, instead of an encoder."
    )
    batch_size: int = Field(default=32, ge=1, description="Images that the encoder is given at once.")
    transform_sample: int = Field(
        default=8192, ge=1, description="Images that mean and scale are estimated on."
    )


@dataclass(frozen=True, config=STRICT)
class FilterConfig:
    """Which images are eligible at all; applied to stored scores, so changing it reads no image."""

    # A quantile, because absolute bits do not transfer between sensors. A twentieth costs no coverage by a learned
    # judge, a fifth does (docs/choices.md, as for the defaults of SelectConfig).
    entropy_drop: float = Field(
        default=0.05, ge=0, lt=1, description="Drop this share, lowest entropy first."
    )
    entropy_min: float | None = Field(
        default=None, description="Drop below this many bits, instead of a share."
    )
    entropy_otsu: bool = Field(default=False, description="Drop below Otsu's threshold, instead of a share.")
    nodata_max: float = Field(
        default=0.5, ge=0, le=1, description="Drop above this share of pixels without data."
    )
    # Of 4,509 clean Sentinel-2, Landsat and Blue Marble tiles of 64 px none is below 0.15; with noise of sigma 60 of
    # 255, 99.4 % are below 0.1, with sigma 20 88 %.
    autocorrelation_min: float = Field(
        default=0.1, description="Drop as noise below this neighbour correlation."
    )
    # None of those tiles is above 0.33. Mostly empty tiles are whose empty pixels are 0 and not declared as nodata.
    saturated_max: float = Field(
        default=0.5, ge=0, le=1, description="Drop above this share of pixels at the ends of the scale."
    )
    # Off: 1.0 finds a blur of sigma 1 in 16-bit tiles, but half of all tiles enlarged to twice their size as well.
    sharpness_min: float = Field(
        default=0.0, ge=0, description="Drop as blurred below this sharpness; 0 is never."
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> FilterConfig:
        if self.entropy_min is not None and self.entropy_otsu:
            raise ValueError("--entropy-min and --entropy-otsu exclude each other: give one of them")
        return self


@dataclass(frozen=True, config=STRICT)
class ClusterConfig:
    reference: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(), description="Labelled set: a folder per class, or Parquet. Repeatable."
    )
    n_clusters: Annotated[int | None, BeforeValidator(_auto)] = Field(
        default=None, ge=1, description="Number of clusters; auto asks the reference for its granularity."
    )
    calibrate: Annotated[tuple[str, ...], BeforeValidator(_numbers)] = Field(
        default=(), description="Further encoders to compare on the reference, such as lite0,rcf."
    )
    fit_per_cluster: int = Field(
        default=256, ge=1, description="Images per cluster that the centres are fitted on."
    )
    pseudo_scenes: int = Field(default=32, ge=1, description="Strata where there is no reference.")
    max_iter: int = Field(default=50, ge=1, description="Most iterations of k-means.")


@dataclass(frozen=True, config=STRICT)
class SelectConfig:
    keep: float | None = Field(
        default=None, gt=0, le=1, description="Share of the readable images to keep; 0.15 if not given."
    )
    n: int | None = Field(default=None, ge=1, description="Number of images to keep.")
    strategy: str = Field(
        default="rsprune", description="How to choose; see the table of strategies in the docs."
    )
    pool: Literal["auto", "readable", "eligible", "distinct"] = Field(
        default="auto",
        description="Images to choose from: all readable, past the filters, or past duplicates too.",
    )
    # Of non-overlapping neighbours on Sentinel-2 and Blue Marble 99 % stay below 0.94 (lite0); above it lie
    # tiles of the same sea or ice, and copies that differ in brightness. 0.98 would find next to nothing.
    near_duplicate: float = Field(
        default=0.95, gt=0, description="Cosine from which images are duplicates; 2 is never."
    )
    # More than half, so that windows at half a side from each other stay. 1 is never.
    spatial_overlap: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Images that share more of their ground are duplicates; 1 is never.",
    )
    # A month later ground and light look different; within it mostly clouds do. Dates that are not known are equal.
    duplicate_days: float = Field(
        default=30, ge=0, description="Days from which on two images of one ground are no duplicates."
    )
    exclude_from: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        default=(), description="Keep no image of this set: images, a run or Parquet. Repeatable."
    )
    exclude_reference: bool = Field(default=False, description="Keep no image of the reference either.")
    # Scenes are an inner matter of the strategy rsprune; the others give every strategy its share of each kind.
    stratify: Annotated[tuple[Literal["scene", "gsd", "sensor", "date"], ...], BeforeValidator(_strata)] = (
        Field(
            default=("scene",),
            description="Divide the seats among scenes of the reference, gsd, sensor or date, such as scene,gsd; or none.",
        )
    )
    # The root keeps twice as much of the rarest scene; less takes more from the common ones.
    scene_alpha: float = Field(default=0.5, description="Seats of a scene grow with its size to this power.")
    # Broken images often resemble no scene; less than this would starve a sensor that the reference does not cover.
    unknown: float = Field(
        default=0.5,
        ge=0,
        description="Most seats of images of no known scene, in shares of what their number gives.",
    )
    # Neyman's allocation; 0 and 0, uniform over clusters, keeps more broken images.
    alpha: float = Field(default=1.0, description="Seats grow with cluster size to this power.")
    beta: float = Field(default=1.0, description="Seats grow with cluster spread to this power.")
    rank: Literal["herding", "closest", "mmr", "random"] = Field(
        default="herding", description="Order inside a cluster."
    )
    mmr_lambda: float = Field(default=0.5, ge=0, le=1, description="For mmr: 1 is closest, 0 most different.")

    @model_validator(mode="after")
    def _one_budget(self) -> SelectConfig:
        if self.keep is not None and self.n is not None:
            raise ValueError("--keep and --n exclude each other: give one of them")
        return self

    @property
    def rsprune(self) -> dict[str, Any]:
        """The settings of the strategy `rsprune`, which no other one reads."""
        values = {name: getattr(self, name) for name in ("alpha", "beta", "rank", "mmr_lambda", "unknown")}
        return {**values, "scene_alpha": self.scene_alpha if "scene" in self.stratify else None}

    def budget(self, readable: int) -> int:
        """Number of images to keep out of `readable`."""
        if self.n is not None:
            return self.n
        return max(1, round((0.15 if self.keep is None else self.keep) * readable)) if readable else 0


@dataclass(frozen=True, config=STRICT)
class EngineConfig:
    """Where parts are computed; no result depends on it, so a run does not remember it."""

    engine: Literal["local", "ray"] = Field(
        default="local", description="Processes of this machine, or a Ray cluster."
    )
    address: str | None = Field(
        default=None, description="Of the Ray cluster: auto or HOST:PORT; starts one here if not given."
    )
    gpus_per_worker: float = Field(
        default=0.0, ge=0, description="GPUs per worker on the Ray cluster, such as 0.5; 0 uses CPUs."
    )

    @model_validator(mode="after")
    def _check(self) -> EngineConfig:
        if self.engine != "ray" and (self.address or self.gpus_per_worker):
            raise ValueError("--address and --gpus-per-worker need --engine ray")
        return self


@dataclass(frozen=True, config=STRICT)
class Settings:
    scan: ScanConfig = field(default_factory=ScanConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    seed: int = Field(default=0, ge=0, lt=2**63, description="The same seed gives the same images.")


def checked(kind: type[T], values: dict[str, Any]) -> T:
    """Settings of `kind`, a settings dataclass, from plain values. Raises `ConfigError`."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as e:
        raise ConfigError("; ".join(_sentence(error) for error in e.errors())) from None


def settings(values: dict[str, Any]) -> Settings:
    """Checked settings from nested plain values, as in a TOML file. Raises `ConfigError`."""
    return checked(Settings, values)


def _sentence(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    names = [part for part in error["loc"] if isinstance(part, str)]
    if error["type"] == "unexpected_keyword_argument":
        return f"there is no setting {'.'.join(names)}"
    where = "--" + names[-1].replace("_", "-") if names else "settings"
    return f"{where} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
