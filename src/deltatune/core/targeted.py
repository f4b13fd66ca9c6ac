"""Targets: which layers a method changes, in the words of peft's settings."""

from abc import ABC
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import Field

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Method, Sites, Targets
from deltatune.core.site import LayerSite


class TargetedMethod(Method, ABC):
    """Settings of a method that acts at layers."""

    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers to change: `all-linear`, roles, globs, names or paths."""
    exclude_modules: str | tuple[str, ...] | None = None
    """Layers to leave alone, in the same words."""
    layers_to_transform: tuple[int, ...] | Annotated[str, Field(pattern="^top-[1-9][0-9]{0,3}$")] | None = None
    """Blocks to act in, from 0, or `top-2`: the two nearest to the answer; none means all."""

    def sites(self, model: Sites) -> Sequence[LayerSite]:
        """The targeted layers; raises `SettingsError` for one that cannot be changed."""
        exclude: Targets = self.exclude_modules
        targeted = model.layers(self.target_modules, exclude)
        found = targeted if self.layers_to_transform is None else self._in_blocks(targeted)
        for site in found:
            self.check(site)
        return found

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` when the method is not possible at a layer."""
        if site.groups > 1:
            raise SettingsError(f"{self.title} is not possible on the grouped convolution {site.path}")

    def _in_blocks(self, targeted: Sequence[LayerSite]) -> list[LayerSite]:
        """The sites in the chosen blocks; raises `SettingsError` when one of them holds none."""
        known = {site.block for site in targeted if site.block is not None}
        chosen = self.layers_to_transform or ()
        blocks = _top(chosen, known) if isinstance(chosen, str) else list(chosen)
        said = f"layers_to_transform={chosen if isinstance(chosen, str) else blocks} leaves no targeted layer"
        if not blocks:
            raise SettingsError(said)
        if wrong := [index for index in blocks if index not in known]:
            raise SettingsError(f"{said} in block {wrong[0]}")
        return [site for site in targeted if site.block in blocks]


def _top(words: str, known: set[int]) -> list[int]:
    """Blocks nearest to the answer.

    >>> _top("top-2", {0, 1, 2, 3})
    [2, 3]
    """
    count = int(words.removeprefix("top-"))
    if count > len(known):
        raise SettingsError(f"layers_to_transform={words}: only {len(known)} blocks hold a targeted layer")
    return sorted(known)[-count:]


def matches(path: str, name: str) -> bool:
    """Whether a path is, ends with, or fits a name or glob.

    >>> matches("bert.encoder.layer.0.output.dense", "output.dense")
    True
    """
    return path == name or path.endswith(f".{name}") or (is_glob(name) and fnmatchcase(path, name))


def is_glob(word: str) -> bool:
    """Whether a word stands for several names.

    >>> is_glob("*.query"), is_glob("query")
    (True, False)
    """
    return "*" in word or "?" in word or "[" in word


def listed(value: str | Sequence[str] | None) -> list[str]:
    """A setting that may be one word, several, or none, as a list."""
    return [value] if isinstance(value, str) else list(value or ())


def read_targets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `TargetedMethod` in peft's `adapter_config.json`; raises `AdapterError` for regular expressions."""
    targets = listed(config.get("target_modules"))
    if isinstance(config.get("target_modules"), Mapping) or not all(isinstance(name, str) for name in targets):
        raise AdapterError(f"adapter_config.json: target_modules {str(targets)[:80]} are not names of modules")
    for name in (*(config.get("rank_pattern") or ()), *(config.get("alpha_pattern") or ()), *targets):
        if set(name) & set("^$()|+\\{}"):
            raise AdapterError(f"adapter_config.json: {name[:80]!r} is a regular expression; only names and globs load")
    found: dict[str, Any] = {"target_modules": (*targets, *listed(config.get("target_parameters")))}
    found |= {key: tuple(listed(config[key])) for key in ("exclude_modules", "modules_to_save") if config.get(key)}
    if config.get("layers_to_transform") is not None:
        layers = config["layers_to_transform"]
        found["layers_to_transform"] = tuple(layers) if isinstance(layers, list) else (layers,)
    return found
