"""What is wrong is said by name, and nothing is written."""

import ctypes
import sys

import numpy as np
import pytest
import torch

from rsprune import _C, kmeans_assign, patch_entropy

U8 = np.zeros((2, 8, 8), np.uint8)
U16 = np.zeros((2, 8, 8, 3), np.uint16)
X = np.ones((4, 3), np.float32)
C = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patch_entropy(U8[0]), r"images must have shape \[N, H, W\] or \[N, H, W, C\], got \[8, 8\]"),
        (lambda: patch_entropy(U8.astype(np.float32)), "images must be uint8 or uint16, got float32"),
        (lambda: patch_entropy(U8.astype(np.int8)), "images must be uint8 or uint16, got int8"),
        (lambda: patch_entropy(torch.from_numpy(U8).long()), "images must be uint8 or uint16, got int64"),
        (lambda: patch_entropy(U8.astype(str)), "images must be an array of numbers, got dtype"),
        (lambda: patch_entropy(U8, 0), "patch must be at least 1 pixel, got 0"),
        (lambda: patch_entropy(U16), "scale must be given for uint16 images, got None"),
        (
            lambda: patch_entropy(U16, scale=[(0, 1), (0, 1)]),
            r"scale must be one \(lo, hi\) or one for each of 3",
        ),
        (lambda: patch_entropy(U16, scale=(5, 5)), "scale must have finite lo < hi"),
        (lambda: patch_entropy(U16, scale=(0, np.inf)), "scale must have finite lo < hi"),
        (lambda: patch_entropy(U16, scale="auto"), "scale must be one"),
        (
            lambda: patch_entropy(U8, valid=np.ones((2, 8, 7), bool)),
            r"valid must have shape \[2, 8, 8\], got \[2, 8, 7\]",
        ),
        (lambda: patch_entropy(U8, valid=np.ones((2, 8, 8))), "valid must be bool or uint8, got float64"),
        (
            lambda: patch_entropy(U8, 4, out=np.zeros((2, 2, 3), np.float32)),
            r"out must have shape \[2, 2, 2\], got \[2, 2, 3\]",
        ),
        (lambda: patch_entropy(U8, 4, out=np.zeros((2, 2, 2))), "out must be float32, got float64"),
        (lambda: patch_entropy(U8, 4, out=[0.0]), "out must be a NumPy, PyTorch or CuPy array, got list"),
        (lambda: kmeans_assign(X[0], C), r"x must have shape \[N, D\], got \[3\]"),
        (lambda: kmeans_assign(X, C[:, :2]), r"centers must have shape \[K, 3\], got \[2, 2\]"),
        (lambda: kmeans_assign(X, C[:0]), r"centers must have between 1 and \d+ rows, got \[0, 3\]"),
        (lambda: kmeans_assign(X[:, :0], C[:, :0]), r"x must have at least one feature, got \[4, 0\]"),
        (
            lambda: kmeans_assign(X.astype(np.float64), C),
            "x must be float32, float16 or bfloat16, got float64",
        ),
        (lambda: kmeans_assign(X, C.astype(np.float16)), "centers must be float32, got float16"),
        (
            lambda: kmeans_assign(X, C, out=(np.zeros(4, np.int64), np.zeros(4, np.float32))),
            "labels must be int32, got int64",
        ),
        (
            lambda: kmeans_assign(X, C, out=(np.zeros(4, np.int32), np.zeros(5, np.float32))),
            r"distances must have shape \[4\], got \[5\]",
        ),
    ],
)
def test_error_names_argument_wanted_and_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["read-only", "strided"])
def test_output_that_cannot_be_written(kind):
    out = np.full((2, 2, 4), -1, np.float32)[:, :, ::2]
    if kind == "read-only":
        out = out.copy()
        out.flags.writeable = False
    with pytest.raises(
        ValueError, match=r"out must be (writable, got a read-only|C-contiguous, got a strided)"
    ):
        patch_entropy(U8, 4, out=out)
    assert (out == -1).all()


def test_nothing_is_written_on_error():
    labels, distances = np.full(4, 7, np.int32), np.full(4, 7, np.float32)
    with pytest.raises(ValueError, match="centers must be float32"):
        kmeans_assign(X, C.astype(np.float64), out=(labels, distances))
    assert (labels == 7).all()
    assert (distances == 7).all()


def test_kernels_refuse_strided_inputs():
    """`rsprune.ops` copies them; the extension itself does not."""
    with pytest.raises(ValueError, match="images must be C-contiguous"):
        _C.patch_entropy(U8[:, :, ::2], None, None, np.zeros((2, 2, 1), np.float32), 4)


def test_meta_tensor_is_refused():
    with pytest.raises(Exception, match=r"(?i)meta"):
        patch_entropy(torch.zeros(1, 8, 8, dtype=torch.uint8, device="meta"))


def test_sums_check_labels():
    sums, counts = np.zeros((2, 3)), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="labels must be below 2, got 2"):
        _C.kmeans_sums(X, np.array([0, 1, 2, 0], np.int32), sums, counts)
    assert (sums == 0).all()


class Elsewhere:
    """A tensor that says it lies on a device which neither kernel can reach."""

    def __init__(self, tensor: torch.Tensor, kind: int):
        self.tensor, self.kind = tensor, kind

    def __dlpack_device__(self):
        return self.kind, 0

    def __dlpack__(self, **_):
        capsule = torch.utils.dlpack.to_dlpack(self.tensor)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # DLTensor: the pointer to the data, then the type of the device.
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = self.kind
        return capsule


@pytest.mark.parametrize("kind", [8, 10, 14])  # Metal, ROCm, oneAPI
def test_memory_of_other_devices_is_not_touched(kind):
    labels, distances = np.zeros(4, np.int32), np.zeros(4, np.float32)
    there = Elsewhere(torch.from_numpy(C), kind)
    with pytest.raises(
        ValueError, match=f"centers must be on the CPU or a CUDA device, got device type {kind}"
    ):
        _C.kmeans_assign(X, there, labels, distances)
    valid = Elsewhere(torch.ones(2, 8, 8, dtype=torch.uint8), kind)
    out = np.full((2, 1, 1, 1), 7, np.float32)
    with pytest.raises(ValueError, match="valid must be on the CPU or a CUDA device"):
        _C.patch_entropy(U8[..., None], valid, None, out, 8)
    assert (out == 7).all()


def test_pinned_memory_is_memory_of_the_host():
    """Whatever number its device has."""
    labels, distances = np.zeros(4, np.int32), np.zeros(4, np.float32)
    _C.kmeans_assign(X, Elsewhere(torch.from_numpy(C), 3), labels, distances)
    assert (distances == 0).all()


@pytest.mark.parametrize("patch", [8, 9, sys.maxsize])
def test_a_patch_larger_than_the_image_is_the_image(patch):
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8), np.uint8)
    np.testing.assert_array_equal(patch_entropy(image, patch), patch_entropy(image, 8))


@pytest.mark.parametrize("value", ["sse9", "AVX2"])
def test_unknown_instruction_set(monkeypatch, value):
    monkeypatch.setenv("RSPRUNE_ISA", value)
    with pytest.raises(
        ValueError, match=f"RSPRUNE_ISA must be portable, avx2, avx512 or avx512bf16, got {value}"
    ):
        kmeans_assign(X, C)


def test_instruction_set_is_read_at_each_call(monkeypatch):
    monkeypatch.setenv("RSPRUNE_ISA", "portable")
    assert _C.isa() == "portable"
    monkeypatch.delenv("RSPRUNE_ISA")
    assert _C.isa() == _C.best_isa()


def test_memory_is_released():
    """A capsule lives for the call only: no reference to the array is left behind."""
    images = np.zeros((1, 8, 8), np.uint8)
    before = sys.getrefcount(images)
    for _ in range(10):
        patch_entropy(images, 4)
    assert sys.getrefcount(images) == before
