"""The state of a training on disk: tensors in one safetensors file, everything else in one JSON file.

Any nesting of dicts, lists, tuples, numbers, strings, bytes-free scalars and tensors comes back equal to the bit.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from deltatune.core.errors import DeltatuneError

TENSORS, VALUES = "state.safetensors", "state.json"


def save(folder: Path, state: Any) -> None:
    """Writes a state into a folder; raises `DeltatuneError` for a value that JSON cannot carry."""
    tensors: dict[str, Tensor] = {}
    values = _flatten(state, tensors)
    save_file(tensors, folder / TENSORS)
    (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")


def load(folder: Path) -> Any:
    """Reads what `save` wrote; tensors are on the CPU."""
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    with safe_open(folder / TENSORS, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    return _restore(values, tensors)


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().to("cpu").contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[_flatten(key, tensors), _flatten(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_flatten(inner, tensors) for inner in value]}
    if isinstance(value, float):  # hexadecimal: exact, and carries infinities
        return {"float": value.hex() if math.isfinite(value) else str(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    raise DeltatuneError(f"a training state cannot hold a {type(value).__name__}")


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "dict":
            return {_restore(key, tensors): _restore(item, tensors) for key, item in inner}
        case "list":
            return [_restore(item, tensors) for item in inner]
        case "tuple":
            return tuple(_restore(item, tensors) for item in inner)
        case "float":
            return float(inner) if inner in ("inf", "-inf", "nan") else float.fromhex(inner)
    raise DeltatuneError(f"training state: unknown kind of value {kind!r}")


def random_state() -> dict[str, Any]:
    """The state of every random generator: torch on every device, numpy, Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(name), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts every random generator back."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, gauss))
    random.setstate(state["python"])
