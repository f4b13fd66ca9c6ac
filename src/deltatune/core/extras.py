"""Extras: libraries that come with an extra of the package, loaded where they are needed."""

import importlib
from typing import Any

from deltatune.core.errors import SettingsError


def extra(module: str, name: str) -> Any:
    """The module of a library that `deltatune[name]` brings; raises `SettingsError` when it is not installed.

    >>> extra("no_such_library.part", "vision")
    Traceback (most recent call last):
    deltatune.core.errors.SettingsError: no_such_library is not installed; pip install 'deltatune[vision]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise SettingsError(f"{library} is not installed", hint=f"pip install 'deltatune[{name}]'") from None
