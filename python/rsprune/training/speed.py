"""What makes steps fast on a device, and how much of the device they use."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import re
import sys
import time
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense peaks (FLOP/s) in bf16 and in float32 without TF32, from the vendors' data sheets; by a word of the name.
PEAKS = {
    "B200": (2250e12, 75e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10": (125e12, 31.2e12),
}
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
FEW_TOKENS = 128


def keep_memory() -> None:
    """Lets the process keep memory that it frees: on a CPU a step asks for the same blocks as the last one.

    glibc gives large blocks back to the kernel, which hands them out again page by page, zeroed: 3 to 8 % of a step
    of the small networks. Does nothing where the C library is another one.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(MMAP_THRESHOLD, 1 << 28)


class FewTokens(AttnProcessor2_0):
    """Attention that leaves torch's flash kernel aside on a CPU where it is slower than the plain product.

    For 64 tokens in bf16 it takes twice the time, at 256 as much.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        tokens = hidden_states.shape[1] if hidden_states.ndim == 3 else hidden_states[0, 0].numel()
        few = sdpa_kernel(SDPBackend.MATH) if tokens <= FEW_TOKENS else contextlib.nullcontext()
        with few:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def prepare_cpu(model: ModelMixin) -> None:
    """Makes steps of `model` on a CPU as fast as they are here."""
    keep_memory()
    for module in model.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(FewTokens())


def step_flops(
    model: ModelMixin, inputs: torch.Tensor, times: torch.Tensor, label: torch.Tensor | None
) -> int:
    """FLOPs of the forward and backward pass of a batch; nothing is computed for it."""
    twin = copy.deepcopy(model).to("meta")
    x, t, label = (None if a is None else a.to("meta") for a in (inputs, times, label))
    with FlopCounterMode(display=False) as counter:
        twin(x, timestep=t, class_labels=label).sample.sum().backward()
    return counter.get_total_flops()


def peak(device: torch.device, *, bf16: bool) -> float | None:
    """FLOP/s that the device can do at most in that type; None where that is not in the table, and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((p[not bf16] for part, p in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


class Meter:
    """Speed of the steps alone: without the first one, which sets up, without checkpoints and samples.

    Args:
        images: Per step.
        peak: FLOP/s of one device; None where it is not known.
        processes: That share the images, each with a device.
    """

    def __init__(self, images: int, peak: float | None, *, processes: int = 1):
        self.images, self.peak, self.processes = images, peak, processes
        self.flops: float | None = None  # per image, forward and backward
        self.now = time.monotonic()
        self._steps, self._seconds = 0, 0.0
        self._since: tuple[int, float] | None = None

    def begin(self, step: int) -> None:
        """Counts from here on."""
        self._since = (step, time.monotonic())

    def stop(self, step: int) -> None:
        """Counts up to here."""
        self.now = time.monotonic()
        if self._since:
            self._steps += step - self._since[0]
            self._seconds += self.now - self._since[1]
            self._since = (step, self.now)

    def words(self, left: int) -> str:
        """Images per second, the share of the device's peak where that is known, and the time of `left` steps."""
        if not self._steps:
            return ""
        rate = self._steps * self.images / self._seconds
        said = f", {rate:,.0f} images/s"
        if self.flops:
            done = rate * self.flops / self.processes
            said += f", {done / 1e9:,.0f} GFLOP/s" if done < 1e12 else f", {done / 1e12:,.1f} TFLOP/s"
            said += f" ({done / self.peak:.0%} of the peak)" if self.peak else ""
        return f"{said}, about {left * self.images / rate:,.0f} s left"
