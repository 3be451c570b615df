"""The kept images of a run as a data set for torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from rsprune.datasets.chosen import RunPath, chosen, open_images, open_run
from rsprune.errors import ConfigError, UnreadableImage
from rsprune.reading import Reader
from rsprune.training import groups


class KeptDataset(Dataset[dict[str, Any]]):
    """The kept images of a run, best first, so that ``Subset(data, range(n))`` is the smaller selection.

    ``data[i]`` is a dict: `image`, [C, H, W] or what `transform` makes of it; `id`; `scene`, an index into `scenes`;
    `cluster`. The latter two are -1 where the image has none. `UnreadableImage` is raised, with the id, where an image
    is not there any more.

    A scene that is compressed as a whole, as a JPEG is, is decoded again whenever the order comes back to it from
    another one; ``KeptDataset(run, ids=sorted(data.ids))`` goes through them scene by scene.

    Args:
        run: A run with a finished selection, or its folder.
        ids: Other images of the run instead of the kept ones, such as those that were dropped.
        values: "uint8" maps to 8 bits what the run declared as the range of the source; "stored" gives the values as
            they lie in the files.
        transform: Called with every image, uint8 or as stored [C, H, W].

    Attributes:
        ids: Of the images, in order.
        scenes: Names of the scenes, sorted.
        scene: int64 [N], index into `scenes`.
        cluster: int64 [N].

    Raises:
        ConfigError: The run is not finished, or has no such image; later, where its images are in another place.
    """

    def __init__(
        self,
        run: RunPath,
        *,
        ids: Iterable[str] | None = None,
        values: Literal["uint8", "stored"] = "uint8",
        transform: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        if values not in ("uint8", "stored"):
            raise ConfigError(f"values is {values!r}: give uint8 or stored")
        self.run = open_run(run)
        self.values = values
        self.transform = transform
        self._rows = chosen(self.run, ids)
        names = pc.unique(self._rows["scene"].drop_null()).sort()
        self.scenes: tuple[str, ...] = tuple(names.to_pylist())
        self.scene = pc.fill_null(pc.index_in(self._rows["scene"], names), -1).to_numpy().astype(np.int64)
        self.cluster = pc.fill_null(self._rows["cluster"], -1).to_numpy().astype(np.int64)
        self._reader: tuple[int, Reader] | None = None

    def __repr__(self) -> str:
        shown = "" if self.values == "uint8" else f", values={self.values!r}"
        return f"KeptDataset({str(self.run.path)!r}{shown}) of {len(self):,} images in {len(self.scenes):,} scenes"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        i = range(len(self))[index]
        row = self._rows.slice(i, 1).to_pylist()[0]
        try:
            pixels = self._open().uint8(row) if self.values == "uint8" else self._open().image(row).pixels
        except UnreadableImage as error:
            raise UnreadableImage(f"{row['id']} {error}") from None
        image: Any = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        if self.transform is not None:
            image = self.transform(image)
        return {"image": image, "id": row["id"], "scene": int(self.scene[i]), "cluster": int(self.cluster[i])}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    @property
    def ids(self) -> list[str]:
        ids: list[str] = self._rows["id"].to_pylist()
        return ids

    def weights(self, by: str) -> np.ndarray:
        """Weights [N] of sum 1 for a ``WeightedRandomSampler``.

        Args:
            by: "scene" or "cluster" draws each of them equally often; or a file with weights, Parquet with `id` and
                `weight` or lines "id TAB weight".

        Raises:
            ConfigError: The file cannot be used.
        """
        of = {"scene": self.scene, "cluster": self.cluster}
        found = groups.weights(by, () if by in of else self.ids, of)
        assert found is not None, "only no wish at all draws all alike"
        return found

    def _open(self) -> Reader:
        # Open files must not be shared with a forked worker, which would move its parent's place in them.
        if self._reader is None or self._reader[0] != os.getpid():
            self._reader = os.getpid(), open_images(self.run)
        return self._reader[1]
