"""Vendi score: how many different images a set amounts to."""

from __future__ import annotations

import numpy as np

from rsprune.evaluation.features import Array, as_features, blocks


def vendi_score(features: Array) -> float:
    """Effective number of different rows of [N, D], from 1 (all alike) to N (all orthogonal).

    exp of the entropy of the eigenvalues of K / N with the cosine kernel K (Friedman & Dieng 2023). K / N [N, N]
    and X'X / N [D, D], with rows of X of unit length, share their eigenvalues save zeros: the smaller one is
    decomposed. A row of zeros is like no other and like itself, as an orthogonal one would be.

    Raises:
        ValueError: There is no row, or a value is not finite.
    """
    x = as_features("features", features, least=1)
    n, d = x.shape
    lengths = np.concatenate([np.linalg.norm(x[part].astype(np.float64), axis=1) for part in blocks(n)])
    zeros = int((lengths == 0).sum())
    lengths[lengths == 0] = 1
    if n > d:
        gram = np.zeros((d, d))
        for part in blocks(n):
            unit = x[part] / lengths[part, None]
            gram += unit.T @ unit
    else:
        unit = x / lengths[:, None]
        gram = unit @ unit.T
    shares = np.concatenate([np.linalg.eigvalsh(gram), np.ones(zeros)]) / n
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
