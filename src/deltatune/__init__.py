"""deltatune adapts any pretrained model by training a small part of it.

Everything public is here, loaded on first use: `import deltatune` loads neither torch nor transformers.

>>> import deltatune
>>> deltatune.LoRA(r=4).lora_alpha
16
"""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the hub's library asks when it is imported

_PLACES = {
    "deltatune.api": (
        "Adapter",
        "Average",
        "Comparison",
        "Rehearsal",
        "Rows",
        "Run",
        "Stack",
        "active",
        "advise",
        "attach",
        "blend",
        "check_config",
        "compare",
        "compare_config",
        "evaluate",
        "finetune",
        "finetune_many",
        "inspect",
        "join_comparison",
        "load",
        "materialize",
        "method",
        "predict",
        "prepare",
        "rehearse",
        "train_config",
    ),
    "deltatune.core.errors": ("DeltatuneError",),
    "deltatune.core.registry": ("methods", "task", "tasks"),
}
_PUBLIC = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, or a method's class by its own name."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    registry = importlib.import_module("deltatune.core.registry")
    classes = {cls.__name__: cls for cls in registry.methods().values()}
    if name in classes:
        return classes[name]
    hint = importlib.import_module("deltatune.core.errors").did_you_mean(name, [*_PUBLIC, *classes])
    raise AttributeError(f"deltatune has no {name!r}; {hint}")


def __dir__() -> list[str]:
    registry = importlib.import_module("deltatune.core.registry")
    return sorted([*_PUBLIC, *(cls.__name__ for cls in registry.methods().values()), "__version__"])


class _Package(ModuleType):
    """The package itself: `deltatune.evaluate` is the function, although a folder of the same name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
