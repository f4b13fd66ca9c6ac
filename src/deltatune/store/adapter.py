"""Adapter folders: `adapter_config.json`, `adapter_model.safetensors`, `README.md`.

For methods that peft has, peft's own format: peft, `transformers` and vLLM load the folder. Other methods use the same
three files under a `peft_type` of ours. What peft's config has no room for (exact settings, fingerprint of the base,
facts of the task) stands in the metadata of the safetensors header, where every reader ignores it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deltatune.core import registry
from deltatune.core.errors import AdapterError, did_you_mean
from deltatune.core.method import AdapterFile, Method
from deltatune.core.site import Site
from deltatune.core.targeted import listed
from deltatune.store import adapterhub, atomic, peft_keys
from deltatune.store.card import card
from deltatune.store.files import parsed, read_json, read_tensors

CONFIG, WEIGHTS, PARTS = "adapter_config.json", "adapter_model.safetensors", "parts"
FORMAT = 1
"""Version of what we write into the metadata."""


def write(file: AdapterFile, folder: Path) -> Path:
    """Writes an adapter folder, whole or not at all; tensors keep their dtype."""
    with atomic.folder(folder, manifest=False) as staging:
        _fill(file, staging)
    return folder


def _fill(file: AdapterFile, folder: Path) -> None:
    """The three files, and a folder like it for every adapter that this one reads or consists of."""
    tensors = {key: tensor.contiguous().cpu() for key, tensor in peft_keys.ours_to_file(file).items()}
    config = json.dumps(_config(file), indent=2, sort_keys=True) + "\n"
    save_file(_unshared(tensors), folder / WEIGHTS, metadata=_metadata(file))
    (folder / CONFIG).write_text(config, encoding="utf-8")
    (folder / "README.md").write_text(card(file, config), encoding="utf-8")
    for part in file.parts:
        (folder / PARTS / part.name).mkdir(parents=True)
        _fill(part, folder / PARTS / part.name)


def read(folder: Path) -> AdapterFile:
    """Reads an adapter folder of ours, of peft or of AdapterHub; its tensors still have the names of the file.

    Raises `AdapterError` for a missing, cut or foreign file, an unknown method or unknown settings.
    """
    if adapterhub.is_folder(folder):
        return adapterhub.read(folder)
    config = _read_config(folder)
    metadata, tensors = read_tensors(folder / WEIGHTS)
    extra = parsed(metadata.get("deltatune", "{}"), folder / WEIGHTS)
    return AdapterFile(
        name=extra.get("name") or "default",
        method=_method(_with_saved(config, tensors), extra, folder),
        base_model=config.get("base_model_name_or_path"),
        tensors=tensors,
        sites=(),
        parts=[read(folder / PARTS / name) for name in _part_names(extra, folder)],
        fingerprint=extra.get("fingerprint", ""),
        task_type=config.get("task_type"),
        facts=extra.get("facts", {}),
    )


def tensors_at(
    tensors: Mapping[str, Tensor], method: Method, sites: Sequence[Site], saved: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a file under the names of `AdapterFile.tensors`, for the sites the method found in a model."""
    of_adapterhub = adapterhub.wrote(tensors)
    return (adapterhub.tensors_at if of_adapterhub else peft_keys.file_to_ours)(tensors, method, sites, saved)


def size(folder: Path) -> int:
    """Bytes of the weights of an adapter folder, those of its parts included."""
    return sum(path.stat().st_size for path in folder.rglob(WEIGHTS))


def _part_names(extra: Mapping[str, Any], folder: Path) -> list[str]:
    """Names of the parts' folders; raises `AdapterError` for anything but plain names."""
    names = extra.get("parts", [])
    if not isinstance(names, list) or any(not isinstance(n, str) or Path(n).name != n or n == ".." for n in names):
        raise AdapterError(f"{folder}: parts {str(names)[:80]} are not names of folders")
    return names


def _config(file: AdapterFile) -> dict[str, Any]:
    common: dict[str, Any] = {
        "base_model_name_or_path": file.base_model,
        "inference_mode": True,
        "modules_to_save": sorted(file.saved_modules) or None,
        "peft_type": file.method.peft_type if file.method.for_peft(file.sites) else own_type(file.method),
        "revision": None,
        "task_type": file.task_type,
    }
    if file.method.for_peft(file.sites):
        return {**common, **file.method.peft_config(file.sites)}
    return {**common, **file.method.model_dump(mode="json", exclude={"modules_to_save"})}


def own_type(method: Method) -> str:
    """`peft_type` of a method that peft does not have."""
    return f"DELTATUNE_{method.type.upper().replace('-', '_')}"


def _metadata(file: AdapterFile) -> dict[str, str]:
    extra = {
        "format": FORMAT,
        "name": file.name,
        "type": file.method.type,
        "settings": file.method.model_dump(mode="json"),
        "fingerprint": file.fingerprint,
        "facts": dict(file.facts),
        **({"parts": [part.name for part in file.parts]} if file.parts else {}),
    }
    return {"format": "pt", "deltatune": json.dumps(extra)}  # not sorted: in a pattern the first match counts


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with memory of its own, which safetensors asks for."""
    return {key: tensor.clone() for key, tensor in tensors.items()}


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        near = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        raise AdapterError(f"{folder}: no such adapter folder", hint=did_you_mean(str(folder), near) if near else None)
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} is not an adapter folder: it has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        raise AdapterError(
            f"{folder} has no {WEIGHTS}", hint="pickle files (.bin, .pt) are never loaded: convert them to safetensors"
        )
    return read_json(path)


def _with_saved(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config with `modules_to_save` as the file has them.

    peft lists heads that the model may not have, and takes a name for the end of another (`pre_classifier`).
    """
    names = tuple(listed(config.get("modules_to_save")))
    if any(not isinstance(name, str) for name in names):
        raise AdapterError(f"{CONFIG}: modules_to_save {str(names)[:80]} are not names")
    found: dict[str, None] = {}
    for key in tensors:
        parts = key.removeprefix(peft_keys.ROOT).removeprefix("base_model.").split(".")
        for end in range(1, len(parts)):
            path = ".".join(parts[:end])
            if names and path.endswith(names) and "lora_" not in key:
                found[path] = None
                break
    return {**config, "modules_to_save": list(found) or None}


def _method(config: Mapping[str, Any], extra: Mapping[str, Any], folder: Path) -> Method:
    """Settings: our own record where there is one, peft's fields otherwise."""
    if extra:
        if extra.get("format") != FORMAT:
            raise AdapterError(f"{folder} was written by a newer deltatune (format {extra.get('format')})")
        settings = extra.get("settings", {})
        if not isinstance(settings, dict):
            raise AdapterError(f"{folder}: the settings in {WEIGHTS} are {type(settings).__name__}, no mapping")
        return registry.method(str(extra.get("type")), **settings)
    for cls in registry.methods().values():
        found = cls.from_peft(config)
        if found is not None:
            return found
    raise AdapterError(f"{folder}: no method for peft_type {config.get('peft_type')!r}")
