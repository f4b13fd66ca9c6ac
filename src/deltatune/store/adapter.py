"""Adapter folders: `adapter_config.json`, `adapter_model.safetensors`, `README.md`.

For methods that peft has, peft's own format: peft, `transformers` and vLLM load the folder. Other methods use the same
three files under a `peft_type` of ours. What peft's config has no room for (exact settings, fingerprint of the base,
facts of the task) stands in the metadata of the safetensors header, where every reader ignores it.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
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
from deltatune.store.files import parsed, plain_name, read_json, read_tensors, word_of
from deltatune.store.record import FORMAT, Record, check_globs

MAX_DEPTH = 3
"""Adapters inside of adapters: a mix of methods may hold a fusion, which reads others."""
CONFIG, WEIGHTS, PARTS = "adapter_config.json", "adapter_model.safetensors", "parts"
CARD = "README.md"
ON_THE_CARD = ("energy",)
"""Facts for the card alone: measured, so that they differ where the same training is run again."""


def write(file: AdapterFile, folder: Path) -> Path:
    """Writes an adapter folder, whole or not at all; tensors keep their dtype.

    An adapter that stands there is replaced, in either format; what else is there stays.
    """
    with atomic.folder(folder, manifest=False, own=(CONFIG, WEIGHTS, CARD, PARTS, *adapterhub.FILES)) as staging:
        _fill(file, staging)
    return folder


def _fill(file: AdapterFile, folder: Path) -> None:
    """The three files, and a folder like it for every adapter that this one reads or consists of."""
    tensors = {key: tensor.contiguous().cpu() for key, tensor in peft_keys.ours_to_file(file).items()}
    config = json.dumps(_config(file), indent=2, sort_keys=True) + "\n"
    save_file(_unshared(tensors), folder / WEIGHTS, metadata=_metadata(file))
    (folder / CONFIG).write_text(config, encoding="utf-8")
    (folder / CARD).write_text(card(file, config), encoding="utf-8")
    for part in file.parts:
        (folder / PARTS / part.name).mkdir(parents=True)
        _fill(part, folder / PARTS / part.name)


def read(folder: Path) -> AdapterFile:
    """Reads an adapter folder of ours, of peft or of AdapterHub; its tensors still have the names of the file.

    Raises `AdapterError` for a missing, cut or foreign file, an unknown method or unknown settings.
    """
    file = adapterhub.read(folder) if adapterhub.is_folder(folder) else _read(folder, MAX_DEPTH)
    check_globs(file.method)
    return file


def _read(folder: Path, depth: int) -> AdapterFile:
    """A folder of ours or of peft, whose parts have parts at most to this depth."""
    config = _read_config(folder)
    metadata, tensors = read_tensors(folder / WEIGHTS)
    base, task_type = (word_of(config, key, CONFIG) for key in ("base_model_name_or_path", "task_type"))
    found = partial(AdapterFile, base_model=base, tensors=tensors, sites=(), task_type=task_type)
    if "deltatune" not in metadata:
        return found(name="default", method=_of_peft(_with_saved(config, tensors), folder))
    record = Record.of(parsed(metadata["deltatune"], folder / WEIGHTS), str(folder / WEIGHTS))
    if record.parts and not depth:
        raise AdapterError(f"{folder}: parts are nested more than {MAX_DEPTH} deep")
    return found(
        name=record.name,
        method=registry.method(record.type, **{**_unsaid(record.type), **record.settings}),
        parts=[_read(_part(folder, name), depth - 1) for name in record.parts],
        fingerprint=record.fingerprint,
        facts=record.facts,
    )


def _unsaid(type: str) -> Mapping[str, Any]:
    """What the settings of a method meant before they were named."""
    known = registry.methods()
    return known[type].unsaid if type in known else {}


def tensors_at(
    tensors: Mapping[str, Tensor], method: Method, sites: Sequence[Site], saved: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a file under the names of `AdapterFile.tensors`, for the sites the method found in a model."""
    of_adapterhub = adapterhub.wrote(tensors)
    return (adapterhub.tensors_at if of_adapterhub else peft_keys.file_to_ours)(tensors, method, sites, saved)


def size(folder: Path) -> int:
    """Bytes of the weights of an adapter folder, those of its parts included."""
    return sum(path.stat().st_size for path in folder.rglob(WEIGHTS))


def _part(folder: Path, name: str) -> Path:
    """The folder of a part; raises `AdapterError` for anything but a plain name, and for a link to elsewhere."""
    part = folder / PARTS / name
    if not plain_name(name):
        raise AdapterError(f"{folder}: part {name[:80]!r} is not the name of a folder")
    if part.resolve() != folder.resolve() / PARTS / name:
        raise AdapterError(
            f"{part} is a link to {part.resolve()}, outside of its folder", hint="put a copy in its place"
        )
    return part


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
        "facts": {word: fact for word, fact in file.facts.items() if word not in ON_THE_CARD},
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
    given = config.get("modules_to_save")
    names = tuple(listed(given)) if isinstance(given, str | list | None) else (given,)
    if any(not isinstance(name, str) for name in names):
        raise AdapterError(f"{CONFIG}: modules_to_save {str(given)[:80]} are not names")
    found: dict[str, None] = {}
    for key in tensors:
        parts = key.removeprefix(peft_keys.ROOT).removeprefix("base_model.").split(".")
        for end in range(1, len(parts)):
            path = ".".join(parts[:end])
            if names and path.endswith(names) and "lora_" not in key:
                found[path] = None
                break
    return {**config, "modules_to_save": list(found) or None}


def _of_peft(config: Mapping[str, Any], folder: Path) -> Method:
    """Settings from peft's fields."""
    for cls in registry.methods().values():
        try:
            found = cls.from_peft(config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"{folder / CONFIG}: values are not of the kinds that peft writes: {error}") from None
        if found is not None:
            return found
    raise AdapterError(f"{folder}: no method for peft_type {str(config.get('peft_type'))[:80]!r}")
