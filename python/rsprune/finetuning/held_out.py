"""Images that are held out from a training: which ones, by a rule that does not depend on what else is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash

from rsprune.layout import digest
from rsprune.training.pool import Pool


@dataclass(frozen=True)
class HeldOut:
    """Images `pixels` [M, R, R, C] that are not trained on, with their `ids`, and where they come from."""

    ids: list[str]
    pixels: np.ndarray
    rule: str

    def facts(self) -> dict[str, Any]:
        """What a result says of them, JSON-able."""
        found = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(self.pixels).data)
        return {"n": len(self.ids), "rule": self.rule, "ids_hash": digest(self.ids), "pixels_hash": found}


def position(id: str, seed: int) -> float:
    """A number in [0, 1) of an id: the same whatever else is in the data."""
    return xxhash.xxh3_64_intdigest(f"{seed} {id}".encode()) / 2**64


def first_by_hash(images: HeldOut, count: int, *, seed: int) -> HeldOut:
    """At most `count` of them, chosen by `position`, in the order of their ids."""
    rank = np.argsort([position(id, seed) for id in images.ids])
    rows = np.sort(rank[:count])
    return replace(images, ids=[images.ids[i] for i in rows], pixels=images.pixels[rows])


def unseen(images: HeldOut, pool: Pool) -> HeldOut:
    """Without those whose pixels are those of an image of the pool."""
    seen = {xxhash.xxh3_128_digest(np.ascontiguousarray(image).data) for image in pool.pixels}
    hashes = (xxhash.xxh3_128_digest(np.ascontiguousarray(image).data) for image in images.pixels)
    rows = [i for i, found in enumerate(hashes) if found not in seen]
    return replace(images, ids=[images.ids[i] for i in rows], pixels=images.pixels[rows])


def rows_of(pool: Pool, which: np.ndarray) -> Pool:
    """The pool with the images `which` [N] bool."""
    weights = None if pool.weights is None else pool.weights[which] / pool.weights[which].sum()
    ids = [id for id, chosen in zip(pool.ids, which, strict=True) if chosen]
    facts = {**pool.facts, "images": len(ids), "ids_hash": digest(ids)}
    return replace(pool, ids=ids, pixels=pool.pixels[which], weights=weights, facts=facts)


def centred(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle [N, side, side, ...] of arrays [N, H, W, ...]."""
    top, left = ((size - side) // 2 for size in pixels.shape[1:3])
    return np.ascontiguousarray(pixels[:, top : top + side, left : left + side])
