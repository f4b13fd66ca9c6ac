"""Targets: the words in which a user names layers, resolved against a model's anatomy.

`all-linear`, roles (`attention`, `attention.query`, `mlp`, `head`, `embeddings`), globs of roles or paths
(`*attention.query`), last names (`q_proj`, as in peft) and full paths. No regular expressions: a pattern that comes
with a file must not be a program.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from deltatune.core.errors import SettingsError, did_you_mean
from deltatune.core.method import Targets
from deltatune.core.site import LayerSite
from deltatune.core.targeted import is_glob, listed

ALL_LINEAR = "all-linear"
"""Every matrix inside the blocks, except those that route tokens to experts."""


def resolve(layers: Sequence[LayerSite], targets: Targets, exclude: Targets, model: str) -> list[LayerSite]:
    """The layers that `targets` name and `exclude` does not.

    Raises `SettingsError` for a word that names nothing, and when nothing is left.
    """
    wanted = _named(layers, targets, "target_modules", model)
    if not wanted:
        raise SettingsError("target_modules is empty", hint=f"try {ALL_LINEAR}")
    left_out = _named(layers, exclude, "exclude_modules", model)
    found = [layer for layer in layers if layer.path in wanted - left_out]
    if not found:
        raise SettingsError(f"exclude_modules {exclude!r} leaves nothing of target_modules {targets!r} in {model}")
    return found


def chosen(layers: Sequence[LayerSite], word: str) -> list[LayerSite]:
    """The layers that one word names."""
    if word == ALL_LINEAR:
        return [layer for layer in layers if _is_linear(layer)]
    return [layer for layer in layers if has_role(layer, word) or names_path(word, layer.path)]


def names_path(word: str, path: str) -> bool:
    """Whether a word is the path, its end, or a glob for it.

    >>> names_path("q_proj", "model.layers.0.self_attn.q_proj"), names_path("*.0.*.q_proj", "layers.0.self_attn.q_proj")
    (True, True)
    """
    if is_glob(word):
        return fnmatchcase(path, word)
    return path == word or path.endswith(f".{word}")


def has_role(layer: LayerSite, word: str) -> bool:
    """Whether a layer has this role (a name or a glob), or a role inside it, or packs it with others."""
    group, _, _ = layer.role.partition(".")
    return any(fnmatchcase(role, word) for role in (layer.role, group, *(f"{group}.{part}" for part in layer.packed)))


def _is_linear(layer: LayerSite) -> bool:
    return layer.block is not None and layer.role != "router" and layer.kind in ("linear", "conv1d", "tensor")


def _named(layers: Sequence[LayerSite], targets: Targets, setting: str, model: str) -> set[str]:
    found: set[str] = set()
    for word in dict.fromkeys(listed(targets)):
        named = chosen(layers, word)
        if not named:
            raise SettingsError(f"{setting} {word!r} matches nothing in {model}", hint=_hint(word, layers))
        found |= {layer.path for layer in named}
    return found


def _hint(word: str, layers: Sequence[LayerSite]) -> str:
    roles = {layer.role for layer in layers} | {layer.role.partition(".")[0] for layer in layers}
    names = {layer.path.rpartition(".")[2] for layer in layers} | (roles - {"other"})
    return did_you_mean(word.rpartition("*.")[2], names | ({ALL_LINEAR} if chosen(layers, ALL_LINEAR) else set()))
