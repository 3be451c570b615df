"""Metrics of features: closed forms, values by hand, and agreement with torchmetrics."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

from rsprune import evaluation
from rsprune.evaluation import (
    fd_infinity,
    frechet_distance,
    kernel_distance,
    memorization,
    prdc,
    vendi_score,
)

PAIRED = (frechet_distance, fd_infinity, kernel_distance, prdc)


def normal(n, d=8, *, seed=0, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def exactly(mean, root, n=64):
    """Rows [n, D] with exactly this mean and the covariance root' root."""
    x = normal(n, len(mean), seed=5)
    x -= x.mean(axis=0)
    x /= np.sqrt(n - 1)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v @ root * np.sqrt(n - 1) + mean


# Fréchet distance


def test_frechet_distance_of_gaussians():
    # Diagonal covariances commute: |m1 - m2|^2 + sum (s1 - s2)^2.
    s1, s2 = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0])
    x, y = (
        exactly(np.array([0.0, 1.0, 2.0]), np.diag(s1)),
        exactly(np.array([1.0, 1.0, -1.0]), np.diag(s2), n=50),
    )
    assert frechet_distance(x, y) == pytest.approx(10 + 1 + 2.25, rel=1e-9)


def test_frechet_distance_where_covariances_do_not_commute():
    a, b = normal(4, 4, seed=1), normal(4, 4, seed=2)
    zero = np.zeros(4)
    c1, c2 = a.T @ a, b.T @ b
    root_trace = np.sqrt(np.linalg.eigvals(c1 @ c2).real).sum()
    expected = np.trace(c1) + np.trace(c2) - 2 * root_trace
    assert frechet_distance(exactly(zero, a), exactly(zero, b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [3, 500])  # fewer and more than features
def test_frechet_distance_to_itself_is_zero(n):
    x = normal(n, 20, shift=100)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_symmetric_and_exact_far_from_the_origin():
    x, y = normal(300), normal(200, seed=1, scale=1.5)
    near = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(near, rel=1e-9)
    assert frechet_distance(x + 1e4, y + 1e4) == pytest.approx(near, rel=1e-6)


def test_metrics_do_not_depend_on_blocks(monkeypatch):
    x, y = normal(300), normal(250, seed=1)
    whole = frechet_distance(x, y), vendi_score(x)
    monkeypatch.setattr(evaluation.features.blocks, "__defaults__", (37,))
    assert (frechet_distance(x, y), vendi_score(x)) == pytest.approx(whole, rel=1e-9)


def test_fd_infinity_removes_the_bias_of_few_samples():
    reference = exactly(np.zeros(16), np.eye(16), n=200)
    found = [fd_infinity(normal(600, 16, seed=s), reference, seed=s) for s in range(8)]
    biased = [frechet_distance(normal(600, 16, seed=s), reference) for s in range(8)]
    assert abs(np.mean([f.value for f in found])) < 0.25 * np.mean(biased)
    assert all(f.slope > 0 and f.deviation > 0 for f in found)
    assert found[0].sizes[0] == 300
    assert found[0].sizes[-1] == 600
    assert len(found[0].sizes) == 15


def test_fd_infinity_is_the_intercept_of_the_line(monkeypatch):
    # A distance of exactly 3 + 50 / N, N being what the fit was given.
    module = sys.modules["rsprune.evaluation.frechet"]
    monkeypatch.setattr(module, "_fit", lambda x, rows=None: len(x) if rows is None else len(rows))
    monkeypatch.setattr(module, "_distance", lambda n, _: 3 + 50 / n)
    found = fd_infinity(normal(100), normal(10), points=5, smallest=20)
    assert found.sizes == (20, 40, 60, 80, 100)
    assert (found.value, found.slope) == pytest.approx((3, 50))
    assert found.deviation == pytest.approx(0, abs=1e-9)


# Kernel distance


def test_kernel_distance_by_hand():
    # Two points each, D = 1: k(a, b) = (ab + 1)^3.
    x, y = np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([[2.0], [2.0], [2.0], [2.0]])
    found = kernel_distance(x, y, subsets=1, subset_size=4)
    pairs = [(a * b + 1) ** 3 for i, a in enumerate(x[:, 0]) for j, b in enumerate(x[:, 0]) if i != j]
    within_x = sum(pairs) / 12
    assert within_x == pytest.approx((10 * 1 + 2 * 8) / 12)
    assert found.value == pytest.approx(within_x + 125 - 2 * (1 + 27) / 2)


@pytest.mark.parametrize("seed", range(2))
def test_halves_of_one_set_are_within_three_deviations_of_zero(seed):
    x = normal(1200, 32, seed=seed)
    found = kernel_distance(x[:600], x[600:], seed=seed)
    assert abs(found.value) < 3 * found.deviation
    assert found.subset_size == 300
    shifted = kernel_distance(x[:600], x[600:] + 0.5, seed=seed)
    assert shifted.value > 3 * shifted.deviation


def test_kernel_distance_depends_on_the_seed_only():
    x, y = normal(300), normal(300, seed=1)
    assert kernel_distance(x, y, seed=3) == kernel_distance(x, y, seed=3)
    assert kernel_distance(x, y, seed=3) != kernel_distance(x, y, seed=4)


# Precision, recall, density, coverage

LINE = np.array([[0.0], [1.0], [3.0], [7.0]])  # radii for k = 1: 1, 1, 2, 4; for k = 2: 3, 2, 3, 6


def test_prdc_by_hand():
    # Samples 0.5, 2.5, 20, 20.5: radii 2, 2, .5, .5. The balls of 0 and 1 hold 0.5, that of 3 holds 2.5, that
    # of 7 has 3 .. 11 and holds none. The balls of samples hold 0 and 1 (first), 1 and 3 (second).
    found = prdc(np.array([[0.5], [2.5], [20.0], [20.5]]), LINE, k=1)
    assert found.precision == 2 / 4
    assert found.recall == 3 / 4
    assert found.density == 3 / 4
    assert found.coverage == 3 / 4


def test_prdc_with_two_neighbours_by_hand():
    # Balls of the reference: -3 .. 3, -1 .. 3, 0 .. 6, 1 .. 13, borders outside. Sample 2 is in all four, 6 in
    # that of 7, -1 in that of 0. Radii of samples -1, 2, 6: 7, 4, 7, which reach all four points.
    found = prdc(np.array([[-1.0], [2.0], [6.0]]), LINE, k=2)
    assert found.precision == 1
    assert found.recall == 1
    assert found.density == pytest.approx((4 + 1 + 1) / 3 / 2)
    assert found.coverage == 1


def _prdc_of_all_distances(x, y, k):
    def squared(a, b):
        return np.square(a[:, None] - b[None]).sum(axis=-1)

    inside = squared(y, x) < np.sort(squared(y, y))[:, k, None]
    reached = squared(y, x) < np.sort(squared(x, x))[None, :, k]
    return inside.any(0).mean(), reached.any(1).mean(), inside.sum(0).mean() / k, inside.any(1).mean()


@pytest.mark.parametrize("kind", ["continuous", "ties", "far from the origin", "float32"])
def test_prdc_equals_that_of_all_distances(kind, monkeypatch):
    monkeypatch.setattr("rsprune.evaluation.neighbours.BLOCK", 37)
    x, y = normal(150, 4), normal(130, 4, seed=1, scale=1.1)
    if kind != "continuous":
        x, y = np.round(x * 1.5), np.round(y * 1.5)  # many distances equal a radius
    if kind == "far from the origin":
        x, y = x + 1e5, y + 1e5
    expected = _prdc_of_all_distances(x, y, 3)
    if kind == "float32":
        x, y = x.astype(np.float32), y.astype(np.float32)
    found = prdc(x, y, k=3)
    assert (found.precision, found.recall, found.density, found.coverage) == expected


def test_prdc_sees_what_is_missing_and_what_is_wrong():
    reference = np.concatenate([normal(300), normal(300, seed=1, shift=20)])
    half = prdc(normal(300, seed=2), reference)  # one of two modes
    assert half.precision > 0.9
    assert half.recall < 0.6
    assert half.coverage < 0.6
    noisy = prdc(np.concatenate([normal(300, seed=2), normal(300, seed=3, shift=-40)]), reference)
    assert noisy.precision < 0.6


# Vendi score


@pytest.mark.parametrize(("n", "d"), [(6, 10), (6, 6), (60, 6)])  # either matrix is decomposed
def test_vendi_score_of_orthogonal_groups(n, d):
    x = np.eye(6, d)[np.arange(n) % 6] * np.arange(1, n + 1)[:, None]  # lengths do not count
    assert vendi_score(x) == pytest.approx(6)
    assert vendi_score(np.ones((n, d))) == pytest.approx(1)


def test_vendi_score_by_hand():
    # Shares 3/4 and 1/4.
    x = np.array([[1.0, 0], [2, 0], [5, 0], [0, 1]])
    assert vendi_score(x) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_vendi_score_counts_rows_of_zeros_as_images():
    assert vendi_score(np.array([[0.0, 0], [0, 0], [1, 0]])) == pytest.approx(3)


# Memorisation


def test_memorization_by_hand():
    training = np.array([[0.0], [10.0]])
    held_out = np.array([[2.0], [13.0], [14.0], [-1.0]])  # 2, 3, 4, 1 away; median 2.5
    found = memorization(np.array([[0.5], [9.0], [5.0]]), training, held_out)  # 0.5, 1, 5; median 1
    assert found.ratio == pytest.approx(1 / 2.5)
    assert found.nearer == pytest.approx((1 + 3.5 / 4 + 0) / 3)  # of the two that are 1 away, half
    assert found.close == pytest.approx(2 / 3)  # 5 % of 1, 2, 3, 4 is 1.15


def test_memorization_of_copies_and_of_unseen_images():
    training, held_out = normal(400), normal(400, seed=1)
    copies = memorization(training[:200] + normal(200, seed=2, scale=1e-3), training, held_out)
    assert copies.ratio < 0.01
    assert copies.close == 1
    assert copies.nearer == 1
    unseen = memorization(normal(400, seed=3), training, held_out)
    assert unseen.ratio == pytest.approx(1, abs=0.1)
    assert unseen.nearer == pytest.approx(0.5, abs=0.1)
    assert unseen.close < 0.12


# All of them


@pytest.mark.parametrize("metric", PAIRED)
def test_bad_features_are_refused_with_both_numbers(metric):
    x, y = normal(40), normal(40, seed=1)
    with pytest.raises(ValueError, match=r"samples have 8 features but reference have 5"):
        metric(x, y[:, :5])
    with pytest.raises(ValueError, match=r"reference has 1 rows, but at least \d are needed"):
        metric(x, y[:1])
    with pytest.raises(ValueError, match=r"samples must be real numbers \[N, D\], got float64 \[40\]"):
        metric(x[:, 0], y)
    for bad in (np.nan, np.inf):
        x[7, 3] = bad
        with pytest.raises(ValueError, match=r"samples has NaN or infinity in row 7 of 40"):
            metric(x, y)


def test_other_bad_arguments():
    x = normal(10)
    with pytest.raises(ValueError, match="reference has 5 rows, but at least 6 are needed"):
        prdc(x, x[:5])
    with pytest.raises(ValueError, match=r"subset_size must be in 2 \.\. 10 and .* got 11"):
        kernel_distance(x, x, subset_size=11)
    with pytest.raises(ValueError, match=r"smallest must be in 2 \.\. 9 .* got 10"):
        fd_infinity(x, x, smallest=10)
    with pytest.raises(ValueError, match="held_out have 5 features but training have 8"):
        memorization(x, x, x[:, :5])
    with pytest.raises(ValueError, match="features must be real numbers"):
        vendi_score(x > 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_torch_tensors_are_taken(dtype):
    torch = pytest.importorskip("torch")
    x, y = (torch.from_numpy(normal(40, seed=s)).to(getattr(torch, dtype)) for s in (0, 1))
    for metric in PAIRED:
        plain = metric(x.detach().double().numpy(), y.double().numpy())
        ours = metric(x.requires_grad_(), y)
        if metric is frechet_distance:
            assert ours == pytest.approx(plain, rel=1e-6)
        else:
            assert list(vars(ours).values()) == [pytest.approx(v, rel=1e-4) for v in vars(plain).values()]


def test_agreement_with_torchmetrics():
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchmetrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another package, about itself
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        class Given(torch.nn.Module):
            num_features = 24

            def forward(self, x):
                return x

        x = np.abs(normal(400, 24)) @ normal(24, 24, seed=7) / 5
        y = np.abs(normal(300, 24, seed=1)) @ normal(24, 24, seed=8) / 5
        fid = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
        kid = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=300)
        for metric in (fid, kid):
            metric.update(torch.from_numpy(y), real=True)
            metric.update(torch.from_numpy(x[:300] if metric is kid else x), real=False)
        theirs, (mean, _) = fid.compute().item(), kid.compute()
    assert frechet_distance(x, y) == pytest.approx(theirs, rel=1e-4)
    assert kernel_distance(x[:300], y, subsets=1, subset_size=300).value == pytest.approx(
        mean.item(), rel=1e-4
    )


def test_public_names_resolve_and_nothing_is_imported_before():
    code = (
        "import sys, rsprune, rsprune.evaluation as e\n"
        "print(sorted(m for m in sys.modules if m.startswith('rsprune.evaluation')), 'torch' in sys.modules)\n"
        "print(all(getattr(e, name) for name in e.__all__), 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[:2] == ["['rsprune.evaluation'] False", "True False"]
    with pytest.raises(AttributeError, match="no attribute 'fid'"):
        evaluation.fid  # noqa: B018
