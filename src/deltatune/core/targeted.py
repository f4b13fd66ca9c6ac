"""Targets: which layers a method changes, in the words of peft's settings."""

from abc import ABC
from collections.abc import Sequence
from fnmatch import fnmatchcase

from deltatune.core.errors import SettingsError
from deltatune.core.method import Method, Sites, Targets
from deltatune.core.site import LayerSite


class TargetedMethod(Method, ABC):
    """Settings of a method that acts at layers."""

    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers to change: `all-linear`, roles, globs, names or paths."""
    exclude_modules: str | tuple[str, ...] | None = None
    """Layers to leave alone, in the same words."""
    layers_to_transform: tuple[int, ...] | None = None
    """Blocks to act in, from 0; none means all."""

    def sites(self, model: Sites) -> Sequence[LayerSite]:
        """The targeted layers; raises `SettingsError` for one that cannot be changed."""
        exclude: Targets = self.exclude_modules
        found = [site for site in model.layers(self.target_modules, exclude) if self._in_block(site)]
        if not found:
            raise SettingsError(f"layers_to_transform={list(self.layers_to_transform or ())} leaves no targeted layer")
        for site in found:
            self.check(site)
        return found

    def check(self, site: LayerSite) -> None:
        """Raises `SettingsError` when the method is not possible at a layer."""
        if site.groups > 1:
            raise SettingsError(f"{self.title} is not possible on the grouped convolution {site.path}")

    def _in_block(self, site: LayerSite) -> bool:
        return self.layers_to_transform is None or site.block in self.layers_to_transform


def matches(path: str, name: str) -> bool:
    """Whether a path is, ends with, or fits a name or glob.

    >>> matches("bert.encoder.layer.0.output.dense", "output.dense")
    True
    """
    return path == name or path.endswith(f".{name}") or fnmatchcase(path, name)


def listed(value: str | Sequence[str] | None) -> list[str]:
    """A setting that may be one word, several, or none, as a list."""
    return [value] if isinstance(value, str) else list(value or ())
