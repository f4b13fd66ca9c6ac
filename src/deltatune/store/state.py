"""The state of a training on disk: tensors in one safetensors file, everything else in one JSON file.

Any nesting of dicts, lists, tuples, numbers, strings, None and tensors comes back equal to the bit.
"""

import errno
import json
import math
import random
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deltatune.core.errors import DeltatuneError

TENSORS, VALUES = "state.safetensors", "state.json"
MARGIN = 1.1
"""Free space wanted per byte of tensors: a full disk is found before it is filled."""


def save(folder: Path, state: Any) -> None:
    """Writes a state into a folder.

    Raises `OSError` when the disk refuses, `DeltatuneError` for a value that JSON cannot carry.
    """
    tensors = _Tensors()
    values = _flatten(state, tensors)
    needed = int(MARGIN * sum(tensor.nbytes for tensor in tensors.values()))
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes needed, {shutil.disk_usage(folder).free:,} free", str(folder))
    try:
        save_file(tensors, folder / TENSORS)
    except SafetensorError as error:  # how safetensors reports an error of the disk
        raise OSError(errno.EIO, str(error), str(folder / TENSORS)) from error
    (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")


def load(folder: Path) -> Any:
    """Reads what `save` wrote; tensors are on the CPU."""
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    with safe_open(folder / TENSORS, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    return _restore(values, tensors)


class _Tensors(dict[str, Tensor]):
    """Tensors to be written, as they are: only what shares memory with one before is copied, safetensors refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Storage -> first byte and end of what is written of it."""

    def add(self, tensor: Tensor) -> str:
        """Takes a tensor; returns the name it is written by."""
        key, own = str(len(self)), tensor.detach().to("cpu").contiguous()
        start, end = own.data_ptr(), own.data_ptr() + own.nbytes
        taken = self._taken[own.untyped_storage().data_ptr()]
        shares = start == end or any(start < stop and begin < end for begin, stop in taken)
        taken.append((start, end))
        self[key] = own.clone() if shares else own
        return key


def _flatten(value: Any, tensors: _Tensors) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": tensors.add(value)}
    if isinstance(value, dict):
        return {"dict": [[_flatten(key, tensors), _flatten(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flatten(inner, tensors) for inner in value]}
    if isinstance(value, float):  # hexadecimal: exact, and JSON has no infinities
        return {"float": float(value).hex() if math.isfinite(value) else str(float(value))}
    if value is None or isinstance(value, bool | int | str):
        return value
    raise DeltatuneError(f"a training state cannot hold a {type(value).__name__}")


def _restore(value: Any, tensors: Mapping[str, Tensor]) -> Any:
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
            return float.fromhex(inner)  # reads `inf` and `nan` too
    raise DeltatuneError(f"training state: unknown kind of value {kind!r}")


def random_state() -> dict[str, Any]:
    """The state of every random generator: torch on every device, numpy, Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (str(name), torch.from_numpy(np.asarray(keys, "int64")), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Puts every random generator back; devices that are not here any more are left out."""
    torch.set_rng_state(state["torch"])
    for device, kept in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(kept, device)
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, gauss))
    random.setstate(state["python"])
