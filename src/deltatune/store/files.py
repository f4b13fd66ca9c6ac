"""Files of an adapter folder, read without trusting them: JSON objects and safetensors, never pickle."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltatune.core.errors import AdapterError

MAX_HEADER_BYTES = 8 << 20


MAX_JSON_BYTES = 8 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `AdapterError` for another content, and for what is no file of the folder."""
    check(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise AdapterError(f"{path} has {path.stat().st_size} bytes; settings have at most {MAX_JSON_BYTES}")
    try:
        return parsed(path.read_bytes().decode("utf-8"), path)
    except UnicodeDecodeError as error:
        raise AdapterError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def check(path: Path) -> None:
    """Raises `AdapterError` for a file that is none, or a link that leads elsewhere.

    A link may lead into its own folder, or into the `blobs` of a hub's cache, which keeps every file there.
    """
    if not path.is_file():
        raise AdapterError(f"{path} is not a file")
    folder, target = path.parent.resolve(), path.resolve()
    if not any(target.is_relative_to(place) for place in (folder, folder.parent.parent / "blobs")):
        raise AdapterError(f"{path} is a link to {target}, outside of its folder", hint="put a copy in its place")


def parsed(text: str, path: Path) -> dict[str, Any]:
    """The object in a JSON text without infinities; raises `AdapterError` naming the file."""
    try:
        value = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        raise AdapterError(f"{path}: not valid JSON") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file; raises `AdapterError` when it is damaged or no file of the folder."""
    check(path)
    with path.open("rb") as raw:
        header = int.from_bytes(raw.read(8), "little")
    if header > MAX_HEADER_BYTES:
        raise AdapterError(f"{path}: header of {header} bytes; an adapter's has at most {MAX_HEADER_BYTES}")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {error}", hint="copy or download it again") from None
