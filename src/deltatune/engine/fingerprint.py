"""Fingerprint of a base: tells whether an adapter was trained on this model.

A hash over names, shapes and 64 values of every tensor, the values rounded to bfloat16 so that a base loaded in
another precision is still the same base.
"""

import hashlib
from collections.abc import Collection

import torch
from torch import nn

from deltatune.engine.blocks import base_parameters

SAMPLES = 64


def fingerprint(model: nn.Module, base: Collection[str], skip: Collection[str] = ()) -> str:
    """sha256 (hex) of the base's parameters named in `base`, without the heads an adapter replaces."""
    digest = hashlib.sha256()
    left_out = set(skip)
    for path, parameter in base_parameters(model):
        if path not in base or path in left_out:
            continue
        digest.update(f"{path}{list(parameter.shape)}".encode())
        if parameter.is_floating_point() and parameter.device.type != "meta":
            flat = parameter.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]
            digest.update(sample.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def exact_hash(model: nn.Module, base: Collection[str]) -> str:
    """sha256 (hex) of every byte of the base's parameters: equal before and after a training, or something is wrong."""
    digest = hashlib.sha256()
    for path, parameter in base_parameters(model):
        if path in base:
            digest.update(path.encode())
            digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
