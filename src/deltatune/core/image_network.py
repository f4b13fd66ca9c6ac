"""Image network: a network of transformers made to take the images that a task gives it, whatever their size and type.

Position embeddings that were learned for one size are interpolated where the network can do that, which its forward
must be told in every call; pixels come in float32 and are given on in the type of the network's weights.
"""

from functools import partial
from inspect import signature
from typing import Any

import torch

from deltatune.core.errors import SettingsError

INTERPOLATE = "interpolate_pos_encoding"


def take(network: Any, height: int, width: int) -> None:
    """Makes a network take images of a size by a hook on its forward.

    Raises `SettingsError` for a size that is no whole number of patches or that the network cannot read.
    """
    _check_patches(network.config, height, width)
    told = {} if _side(network.config) == (height, width) else _understood(network, height, width)
    network.register_forward_pre_hook(partial(_tell, told), with_kwargs=True)


def _tell(told: dict[str, Any], network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The hook: what else the forward is told, and pixels in the type of the weights."""
    pixels = kwargs.get("pixel_values")
    if pixels is None:
        return args, {**told, **kwargs}
    return args, {**told, **kwargs, "pixel_values": pixels.to(next(network.parameters()).dtype)}


def _check_patches(config: Any, height: int, width: int) -> None:
    patch = getattr(getattr(config, "vision_config", config), "patch_size", None) or 1
    across, along = (patch, patch) if isinstance(patch, int) else patch[-2:]
    if height % across or width % along:
        side = max(1, height // across) * across
        raise SettingsError(
            f"images of {height} x {width} pixels are no whole number of the model's patches of {across} x {along}",
            hint=f"set task.image_size to {side} or {side + across}",
        )


def _side(config: Any) -> tuple[int, int] | None:
    """Height and width that a network was made for, where it was made for one."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    return (size, size) if isinstance(size, int) else tuple(size) if size else None


def _understood(network: Any, height: int, width: int) -> dict[str, Any]:
    """What a network must be told to read an empty image of another size than its own."""
    interpolate = {INTERPOLATE: True}
    known = INTERPOLATE in signature(network.forward).parameters
    failures = []
    was = network.training
    network.eval()
    try:
        for told in [interpolate] if known else [{}, interpolate]:  # some hand on what they do not name
            try:
                with torch.no_grad():
                    network(pixel_values=torch.zeros(1, 3, height, width, dtype=network.dtype), **told)
                return told
            except (ValueError, RuntimeError, TypeError) as error:
                failures.append(str(error).splitlines()[0])
    finally:
        network.train(was)
    own = _side(network.config)
    raise SettingsError(
        f"{type(network).__name__} cannot read images of {height} x {width} pixels: {failures[0]}",
        hint=f"set task.image_size to {own[0]}, which it was made for" if own else "set another task.image_size",
    )
