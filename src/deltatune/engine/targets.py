"""Targets: the words in which a user names layers, resolved against a model's anatomy.

`all-linear`, roles (`attention`, `attention.query`, `mlp`, `head`, `embeddings`), globs (`*.query`), last names
(`q_proj`, as in peft) and full paths. No regular expressions: a pattern that comes with a file must not be a program.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from deltatune.core.errors import SettingsError, did_you_mean
from deltatune.core.method import Targets
from deltatune.core.site import LayerSite

ALL_LINEAR = "all-linear"


def resolve(layers: Sequence[LayerSite], targets: Targets, exclude: Targets, model: str) -> list[LayerSite]:
    """The layers that `targets` name and `exclude` does not; raises `SettingsError` for a word that names nothing."""
    chosen = _chosen(layers, targets, "target_modules", model)
    left_out = _chosen(layers, exclude, "exclude_modules", model) if exclude else set()
    return [layer for layer in layers if layer.path in chosen and layer.path not in left_out]


def listed(targets: Targets) -> list[str]:
    """One word or several as a list."""
    return [targets] if isinstance(targets, str) else list(targets or ())


def names_path(word: str, path: str) -> bool:
    """Whether a word is the path, its end, or a glob for it.

    >>> names_path("q_proj", "model.layers.0.self_attn.q_proj"), names_path("*.0.*.q_proj", "layers.0.self_attn.q_proj")
    (True, True)
    """
    return path == word or path.endswith(f".{word}") or fnmatchcase(path, word)


def _chosen(layers: Sequence[LayerSite], targets: Targets, setting: str, model: str) -> set[str]:
    chosen: set[str] = set()
    for word in listed(targets):
        test = _test(word)
        matched = {layer.path for layer in layers if test(layer)}
        if not matched:
            raise SettingsError(f"{setting} {word!r} matches nothing in {model}", hint=_hint(word, layers))
        chosen |= matched
    if not chosen:
        raise SettingsError(f"{setting} is empty", hint=f"try {ALL_LINEAR}")
    return chosen


def _test(word: str) -> Callable[[LayerSite], bool]:
    if word == ALL_LINEAR:
        return lambda layer: (
            layer.block is not None and layer.role != "router" and layer.kind in ("linear", "conv1d", "tensor")
        )
    return lambda layer: has_role(layer, word) or names_path(word, layer.path)


def has_role(layer: LayerSite, word: str) -> bool:
    """Whether a layer has this role, or a role inside it, or packs it with others."""
    group, _, _ = layer.role.partition(".")
    return word in (layer.role, group) or any(word == f"{group}.{part}" for part in layer.packed)


def _hint(word: str, layers: Sequence[LayerSite]) -> str:
    roles = {layer.role for layer in layers} | {layer.role.partition(".")[0] for layer in layers}
    names = {layer.path.rpartition(".")[2] for layer in layers} | roles | {ALL_LINEAR}
    return did_you_mean(word.rpartition("*.")[2], names - {"other"})
