"""First contact with a kernel: small inputs, compared with float64. Exit code 0 if all is right.

python benchmarks/gpu_first.py {assign,entropy,sums} [--tiny]

Which kernel is chosen by RSPRUNE_CUDA_KERNEL and RSPRUNE_CUDA_ENTROPY; `--tiny` is for compute-sanitizer.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch

from rsprune import _C, kmeans_assign, patch_entropy, reference
from rsprune.cluster_device import _add

DEVICE = "cpu" if os.environ.get("RSPRUNE_GPU_DRY") else "cuda"
SHAPES = [(300, 130, 64), (1, 1, 1), (700, 1000, 128), (513, 129, 200), (257, 300, 768), (100, 50, 77)]


def assign(tiny: bool) -> list[str]:
    wrong = []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for n, k, dim in SHAPES[:1] + SHAPES[3:4] if tiny else SHAPES:
            generator = torch.Generator().manual_seed(n)
            x = torch.randn(n, dim, generator=generator).to(dtype)
            centers = torch.randn(k, dim, generator=generator)
            out = torch.full((n,), -7, dtype=torch.int32), torch.full((n,), -7.0)
            out = out[0].to(DEVICE), out[1].to(DEVICE)
            kmeans_assign(x.to(DEVICE), centers.to(DEVICE), out=out)
            labels, distances = (t.cpu().numpy() for t in out)
            want, far = reference.kmeans_assign(x.double().numpy(), centers.numpy())
            bad, off = int((labels != want).sum()), float(np.abs(distances - far).max() / far.max())
            print(f"{dtype} N={n} K={k} D={dim}: {bad} wrong labels, distances off by {off:.1e}")
            if bad or not off < 1e-6:
                rows = np.flatnonzero(labels != want)[:8]
                print("  rows", rows, "labels", labels[rows], "instead of", want[rows])
                wrong.append(f"{dtype} {n} {k} {dim}")
    return wrong


def entropy(tiny: bool) -> list[str]:
    wrong = []
    random = np.random.default_rng(0)
    for shape, patch in [((2, 64, 96), 32), ((2, 64, 96, 3), 16), ((1, 130, 70), 64), ((1, 32, 64, 4), 8)][
        : 2 if tiny else 4
    ]:
        images = (random.integers(0, 256, shape) // random.choice([1, 40, 255], shape)).astype(np.uint8)
        got = patch_entropy(torch.from_numpy(images).to(DEVICE), patch).cpu().numpy()
        same = np.array_equal(got, patch_entropy(images, patch))
        print(f"{shape} p={patch}: {'same bits as on the CPU' if same else 'different'}")
        if not same:
            print("  largest difference", np.abs(got - patch_entropy(images, patch)).max())
            wrong.append(f"{shape} {patch}")
    return wrong


def sums(tiny: bool) -> list[str]:
    wrong = []
    for n, k, dim in [(1000, 7, 64), (5000, 300, 33)][: 1 if tiny else 2]:
        generator = torch.Generator().manual_seed(n)
        x = torch.randn(n, dim, generator=generator).half().to(DEVICE)
        labels = torch.randint(-1, k, (n,), generator=generator).int().to(DEVICE)
        total, count = torch.zeros(k, dim, dtype=torch.float64), torch.zeros(k, dtype=torch.int64)
        total, count = total.to(DEVICE), count.to(DEVICE)
        _add(x, labels, total, count)
        used = labels >= 0
        want = torch.zeros_like(total).index_add_(0, labels[used].long(), x[used].double())
        ok = torch.allclose(total, want, rtol=0, atol=1e-9)
        ok = ok and torch.equal(count, torch.bincount(labels[used].long(), minlength=k))
        print(f"N={n} K={k} D={dim}: {'right' if ok else 'wrong'}")
        if not ok:
            wrong.append(f"{n} {k} {dim}")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["assign", "entropy", "sums"])
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    print("CUDA:", _C.cuda_unavailable() or "can run here")
    failed = {"assign": assign, "entropy": entropy, "sums": sums}[arguments.what](arguments.tiny)
    raise SystemExit(f"wrong: {', '.join(failed)}" if failed else 0)
