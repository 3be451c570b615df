"""Draws images from a trained network; a copy of this file lies in model folders that need it.

Loads without rsprune: ``DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)``.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor


class TilePipeline(DiffusionPipeline):
    """A `unet` or a `transformer`, conditioned on `labels` if there are any.

    It works on pixels folded by `pixel_unshuffle`, or on the latents of `vae`. With `residual` it draws what the image
    that it is given lacks, in that unit.
    """

    _optional_components = ["unet", "transformer", "vae"]  # noqa: RUF012

    # diffusers compares these types with what it loads.
    def __init__(
        self,
        scheduler: SchedulerMixin,
        unet: ModelMixin | None = None,
        transformer: ModelMixin | None = None,
        vae: AutoencoderKL | None = None,
        labels: list[str] | tuple[str, ...] = (),
        pixel_unshuffle: int = 1,
        residual: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer, vae=vae)
        self.register_to_config(labels=list(labels), pixel_unshuffle=pixel_unshuffle, residual=residual)
        # Not clipped to the range of images, which latents and residuals leave.
        if (residual or vae is not None) and "clip_sample" in scheduler.config:
            scheduler.register_to_config(clip_sample=False)
            # Of the noise alone an image is estimated by a division, at the last time by almost nothing.
            if scheduler.config.prediction_type == "epsilon":
                scheduler.register_to_config(timestep_spacing="leading")

    @property
    def network(self) -> ModelMixin:
        return self.transformer if self.unet is None else self.unet

    @property
    def bands(self) -> int:
        """Of the images."""
        if self.vae is not None:
            return self.vae.config.out_channels
        return self.network.config.out_channels // self.config.pixel_unshuffle**2

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: list[str] | None = None,
        given: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 25,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:  # an ImagePipelineOutput, or a tuple of the images alone
        """Images in 0..1: "pil", "np" [N, H, W, C] or "pt" [N, C, H, W].

        Args:
          batch_size: Images to draw, where `class_labels` does not say it.
          class_labels: A name out of ``config.labels`` per image; without, images of any kind.
          given: [N, G, H, W] in -1..1, for networks that are given an image beside the noise.
          guidance_scale: 1 is the condition as trained; more is stronger.
          generator: One, or one per image, for reproducible images.
          num_inference_steps: Denoising steps.
        """
        network, names = self.network, list(self.config.labels)
        if class_labels is not None:
            batch_size = len(class_labels)
        elif given is not None:
            batch_size = len(given)
        channels, side = network.config.out_channels, network.config.sample_size
        extra = None
        if given is not None:
            extra = given.to(network.device, network.dtype)
            extra = torch.nn.functional.pixel_unshuffle(extra, self.config.pixel_unshuffle)
        wanted = network.config.in_channels - channels
        if wanted != (0 if extra is None else extra.shape[1]):
            folded = self.config.pixel_unshuffle**2
            raise ValueError(f"given must have {wanted // folded} channels: the network takes as many")
        image = randn_tensor(
            (batch_size, channels, side, side),
            generator=generator,
            device=network.device,
            dtype=network.dtype,
        )
        # The number after the last label stands for no label; a transformer without labels has number 0 only.
        without = torch.full((batch_size,), len(names), device=network.device)
        label = without
        if class_labels is not None:
            unknown = sorted(set(class_labels) - set(names))
            if unknown:
                raise ValueError(
                    f"there is no label {unknown[0]!r}: choose from {', '.join(names) or 'none'}"
                )
            label = torch.tensor([names.index(name) for name in class_labels], device=network.device)
        guided = class_labels is not None and guidance_scale != 1.0
        takes_labels = bool(names) or self.unet is None

        def predict(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            kwargs = {"class_labels": label} if takes_labels else {}
            if extra is not None:
                x = torch.cat([x, extra.repeat(len(x) // len(extra), 1, 1, 1)], dim=1)
            return network(x, timestep=t.to(x.device).expand(len(x)), **kwargs).sample

        self.scheduler.set_timesteps(num_inference_steps, device=network.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            if guided:
                both = predict(torch.cat([image, image]), t, torch.cat([label, without]))
                asked, free = both.chunk(2)
                output = free + guidance_scale * (asked - free)
            else:
                output = predict(image, t, label)
            image = self.scheduler.step(output, t, image, generator=generator).prev_sample
        if self.vae is not None:
            image = image / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
            image = self.vae.decode(image).sample
        image = torch.nn.functional.pixel_shuffle(image, self.config.pixel_unshuffle)
        if given is not None and self.config.residual:
            base = given.to(image.device, image.dtype)[:, : image.shape[1]]
            image = base + self.config.residual * image
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            image = image.cpu().permute(0, 2, 3, 1).float().numpy()
            image = self.numpy_to_pil(image) if output_type == "pil" else image
        return ImagePipelineOutput(images=image) if return_dict else (image,)
