"""Files of an adapter folder, read without trusting them: JSON objects and safetensors, never pickle."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltatune.core.errors import AdapterError

MAX_HEADER_BYTES = 8 << 20


def parsed(text: str, path: Path) -> dict[str, Any]:
    """The object in a JSON text; raises `AdapterError` naming the file."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise AdapterError(f"{path}: not valid JSON") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file; raises `AdapterError` when it is damaged."""
    with path.open("rb") as raw:
        header = int.from_bytes(raw.read(8), "little")
    if header > MAX_HEADER_BYTES:
        raise AdapterError(f"{path}: header of {header} bytes; an adapter's has at most {MAX_HEADER_BYTES}")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {error}", hint="copy or download it again") from None
