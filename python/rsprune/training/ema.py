"""Moving average of the weights."""

from __future__ import annotations

import copy

import torch
from diffusers import ModelMixin


class Ema:
    """A copy of a network whose weights follow it slowly, and faster while the run is young."""

    def __init__(self, model: ModelMixin, *, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Moves towards `model` after `step` finished steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
