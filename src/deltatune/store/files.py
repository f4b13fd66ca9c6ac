"""Files of an adapter folder, read without trusting them: JSON objects and safetensors, never pickle."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltatune.core.errors import AdapterError

MAX_HEADER_BYTES = MAX_JSON_BYTES = 8 << 20
MAX_LEVELS = 32
"""Of objects and lists in each other."""
MAX_TENSORS = 20_000
MAX_NAME = 512
"""Characters in the name of a tensor."""


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


def plain_name(name: str) -> bool:
    r"""Whether a name is one component of a path on every system.

    >>> plain_name("reviews-0-lora"), plain_name("../up"), plain_name("a\\b"), plain_name("..")
    (True, False, False, False)
    """
    return name not in ("", ".", "..") and len(name) <= 64 and name.isprintable() and not set(name) & set("/\\:")


def word_of(config: Mapping[str, Any], key: str, file: str) -> Any:
    """A short text of a config, or None; raises `AdapterError` for anything else."""
    value = config.get(key) or None
    if value is not None and not (isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()):
        raise AdapterError(f"{file}: {key} {str(value)[:80]!r} is no name")
    return value


def parsed(text: str, path: Path) -> dict[str, Any]:
    """The object in a JSON text without infinities and keys given twice; raises `AdapterError` naming the file."""
    try:
        value = json.loads(text, parse_constant=_refused, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise AdapterError(f"{path}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise AdapterError(f"{path}: not valid JSON: {error}") from None
    if _levels(value) > MAX_LEVELS:
        raise AdapterError(f"{path}: not valid JSON: nested more than {MAX_LEVELS} deep")
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def _levels(value: Any) -> int:
    """How deep objects and lists are in each other."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is larger than any number can be")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two values under one key each reader would take another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} is given twice")
    return found


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, which stay on disk until they are read (they are mapped).

    Raises `AdapterError` when it is damaged, no file of the folder, or holds more than an adapter does.
    """
    check(path)
    with path.open("rb") as raw:
        header = int.from_bytes(raw.read(8), "little")
    if header > MAX_HEADER_BYTES:
        raise AdapterError(f"{path}: header of {header} bytes; an adapter's has at most {MAX_HEADER_BYTES}")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            _check_names(names, path)
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in names}
    except (SafetensorError, ValueError, OSError) as error:
        raise AdapterError(f"{path} is damaged: {error}", hint="copy or download it again") from None


def _check_names(names: Sequence[str], path: Path) -> None:
    """Raises `AdapterError` for more tensors, or other names of tensors, than an adapter has."""
    if len(names) > MAX_TENSORS:
        raise AdapterError(f"{path}: {len(names)} tensors; an adapter has at most {MAX_TENSORS}")
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise AdapterError(
                f"{path}: a tensor is called {name[:80]!r}; names have 1 to {MAX_NAME} printable characters"
            )
