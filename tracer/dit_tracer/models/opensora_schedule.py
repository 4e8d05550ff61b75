"""The sampler of Open-Sora v1.2: Euler steps along a straight flow, more of them in noise the larger the video."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor


class RectifiedFlowScheduler(SchedulerMixin, ConfigMixin):
    """Rectified flow: `sigmas` are noise levels from 1 to 0, `timesteps` the same times `num_train_timesteps`.

    Args:
        use_timestep_transform: Whether the noise levels depend on the size of the video.
        base_resolution: Number of pixels of a frame at which they are equally spaced (for one frame).
        transform_scale: A further factor.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        use_timestep_transform: bool = True,
        base_resolution: int = 512 * 512,
        transform_scale: float = 1.0,
    ) -> None:
        self.sigmas = torch.linspace(1, 0, num_train_timesteps + 1)
        self.timesteps = self.sigmas[:-1] * num_train_timesteps
        self._step_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """How many steps have been made; None before the first."""
        return self._step_index

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
    ) -> None:
        """Lay out the steps for a video of this size, in pixels and frames before compression."""
        sigmas = 1 - torch.arange(num_inference_steps + 1, dtype=torch.float64) / num_inference_steps
        if self.config.use_timestep_transform:
            if height is None or width is None or num_frames is None:
                raise ValueError("the noise levels depend on the size of the video: give height, width and num_frames")
            ratio = (height * width / self.config.base_resolution) ** 0.5 * _frames(num_frames) ** 0.5
            ratio *= self.config.transform_scale
            sigmas = ratio * sigmas / (1 + (ratio - 1) * sigmas)
        self.num_inference_steps = num_inference_steps
        self.sigmas = sigmas.to(device, torch.float32)
        self.timesteps = (sigmas[:-1] * self.config.num_train_timesteps).to(device, torch.float32)
        self._step_index = None

    def step(
        self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, return_dict: bool = True
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """The sample at the next noise level.

        Args:
            model_output: Velocity from data to noise, as every flow-matching scheduler of diffusers takes it (the
                network gives the opposite direction).
        """
        if self._step_index is None:
            self._step_index = int((self.timesteps - float(timestep)).abs().argmin())
        here, there = self.sigmas[self._step_index], self.sigmas[self._step_index + 1]
        self._step_index += 1
        sample = (sample.float() + (there - here) * model_output.float()).to(sample.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=sample) if return_dict else (sample,)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample itself."""
        return sample

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def latent_frames(num_frames: int) -> int:
    """Number of latent frames: the autoencoder makes 5 of each full 17 frames, and 1 of each begun 4 of the rest."""
    chunks, rest = divmod(num_frames, 17)
    return 5 * chunks + -(-rest // 4)


def _frames(num_frames: int) -> int:
    """Latent frames as the noise levels count them: of full chunks only.

    Without a full chunk the original divides zero by zero, but for the still image, which it counts as one; here the
    frames of the begun chunk count.
    """
    return num_frames // 17 * 5 or latent_frames(num_frames)
