"""The adapters of the golden files: every method once, and those settings that make another file of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.engine.handle import Handle
from golden.base import ROWS, batch

SMALL: dict[str, Any] = {"target_modules": "attention"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora": ("bert", {"type": "adalora", "init_r": 3, "target_r": 2, "tinit": 1, "tfinal": 1, "deltaT": 1, **SMALL}),
    "adapter": ("bert", {"type": "adapter", "reduction_factor": 8}),
    "adapter-gated-llama": (
        "llama",
        {"type": "adapter", "placement": "parallel", "scaling": 4.0, "use_gating": True, "reduction_factor": 8},
    ),
    "adapter-fusion": ("bert", {"type": "adapter-fusion", "adapters": ("one", "two")}),
    "bitfit": ("bert", {"type": "bitfit"}),
    "boft": ("bert", {"type": "boft", "boft_block_size": 4, **SMALL}),
    "compacter": ("bert", {"type": "compacter", "reduction_factor": 4}),
    "conditional-adapter": (
        "bert",
        {"type": "conditional-adapter", "tasks": 3, "task_embedding_size": 4, "reduction_factor": 8},
    ),
    "conditional-adapter-hypernet": (
        "bert",
        {
            "type": "conditional-adapter",
            "generator": "hypernet",
            "condition_size": 5,
            "task_embedding_size": 4,
            "reduction_factor": 8,
        },
    ),
    "diff-pruning": ("bert", {"type": "diff-pruning", "density": 0.05}),
    "dora": ("bert", {"type": "dora", "r": 2, **SMALL}),
    "fish": ("bert", {"type": "fish", "density": 0.05, "fisher_steps": 2}),
    "full": ("bert", {"type": "full"}),
    "ia3": ("bert", {"type": "ia3"}),
    "ia3-gpt2": ("gpt2", {"type": "ia3"}),
    "ladder": ("bert", {"type": "ladder", "reduction_factor": 4, "num_heads": 2}),
    "ladder-llama": ("llama", {"type": "ladder", "reduction_factor": 4, "num_heads": 2, "leave_out": (0,)}),
    "layernorm": ("bert", {"type": "layernorm"}),
    "linear-probe": ("bert", {"type": "linear-probe"}),
    "loha": ("bert", {"type": "loha", "r": 2, **SMALL}),
    "lokr": ("bert", {"type": "lokr", "r": 2, **SMALL}),
    "lora": ("bert", {"type": "lora", "r": 2}),
    "lora-head": ("bert", {"type": "lora", "r": 2, "use_rslora": True, "modules_to_save": ("classifier",), **SMALL}),
    "lora-gpt2": ("gpt2", {"type": "lora", "r": 2}),
    "lora-patterns-llama": (
        "llama",
        {"type": "lora", "r": 2, "rank_pattern": {"*q_proj": 3}, "alpha_pattern": {"*v_proj": 5.0}},
    ),
    "lora-fa": ("bert", {"type": "lora-fa", "r": 2, **SMALL}),
    "mix": ("bert", {"type": "mix", "methods": ({"type": "compacter"}, {"type": "lora", "r": 2}, {"type": "bitfit"})}),
    "mix-gated-llama": (
        "llama",
        {
            "type": "mix",
            "methods": (
                {"type": "adapter", "placement": "pfeiffer", "reduction_factor": 8, "use_gating": True},
                {"type": "lora", "r": 2, "use_gating": True, **SMALL},
                {"type": "prefix", "num_virtual_tokens": 2, "use_gating": True},
            ),
        },
    ),
    "oft": ("bert", {"type": "oft", "oft_block_size": 4, **SMALL}),
    "p-tuning": ("bert", {"type": "p-tuning", "num_virtual_tokens": 3, "encoder_hidden_size": 4}),
    "p-tuning-llama": (
        "llama",
        {"type": "p-tuning", "num_virtual_tokens": 3, "encoder_reparameterization_type": "MLP"},
    ),
    "p-tuning-v2": ("bert", {"type": "p-tuning-v2", "num_virtual_tokens": 3}),
    "pissa": ("bert", {"type": "pissa", "r": 2, **SMALL}),
    "prefix": ("bert", {"type": "prefix", "num_virtual_tokens": 3}),
    "prefix-projected-llama": (
        "llama",
        {"type": "prefix", "num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 4},
    ),
    "prefix-t5": ("t5", {"type": "prefix", "num_virtual_tokens": 3}),
    "prompt": ("bert", {"type": "prompt", "num_virtual_tokens": 3}),
    "prompt-t5": ("t5", {"type": "prompt", "num_virtual_tokens": 3}),
    "shared-lora": ("bert", {"type": "shared-lora", "r": 2, "theta_d_length": 64, **SMALL}),
    "shared-lora-indices": (
        "bert",
        {"type": "shared-lora", "r": 2, "theta_d_length": 64, "save_indices": True, **SMALL},
    ),
    "sparse": ("bert", {"type": "sparse", "density": 0.05}),
    "spiel": ("bert", {"type": "spiel", "density": 0.05, "reselect_every": 2, "watch": 1}),
    "vera": ("bert", {"type": "vera", "r": 4}),
    "vera-seeded": ("bert", {"type": "vera", "r": 4, "save_projection": False}),
}
"""Name of the golden folder -> family of the base, settings."""
CONDITIONS: dict[str, list[Any]] = {
    "conditional-adapter": [0, 2, 1],
    "conditional-adapter-hypernet": [[0.5, -1.0, 0.25 * row, 1.0, -0.5 * row] for row in range(ROWS)],
}
"""Task ids or vectors of the rows, for the methods that read them."""


@contextmanager
def conditioned(case: str, handle: Handle) -> Iterator[None]:
    """Inside the block the rows have the conditions of a case, if it has any."""
    if case in CONDITIONS:
        with handle.conditioned(torch.tensor(CONDITIONS[case])):
            yield
    else:
        yield


def logits(case: str, network: nn.Module, handle: Handle | None) -> Tensor:
    """Outputs of a case: for every row three classes, or eight of the vocabulary behind the last two columns."""
    family, _ = CASES[case]
    with torch.no_grad():
        if handle is None:
            found: Tensor = network(**batch(family))[0]
        else:
            with conditioned(case, handle):
                found = network(**batch(family))[0]
    return found if found.dim() == 2 else found[:, -2:, :8]
