"""What the network is asked to predict, and the scheduler that turns its predictions into images."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from rsprune.training.config import TrainConfig

TIMES = 1000  # the unit of time that diffusers' models and schedulers speak


class Objective(Protocol):
    """What `train` and the held-out loss ask of an objective."""

    scheduler: SchedulerMixin

    def task(
        self, image: torch.Tensor, noise: torch.Tensor, time: torch.Tensor, normal_time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input [B, C, H, W], time [B] and target [B, C, H, W] of the network."""
        ...


class Flow:
    """Flow matching on straight lines (Lipman et al. 2023; Liu et al. 2023): predict noise - image."""

    def __init__(self, settings: TrainConfig):
        self.logit_normal = settings.timestep_sampling == "logit_normal"  # Esser et al. 2024
        self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES)

    def task(
        self, image: torch.Tensor, noise: torch.Tensor, time: torch.Tensor, normal_time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input [B, C, H, W], time [B] in 0..1000 and target [B, C, H, W] of the network."""
        sigma = torch.sigmoid(normal_time) if self.logit_normal else time
        s = sigma.view(-1, 1, 1, 1)
        return (1 - s) * image + s * noise, sigma * TIMES, noise - image


class Ddpm:
    """Denoising diffusion (Ho et al. 2020): predict the noise, the image, or v (Salimans and Ho 2022)."""

    def __init__(self, settings: TrainConfig):
        # A linear schedule leaves small images all noise for a quarter of the time (Nichol and Dhariwal 2021).
        self.scheduler = DDPMScheduler(
            num_train_timesteps=TIMES,
            beta_schedule="squaredcos_cap_v2",
            prediction_type=settings.prediction_type,
        )

    def task(
        self, image: torch.Tensor, noise: torch.Tensor, time: torch.Tensor, normal_time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input [B, C, H, W], time [B] in 0..999 and target [B, C, H, W] of the network."""
        steps = (time * TIMES).long().clamp(max=TIMES - 1)  # a time just below 1 may have been rounded to 1
        noisy = self.scheduler.add_noise(image, noise, steps)
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return noisy, steps, self.scheduler.get_velocity(image, noise, steps)
        return noisy, steps, noise if kind == "epsilon" else image


def make_objective(settings: TrainConfig) -> Objective:
    """The objective that `settings` name."""
    return Flow(settings) if settings.objective == "flow" else Ddpm(settings)


def learning_rate(step: int, settings: TrainConfig) -> float:
    """The rate of a step, counted from 0; no state, so that it is the same after resuming."""
    warm = settings.lr_warmup_steps
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, settings.max_train_steps - warm)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return settings.learning_rate * fall[settings.lr_scheduler]
