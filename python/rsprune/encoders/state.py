"""What an encoder has learnt from the pool, in a file beside the embeddings that stand on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rsprune.errors import ConfigError
from rsprune.files import write_atomic


def save_state(path: Path, encoder: str, state: Mapping[str, np.ndarray], *, sample: str = "") -> None:
    """Writes named arrays as safetensors; equal states give equal bytes.

    Args:
        path: Of the file.
        encoder: Its name.
        state: What it has learnt.
        sample: Digest of the images that it has learnt from.
    """
    from safetensors.numpy import save

    about = {"rsprune": json.dumps({"encoder": encoder, "sample": sample})}
    write_atomic(path, lambda f: f.write(save({k: np.ascontiguousarray(v) for k, v in state.items()}, about)))


def sample_of(path: Path) -> str | None:
    """The `sample` that `save_state` was given; None where there is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return str(json.loads((file.metadata() or {})["rsprune"])["sample"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def load_state(path: Path, encoder: str) -> dict[str, np.ndarray]:
    """The arrays that `save_state` wrote for that encoder. Raises `ConfigError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            whose = json.loads((file.metadata() or {})["rsprune"])["encoder"]
            if whose != encoder:
                raise ValueError(f"it is of {whose}")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
        raise ConfigError(
            f"{path} is not the state of the encoder {encoder} ({e}): run 'rsprune embed' again"
        ) from None
