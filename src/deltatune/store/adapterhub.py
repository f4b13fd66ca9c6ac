"""AdapterHub folders, as the library `adapters` 1.3.0 reads and writes them.

    one adapter   adapter_config.json, adapter.safetensors; with a head model_head.safetensors, head_config.json
    a fusion      <a,b,c>/adapter_fusion_config.json, <a,b,c>/model_adapter_fusion.safetensors, and a folder for each
                  adapter beside that one; adapter_setup.json above them

Bottleneck adapters, Compacter, AdapterFusion, LoRA, (IA)3, prompts, prefixes, and unions of them. Its default files are
pickles and are never loaded.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from deltatune.core.bottleneck import SUBLAYERS, BottleneckMethod
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import AdapterFile, Method
from deltatune.core.site import Site, SublayerSite
from deltatune.store import adapterhub_config as configs
from deltatune.store import adapterhub_keys as keys
from deltatune.store import adapterhub_prompts as prompts
from deltatune.store import atomic
from deltatune.store.files import plain_name, read_json, read_tensors, word_of

logger = logging.getLogger("deltatune")

CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
HEAD_CONFIG, HEAD_WEIGHTS = "head_config.json", "model_head.safetensors"
FUSION_CONFIG, FUSION_WEIGHTS = "adapter_fusion_config.json", "model_adapter_fusion.safetensors"
SETUP = "adapter_setup.json"
FILES = (CONFIG, WEIGHTS, HEAD_CONFIG, HEAD_WEIGHTS, FUSION_CONFIG, FUSION_WEIGHTS, SETUP)
"""What a folder may hold that is AdapterHub's."""
VIRTUAL = ("prompt", "prefix")
VERSION = "adapters.1.3.0"
"""Whose format is written."""


def is_folder(path: Path) -> bool:
    """Whether a folder is AdapterHub's."""
    if (path / FUSION_CONFIG).is_file() or (path / SETUP).is_file():
        return True
    if not (path / CONFIG).is_file():
        return False
    try:
        config = read_json(path / CONFIG)
    except (AdapterError, UnicodeDecodeError):
        return False
    return isinstance(config.get("config"), dict) and "peft_type" not in config


def wrote(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of AdapterHub's files."""
    return any(keys.KEY.fullmatch(key) for key in tensors if not key.startswith("base_model."))


def read(folder: Path) -> AdapterFile:
    """Reads an adapter, or a fusion with its adapters; tensors still have the names of the files.

    Raises `AdapterError` for damaged files, for pickles, and for settings that none of our methods has.
    """
    if (folder / SETUP).is_file():
        folder = _fusion_in(folder)
    return _read_fusion(folder) if (folder / FUSION_CONFIG).is_file() else _read_adapter(folder)


def tensors_at(
    tensors: Mapping[str, Tensor], method: Method, sites: Sequence[Site], saved: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a file under our names, for the sites the method found in a model.

    Raises `AdapterError` where the same settings mean something else in `adapters` on this model.
    """
    _check_input(method, sites)
    whole = {path: tensors[path] for path in saved if path in tensors}
    rest = {key: tensor for key, tensor in tensors.items() if key not in whole}
    if method.type in VIRTUAL:
        return whole | prompts.file_to_ours(rest, method, sites)
    return whole | keys.file_to_ours(rest, sites, method.type)


def write(file: AdapterFile, folder: Path, *, hidden_size: int, model_type: str, model_class: str) -> Path:
    """Writes an adapter of ours, a mix of them, or a fusion with its adapters, as AdapterHub folders.

    Raises `AdapterError` for settings that its format cannot say.
    """
    model = {"hidden_size": hidden_size, "model_class": model_class, "model_type": model_type}
    model |= {"model_name": file.base_model or "", "version": VERSION}
    if not file.method.reads():
        return _put(folder, _adapter(file, model))
    name = ",".join(part.name for part in file.parts)
    _put(folder / name, _fusion(file, name, model))
    for part in file.parts:
        _put(folder / part.name, _adapter(part, model))
    children = [{"type": "single", "children": [part.name]} for part in file.parts]
    setup = {"adapter_setup": {"type": "Fuse", "children": children}, "head_setup": None, "version": VERSION}
    atomic.write_text(folder / SETUP, _text(setup))
    return folder


# -- reading


def _read_adapter(folder: Path) -> AdapterFile:
    about = _about(folder / CONFIG)
    file = _file(about, about["config"], _tensors(folder / WEIGHTS, "save_adapter"))
    head = _head(folder)
    if not head:
        return file
    modules = tuple(sorted({key.partition(".")[0] for key in head}))
    method = file.method.model_copy(update={"modules_to_save": modules})
    return replace(file, method=method, tensors={**file.tensors, **head})


def _file(about: Mapping[str, Any], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AdapterFile:
    """The adapter of a config, or of all configs in a union."""
    parts = []
    if config.get("architecture") == "union":
        parts, tensors = _united(about, config, tensors), {}
        method = configs.union_of([part.method for part in parts])
    else:
        method = _method(about, config, tensors)
        matrices = config.get("attn_matrices", configs.LORA["attn_matrices"])
        if method.type == "lora":
            tensors = keys.unpacked(tensors, method.model_dump()["r"], matrices)
        elif method.type == "ia3":
            tensors = keys.unpacked_scales(tensors, matrices)
        elif method.type == "prefix":
            tensors = prompts.flat(tensors, config.get("non_linearity", prompts.PREFIX_CONFIG["non_linearity"]))
    return AdapterFile(
        name=_name(str(about.get("name"))),
        method=method,
        base_model=word_of(about, "model_name", CONFIG),
        tensors=tensors,
        sites=(),
        parts=parts,
    )


def _united(about: Mapping[str, Any], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[AdapterFile]:
    """The adapters of a union, told apart by what their tensors are in."""
    rest = dict(tensors)
    parts = []
    for own in _list_of(config.get("configs"), dict):
        taken = {key: rest.pop(key) for key in list(rest) if keys.belongs(key, own.get("architecture"))}
        if not taken:
            raise AdapterError(
                f"{CONFIG}: a union of two {own.get('architecture') or 'bottleneck'} configs is not supported"
            )
        parts.append(_file(about, own, taken))
    if rest or not parts:
        raise AdapterError(f"adapter tensor {min(rest, default='')} belongs to no config of the union")
    return parts


def _read_fusion(folder: Path) -> AdapterFile:
    about = _about(folder / FUSION_CONFIG)
    names = about.get("adapter_names") or str(about.get("name", "")).split(",")
    parts = [_read_adapter(_beside(folder, name)) for name in _list_of(names, str)]
    own = [part.name for part in parts]
    places = {
        (part.method.placement, part.method.sublayers or SUBLAYERS[part.method.placement])
        for part in parts
        if isinstance(part.method, BottleneckMethod)
    }
    if len(places) != 1 or len(set(own)) != len(parts):
        raise AdapterError(f"{folder}: only bottleneck adapters at the same places are fused, each once")
    sublayers = places.pop()[1]
    return AdapterFile(
        name=_name("-".join(own)),
        method=configs.fusion_of(about["config"], own, sublayers),
        base_model=word_of(about, "model_name", CONFIG),
        tensors=_tensors(folder / FUSION_WEIGHTS, "save_adapter_fusion"),
        sites=(),
        parts=parts,
    )


def _method(about: Mapping[str, Any], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Method:
    architecture, width = config.get("architecture"), about.get("hidden_size")
    if not isinstance(width, int) or width < 1:
        raise AdapterError(f"{CONFIG}: hidden_size={width!r} is no size")
    try:
        if architecture is None:
            return configs.bottleneck_of(config, width)
        if architecture == "lora":
            return _lora(about, config, tensors)
        if architecture in ("prompt_tuning", "prefix_tuning"):
            return configs.virtual_of(config, str(about.get("model_type")))
    except SettingsError as error:
        raise AdapterError(error.what, hint=error.hint) from None
    raise AdapterError(f"{CONFIG}: architecture {str(architecture)[:40]!r} of AdapterHub is not supported")


def _lora(about: Mapping[str, Any], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Method:
    kind, rank = str(about.get("model_type")), config.get("r", configs.LORA["r"])
    globs = [keys.glob_of(place, kind) for place in keys.lora_places(tensors)]
    if not globs:
        raise AdapterError(f"{WEIGHTS} has no tensor of LoRA or (IA)3")
    if config.get("composition_mode") == "scale":
        return configs.ia3_of(config, globs)
    packed = [keys.glob_of(place, kind) for place in keys.packed(tensors, rank)]
    return configs.lora_of(config, globs, packed, str(about.get("version", "")))


def _head(folder: Path) -> dict[str, Tensor]:
    """The head saved along, when it is the model's own; `adapters` also has heads of its own kinds."""
    if not (folder / HEAD_WEIGHTS).is_file():
        if (folder / HEAD_CONFIG).is_file():
            logger.warning("%s: the head is a pickle, it is not loaded", folder)
        return {}
    _, tensors = read_tensors(folder / HEAD_WEIGHTS)
    if any(key.startswith("heads.") for key in tensors):
        logger.warning("%s: the head is of a kind that only `adapters` has, it is not loaded", folder)
        return {}
    return tensors


def _fusion_in(folder: Path) -> Path:
    """The fusion of a setup; raises `AdapterError` for other compositions."""
    setup = read_json(folder / SETUP).get("adapter_setup")
    kind = setup.get("type") if isinstance(setup, dict) else None
    found = [path.parent for path in sorted(folder.glob(f"*/{FUSION_CONFIG}"))]
    if kind != "Fuse" or len(found) != 1:
        raise AdapterError(
            f"{folder / SETUP}: a setup of type {str(kind)[:20]} is not loaded as a whole",
            hint="load the folders of its adapters one by one",
        )
    return found[0]


def _beside(folder: Path, name: str) -> Path:
    """The folder of an adapter that is fused."""
    if not plain_name(name):
        raise AdapterError(f"{folder}: {name[:80]!r} is no name of an adapter")
    if (folder.parent / name).resolve() != folder.parent.resolve() / name:
        raise AdapterError(f"{folder.parent / name} is a link to another place", hint="put a copy in its place")
    if not (folder.parent / name / CONFIG).is_file():
        raise AdapterError(f"{folder} fuses adapter {name!r}, and there is no folder {folder.parent / name}")
    return folder.parent / name


def _list_of(value: Any, kind: type) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise AdapterError(f"{str(value)[:80]} is no list")
    return value


def _about(path: Path) -> dict[str, Any]:
    about = read_json(path)
    if not isinstance(about.get("config"), dict):
        raise AdapterError(f"{path}: has no config")
    return about


def _tensors(path: Path, function: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdapterError(
            f"{path.parent} has no {path.name}, and pickle files (.bin) are never loaded",
            hint=f"write it with {function}(..., use_safetensors=True)",
        )
    return read_tensors(path)[1]


def _name(theirs: str) -> str:
    """A name of AdapterHub (`sst-2@ukp`) as ours may be."""
    ours = re.sub(r"[^a-z0-9_-]+", "-", theirs.lower()).strip("-_")[:64].rstrip("-_") or "adapter"
    if ours != theirs:
        logger.warning("AdapterHub's adapter %s is called %s here", theirs, ours)
    return ours


# -- writing


def _adapter(file: AdapterFile, model: Mapping[str, Any]) -> dict[str, Any]:
    """Content of the files of one adapter, which may be a union of several."""
    kind, each = model["model_type"], []
    tensors: dict[str, Tensor] = {}
    for part in file.parts or (file,):
        _check_input(part.method, part.sites)
        each.append(configs.config_of(part.method, model["hidden_size"], kind, part.sites))
        if part.method.type in VIRTUAL:
            tensors |= prompts.ours_to_file(part.tensors, part.method, part.sites, file.name, kind)
        else:
            tensors |= keys.ours_to_file(part.tensors, part.sites, part.method.type, file.name, kind)
    config = {"architecture": "union", "configs": each} if file.parts else each[0]
    content = {CONFIG: {**model, "config": config, "name": file.name}, WEIGHTS: tensors}
    if file.saved:
        labels = file.tensors[file.saved[-1]].shape[0]
        label2id = {f"LABEL_{index}": index for index in range(labels)}
        content[HEAD_CONFIG] = {**model, "config": None, "name": None, "label2id": label2id, "num_labels": labels}
        content[HEAD_WEIGHTS] = {path: file.tensors[path] for path in file.saved}
    return content


def _fusion(file: AdapterFile, name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    about = {"adapter_names": [part.name for part in file.parts], "config": configs.fusion_config_of(file.method)}
    return {
        FUSION_CONFIG: {**model, **about, "name": name},
        FUSION_WEIGHTS: keys.ours_to_file(file.tensors, file.sites, file.method.type, name, model["model_type"]),
    }


def _put(folder: Path, content: Mapping[str, Any]) -> Path:
    with atomic.folder(folder, manifest=False, own=FILES) as staging:
        for name, value in content.items():
            if name.endswith(".json"):
                (staging / name).write_text(_text(value), encoding="utf-8")
            else:
                save_file({key: tensor.contiguous().cpu().clone() for key, tensor in value.items()}, staging / name)
    return folder


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _check_input(method: Method, sites: Sequence[Site]) -> None:
    """Parallel adapters of `adapters` read the residual stream; ours read what the sublayer reads, as in the paper."""
    if not isinstance(method, BottleneckMethod) or method.placement != "parallel":
        return
    for site in sites:
        if isinstance(site, SublayerSite) and site.entry != site.residual:
            raise AdapterError(
                f"a parallel adapter of `adapters` reads the stream before the norm of {site.path}, ours behind it",
                hint="parallel AdapterHub folders fit models without a norm in front of the sublayer (BERT, RoBERTa)",
            )
