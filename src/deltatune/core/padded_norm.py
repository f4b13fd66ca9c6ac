"""Group norms over time that leave padding out: a row does not depend on how far its batch is padded.

The front of wav2vec2-base, HuBERT-base, WavLM-base and of all Moonshine models is normalised over the whole clip. Over
a padded batch that includes the padding, so the same clip is heard differently among longer ones. Here mean and
variance are those of the real frames, and every row is heard as if it were alone.

Shape legend: B rows, C channels, T frames, G groups.
"""

from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import SettingsError
from deltatune.core.recogniser import MASK

MOONSHINE = "moonshine"
MOONSHINE_STRIDES = ((127, 64), (7, 3), (3, 2))
"""Kernel and stride of Moonshine's convolutions."""


class RealFrames(nn.GroupNorm):
    """A group norm over the real frames of each row; over all of them where nobody said how many there are."""

    frames: Tensor | None = None
    """Real frames of every row [B] of the batch that is under way; checkpointing runs its forward again."""

    def forward(self, x_BCT: Tensor) -> Tensor:
        """x normalised, scaled and moved."""
        if self.frames is None:
            return super().forward(x_BCT)
        rows, channels, times = x_BCT.shape
        real_B11T = (torch.arange(times, device=x_BCT.device) < self.frames[:, None])[:, None, None]
        x_BGCT = x_BCT.float().view(rows, self.num_groups, channels // self.num_groups, times)
        count_B = self.frames.view(-1, 1, 1, 1) * x_BGCT.shape[2]
        mean = (x_BGCT * real_B11T).sum((2, 3), keepdim=True) / count_B
        variance = ((x_BGCT - mean).square() * real_B11T).sum((2, 3), keepdim=True) / count_B
        normed_BCT = ((x_BGCT - mean) * torch.rsqrt(variance + self.eps)).view_as(x_BCT)
        return (normed_BCT * self.weight[:, None] + self.bias[:, None]).to(x_BCT.dtype)


def leave_padding_out(network: Any) -> None:
    """Makes the group norm at a speech model's front, where it has one, look at real frames only."""
    reads = network.get_encoder() if network.config.is_encoder_decoder else network.base_model
    found = [module for module in reads.modules() if type(module) is nn.GroupNorm]
    if len(found) > 1:
        raise SettingsError(f"{type(network).__name__} has {len(found)} group norms; one at the front is what is known")
    for norm in found:
        norm.__class__ = RealFrames
        reads.register_forward_pre_hook(_tell, with_kwargs=True)


def _tell(reads: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Tells the norm how many frames of every row its convolution makes of real samples."""
    mask = kwargs.get(MASK)
    if mask is None:
        _norm(reads).frames = None
        return args, kwargs
    samples_B = mask.sum(-1)
    convolution = next(module for module in reads.modules() if isinstance(module, nn.Conv1d))
    _norm(reads).frames = (samples_B - convolution.kernel_size[0]) // convolution.stride[0] + 1
    return args, {**kwargs, MASK: _exact(mask, samples_B)} if reads.config.model_type == MOONSHINE else kwargs


def _norm(reads: Any) -> RealFrames:
    return next(module for module in reads.modules() if isinstance(module, RealFrames))


def _exact(mask_BT: Tensor, samples_B: Tensor) -> Tensor:
    """A mask of which Moonshine, which takes every 384th value, keeps one per frame it makes of real samples.

    Of the plain mask it keeps one or two more, for frames that are half padding.
    """
    every = 1
    for kernel, stride in MOONSHINE_STRIDES:
        samples_B, every = (samples_B - kernel) // stride + 1, every * stride
    places_T = torch.arange(mask_BT.shape[-1], device=mask_BT.device)
    return (places_T < every * samples_B[:, None]).to(mask_BT.dtype)
