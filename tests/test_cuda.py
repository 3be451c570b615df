"""What only a GPU can show: streams, graphs, other libraries, large arrays; every kernel forced in turn.

That each kernel computes the right thing is asked by the tests with a `device` fixture, and without a GPU by
test_cuda_emulated.py.
"""

import numpy as np
import pytest
import torch

import rsprune
from rsprune import _C, KMeans, cluster_device, kmeans_assign, patch_entropy, reference

pytestmark = pytest.mark.skipif(not rsprune.cuda_available(), reason=str(rsprune.cuda_unavailable()))
CAPABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
ASSIGN = ["simple", *(["mma"] if CAPABILITY >= (8, 0) else []), *(["wgmma"] if CAPABILITY == (9, 0) else [])]
ENTROPY = ["simple", *(["fast"] if CAPABILITY >= (8, 0) else [])]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=ASSIGN)
def kernel(request, monkeypatch):
    monkeypatch.setenv("RSPRUNE_CUDA_KERNEL", request.param)
    return request.param


@pytest.fixture(params=ENTROPY)
def entropy_kernel(request, monkeypatch):
    monkeypatch.setenv("RSPRUNE_CUDA_ENTROPY", request.param)
    return request.param


def points(n, k, dim, dtype=torch.float16, seed=0, device="cuda"):
    generator = torch.Generator(device).manual_seed(seed)
    centers = torch.randn(k, dim, generator=generator, device=device)
    return torch.randn(n, dim, generator=generator, device=device).to(dtype), centers


def poisoned(n):
    return torch.full((n,), -7, dtype=torch.int32, device="cuda"), torch.full((n,), -7.0, device="cuda")


def assert_nearest(x, centers, labels, distances=None, rows=64):
    """Against float64 differences; where those are within rounding of a tie, against the exact reference."""
    for first in range(0, len(x), rows):
        part = x[first : first + rows].double()
        d = (part[:, None] - centers.double()).square().sum(2)
        best, nearest = d.min(1)
        found = labels[first : first + rows].long()
        doubtful = torch.nonzero(nearest != found).flatten()
        if len(doubtful):
            want = reference.kmeans_assign(part[doubtful].cpu().numpy(), centers.cpu().numpy())[0]
            np.testing.assert_array_equal(found[doubtful].cpu().numpy(), want)
        if distances is not None:
            torch.testing.assert_close(
                distances[first : first + rows].double(), best, rtol=2**-23, atol=1e-37
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "k", "dim"),
    [
        (5000, 1000, 128),
        (1500, 129, 129),
        (700, 2000, 64),
        (600, 257, 768),
        (300, 31, 4099),
        (3000, 1, 5),
        (1, 700, 200),
    ],
)
def test_nearest(kernel, dtype, n, k, dim):
    x, centers = points(n, k, dim, dtype)
    labels, distances = poisoned(n)
    kmeans_assign(x, centers, out=(labels, distances))
    assert_nearest(x, centers, labels, distances)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 128, 1024, 4096])
def test_near_ties_and_long_sums(kernel, dtype, dim):
    """Centres of which many nearly tie, and products that grow and cancel: where a bound too small would show."""
    x, _ = points(600, 1, dim, dtype, seed=dim)
    base = x[:40].float()
    noise = torch.randn(8, 40, dim, device="cuda") * torch.logspace(-7, -1, 8, device="cuda")[:, None, None]
    centers = (base + noise * base.abs()).reshape(-1, dim).contiguous()
    labels, distances = poisoned(600)
    kmeans_assign(x, centers, out=(labels, distances))
    assert_nearest(x, centers, labels, distances)
    ramp = torch.logspace(-3, 3, dim, device="cuda") * (1 - 2 * (torch.arange(dim, device="cuda") % 2))
    x, centers = (x.float() * ramp).clamp(-6e4, 6e4).to(dtype), centers * ramp.abs()
    kmeans_assign(x, centers, out=(labels, distances))
    assert_nearest(x, centers, labels)


def test_bfloat16_rows_scored_as_float16(kernel, monkeypatch):
    monkeypatch.setenv("RSPRUNE_CUDA_OPERAND", "half")
    x, centers = points(3000, 500, 96, torch.bfloat16)
    assert_nearest(x, centers, *kmeans_assign(x, centers))


def test_most_rows_are_proven(kernel):
    x, centers = points(20_000, 256, 128)
    x = (x.float() + centers[torch.arange(20_000, device="cuda") % 256]).half()
    labels, distances = poisoned(len(x))
    rechecked = torch.zeros(1, dtype=torch.int64, device="cuda")
    memory = torch.empty(_C.kmeans_workspace(x, centers), dtype=torch.uint8, device="cuda")
    _C.kmeans_assign(x, centers, labels, distances, 0, memory, None, rechecked)
    assert 0 <= int(rechecked) < 400
    bounds = torch.empty(len(x), 2, device="cuda")
    _C.kmeans_bounds(x, bounds)
    alone, again = torch.full_like(labels, -7), torch.zeros_like(rechecked)
    _C.kmeans_assign(x, centers, alone, None, 0, memory, bounds, again)
    assert torch.equal(alone, labels)
    assert torch.equal(again, rechecked)


def test_same_bits_every_time(kernel):
    x, centers = points(30_000, 500, 96, torch.bfloat16)
    first = kmeans_assign(x, centers)
    for _ in range(5):
        again = kmeans_assign(x, centers)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def test_callers_stream_without_waiting(kernel):
    """The work queues behind what computes x, and the call returns before that has run."""
    x, centers = points(4000, 300, 64)
    want, _ = kmeans_assign(x, centers)
    late = torch.zeros_like(x)
    labels, distances = poisoned(len(x))
    stream, done = torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(400_000_000)  # clock ticks: about 0.2 s
        late.copy_(x)
        kmeans_assign(late, centers, out=(labels, distances))
        done.record(stream)
    waiting = not done.query()
    torch.cuda.synchronize()
    assert waiting
    assert torch.equal(labels, want)


def test_graph_capture(kernel, entropy_kernel):
    x, centers = points(3000, 200, 80)
    images = torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8, device="cuda")
    labels, distances = poisoned(len(x))
    out = torch.full((4, 2, 2), -7.0, device="cuda")

    def work():
        kmeans_assign(x, centers, out=(labels, distances))
        patch_entropy(images, 32, out=out)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for seed in (1, 2):
        x.copy_(points(3000, 1, 80, seed=seed)[0])
        images.random_(0, 256)
        labels.fill_(-7)
        graph.replay()
        torch.cuda.synchronize()
        assert_nearest(x, centers, labels, distances)
        np.testing.assert_array_equal(out.cpu().numpy(), patch_entropy(images.cpu().numpy(), 32))


def test_cupy(kernel, entropy_kernel):
    cupy = pytest.importorskip("cupy")
    x, centers = points(1000, 60, 40)
    want = kmeans_assign(x, centers)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        got = kmeans_assign(cupy.from_dlpack(x), cupy.from_dlpack(centers))
        bits = patch_entropy(cupy.full((2, 64, 64), 9, cupy.uint8), 32)
        stream.synchronize()
    assert isinstance(got[0], cupy.ndarray)
    np.testing.assert_array_equal(cupy.asnumpy(got[0]), want[0].cpu().numpy())
    np.testing.assert_array_equal(cupy.asnumpy(got[1]), want[1].cpu().numpy())
    assert (cupy.asnumpy(bits) == 0).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_second_device(kernel, entropy_kernel):
    x, centers = points(500, 60, 40, device="cuda:1")
    labels, distances = kmeans_assign(x, centers)
    assert labels.device == torch.device("cuda:1")
    assert_nearest(x, centers, labels, distances)
    images = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8, device="cuda:1")
    np.testing.assert_array_equal(
        patch_entropy(images, 16).cpu().numpy(), patch_entropy(images.cpu().numpy(), 16)
    )
    assert torch.cuda.current_device() == 0


def enough_memory(gigabytes):
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    return pytest.mark.skipif(
        free < gigabytes << 30, reason=f"less than {gigabytes} GB of free device memory"
    )


@enough_memory(12)
@pytest.mark.parametrize("dim", [64, 640])
def test_more_than_2_to_31_values(kernel, dim):
    n = 2**31 // dim + 5000
    x = torch.empty(n, dim, dtype=torch.bfloat16, device="cuda")
    for part in x.split(1 << 22):
        part.normal_()
    centers = torch.randn(100, dim, device="cuda")
    labels, distances = kmeans_assign(x, centers)
    for part in (slice(0, 2000), slice(n - 6000, n)):
        assert_nearest(x[part], centers, labels[part], distances[part])
    assert int(labels.min()) >= 0


@enough_memory(12)
def test_more_than_2_to_31_pixels(entropy_kernel):
    images = torch.randint(0, 256, (2**31 // 65536 + 3, 256, 256), dtype=torch.uint8, device="cuda")
    out = patch_entropy(images, 32)
    np.testing.assert_array_equal(out[-4:].cpu().numpy(), patch_entropy(images[-4:].cpu().numpy(), 32))
    assert not out.isnan().any()


def test_workspace(kernel):
    x, centers = points(300, 20, 100)
    size = _C.kmeans_workspace(x, centers)
    assert (size == 0) == (kernel == "simple")
    labels, distances = poisoned(300)
    if size:
        with pytest.raises(ValueError, match=rf"workspace must be uint8 of at least {size} bytes, got None"):
            _C.kmeans_assign(x, centers, labels, distances)
        small = torch.empty(size - 1, dtype=torch.uint8, device="cuda")
        with pytest.raises(ValueError, match="workspace must be uint8 of at least"):
            _C.kmeans_assign(x, centers, labels, distances, 0, small)
        guarded = torch.full((size + 256,), 0xA5, dtype=torch.uint8, device="cuda")
        _C.kmeans_assign(x, centers, labels, distances, 0, guarded[:size])
        assert (guarded[size:] == 0xA5).all()


def test_unaligned_and_strided(kernel):
    flat = torch.randn(64 * 1000 + 1, device="cuda").half()
    centers = torch.randn(50, 64, device="cuda")
    x = flat[1:].reshape(1000, 64)  # rows start 2 bytes after multiples of 16
    assert_nearest(x, centers, *kmeans_assign(x, centers))
    assert_nearest(x[::3], centers, *kmeans_assign(x[::3], centers))


def test_unknown_kernel(monkeypatch):
    monkeypatch.setenv("RSPRUNE_CUDA_KERNEL", "best")
    with pytest.raises(ValueError, match="RSPRUNE_CUDA_KERNEL must be auto, simple, mma or wgmma, got best"):
        kmeans_assign(*points(3, 2, 4))


def test_simple_kernels_are_the_default(monkeypatch):
    monkeypatch.delenv("RSPRUNE_CUDA_KERNEL", raising=False)
    assert _C.kmeans_workspace(*points(300, 20, 64)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "k", "dim"), [(20_000, 50, 128), (3000, 5000, 33), (70_000, 1, 8), (1, 3, 257)]
)
def test_sums(dtype, n, k, dim):
    x, _ = points(n, 1, dim, dtype)
    labels = torch.randint(-1, k, (n,), device="cuda", dtype=torch.int32)
    labels[n // 3 : n // 2] = 0
    results = []
    for _ in range(3):
        sums = torch.ones(k, dim, dtype=torch.float64, device="cuda")
        counts = torch.full((k,), 10, dtype=torch.int64, device="cuda")
        cluster_device._add(x, labels, sums, counts)
        results.append(sums)
        used = labels >= 0
        want = torch.ones_like(sums).index_add_(0, labels[used].long(), x[used].double())
        torch.testing.assert_close(sums, want, rtol=1e-12, atol=1e-12 * n)
        assert torch.equal(counts, torch.bincount(labels[used].long(), minlength=k) + 10)
    assert all(torch.equal(results[0], r) for r in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kmeans_on_the_device(kernel, dtype):
    centers = torch.randn(8, 24, device="cuda") * 5
    x = (centers[torch.arange(4000, device="cuda") % 8] + 0.3 * torch.randn(4000, 24, device="cuda")).to(
        dtype
    )
    here = KMeans(8, random_state=0).fit(x)
    host = KMeans(8, random_state=0).fit(x.float().cpu().numpy())
    np.testing.assert_array_equal(here.labels_.cpu().numpy(), host.labels_)
    np.testing.assert_allclose(here.cluster_centers_, host.cluster_centers_, rtol=1e-5, atol=1e-5)
    assert here.n_iter_ == host.n_iter_
    assert torch.equal(here.predict(x), here.labels_)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_streamed_from_the_host(kernel, dtype, monkeypatch):
    x = np.random.default_rng(0).standard_normal((5000, 40)).astype(dtype)
    fits = []
    for block in (None, 700):
        make = cluster_device.Rows
        with monkeypatch.context() as patch:
            patch.setattr(cluster_device, "Rows", lambda x, d, make=make, b=block: make(x, d, block_rows=b))
            fits.append(KMeans(30, random_state=0, device="cuda").fit(x))
    assert torch.equal(fits[0].labels_, fits[1].labels_)
    np.testing.assert_allclose(fits[0].cluster_centers_, fits[1].cluster_centers_, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "shape", [(3, 96, 128), (2, 70, 65), (1, 64, 64, 3), (2, 64, 96, 4), (1, 40, 56, 13), (1, 300, 300)]
)
@pytest.mark.parametrize("patch", [5, 8, 16, 32, 64, 300])
def test_entropy_has_the_bits_of_the_cpu(entropy_kernel, shape, patch):
    random = np.random.default_rng(0)
    images = (random.integers(0, 256, shape) // random.choice([1, 30, 255], shape)).astype(np.uint8)
    valid = random.random(shape[:3]) < 0.7
    wide = (images.astype(np.uint16) * 37).astype(np.uint16)
    on = lambda a: torch.from_numpy(a).cuda()  # noqa: E731
    for args, kwargs in (
        ((images, patch), {}),
        ((images, patch), {"valid": valid}),
        ((images, patch), {"scale": (3, 200)}),
        ((wide, patch), {"scale": (10, 9000)}),
    ):
        device = {k: on(v) if k == "valid" else v for k, v in kwargs.items()}
        got = patch_entropy(on(args[0]), patch, **device).cpu().numpy()
        np.testing.assert_array_equal(got, patch_entropy(*args, **kwargs))
