"""Pretrained: a network of transformers with a task's head, and what of it is new."""

from collections.abc import Mapping
from os.path import exists, isdir, isfile  # those of Path raise for a name that no file can have
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers.utils.hub import is_offline_mode, try_to_load_from_cache

from deltatune.core.errors import SettingsError, did_you_mean


def pretrained(
    cls: Any, model: str, dtype: torch.dtype | None, kind: str, **config: Any
) -> tuple[Any, tuple[str, ...]]:
    """The network of a hub name or folder by an `AutoModelFor...` class, and its modules that start random.

    `kind` says in errors what it should have been ("a text classifier"); `config` are settings of its config.
    Under `torch.device("meta")` the weights are not read. Raises `SettingsError`.
    """
    check_source(model)
    with quiet():
        try:
            if torch.empty(0).is_meta:
                return without_weights(cls, model, dtype or torch.float32, config)
            network, info = cls.from_pretrained(
                model,
                dtype=dtype or torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,  # unsaid, transformers asks at the terminal whether to run it
                **config,
            )
        except (OSError, ValueError, ImportError) as error:
            raise _unusable(model, kind, error) from None
    return network, new_modules(info)


def without_weights(cls: Any, model: str, dtype: torch.dtype, config: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The network from its config alone, on the default device; new is what the checkpoint lacks beside
    the backbone, by its index.
    """
    settings = dict(config)
    known = settings.pop("config", None) or transformers.AutoConfig.from_pretrained(
        model, trust_remote_code=False, **settings
    )
    if issubclass(cls, transformers.PreTrainedModel):
        network = cls._from_config(known, dtype=dtype)
    else:
        network = cls.from_config(known, dtype=dtype, trust_remote_code=False)
    stored, backbone = stored_shapes(Path(model)), f"{network.base_model_prefix}."
    tied = network.all_tied_weights_keys if getattr(known, "tie_word_embeddings", False) else {}
    missing = [  # names inside of the backbone may be older ones of the same weights
        name
        for name, tensor in network.state_dict().items()
        if stored and not name.startswith(backbone) and name not in tied and stored.get(name) != tuple(tensor.shape)
    ]
    return network, new_modules({"missing_keys": missing, "mismatched_keys": []})


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a folder's safetensors files, without their values."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(file, framework="pt") as opened:
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return found


def processor_of(cls: Any, model: str, kind: str, **settings: Any) -> Any:
    """The tokenizer, image processor or feature extractor of a model by an `Auto...` class; raises `SettingsError`."""
    check_source(model)
    with quiet():
        try:
            return cls.from_pretrained(model, trust_remote_code=False, **settings)
        except (OSError, ValueError, ImportError) as error:
            raise _unusable(model, kind, error) from None


def named_classes(names: list[str]) -> dict[str, Any]:
    """Settings of a config that give the classes their names.

    >>> named_classes(["a", "b"])
    {'num_labels': 2, 'id2label': {0: 'a', 1: 'b'}, 'label2id': {'a': 0, 'b': 1}}
    """
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def new_modules(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the modules whose weights the checkpoint lacks or has in another shape."""
    keys = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    return tuple(sorted({key.rpartition(".")[0] for key in keys}))


def check_source(model: str) -> None:
    """Raises `SettingsError` for a path that is not there, and for a hub name that may not be fetched."""
    path = Path(model)
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1 or exists(path)
    if looks_local and not isfile(path / "config.json"):
        near = [str(p) for p in path.parent.iterdir() if p.is_dir()] if isdir(path.parent) else []
        what = "has no config.json" if isdir(path) else "does not exist"
        raise SettingsError(f"model folder {model} {what}", hint=did_you_mean(model, near) if near else None)
    if not isdir(model) and is_offline_mode() and not _cached(model):
        raise SettingsError(
            f"model {model!r} is not in the cache of the hub, and HF_HUB_OFFLINE forbids to fetch it",
            hint="name a folder, or fetch it once without HF_HUB_OFFLINE",
        )


def _cached(model: str) -> bool:
    """Whether a model was fetched before; what is no name of the hub is refused where it is loaded."""
    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except ValueError:
        return True


def _unusable(model: str, kind: str, error: Exception) -> SettingsError:
    reason = str(error).strip().splitlines()[0]
    return SettingsError(f"model {model!r} cannot be loaded as {kind}: {reason}")


class quiet:
    """Keeps the loading reports of transformers off the screen: we report what is new ourselves."""

    def __enter__(self) -> None:
        self.level = transformers.logging.get_verbosity()
        self.bars = transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.logging.set_verbosity(self.level)
        if self.bars:
            transformers.logging.enable_progress_bar()
