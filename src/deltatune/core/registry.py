"""Registry by folder discovery: one final class per file, third parties through entry points.

A method or a task is a new file in its folder; nothing else names it.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from deltatune.core.errors import DeltatuneError, SettingsError, did_you_mean
from deltatune.core.method import Method
from deltatune.core.task import Task


def _discover(folder: str, contract: type) -> dict[str, type]:
    """The classes of one folder and of its entry-point group, by `type`.

    Raises `DeltatuneError` for a file without its class, with two, or for a name taken twice.
    """
    package = importlib.import_module(f"deltatune.{folder}")
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules(package.__path__):
        _add(found, _own(folder, contract, info.name), info.name.replace("_", "-"))
    for entry in entry_points(group=f"deltatune.{folder}"):
        _add(found, entry.load(), entry.name)
    return dict(sorted(found.items()))


def _own(folder: str, contract: type, file: str) -> type:
    """The one class of a file."""
    module = importlib.import_module(f"deltatune.{folder}.{file}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, contract) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise DeltatuneError(f"{module.__name__} must hold one {contract.__name__}, found {len(own)}")
    return own[0]


@cache
def _named(folder: str, contract: type, name: str) -> Any:
    """The class of our file of this name, without the other files' imports; None where the whole list is asked for."""
    package = importlib.import_module(f"deltatune.{folder}")
    files = {info.name.replace("_", "-"): info.name for info in pkgutil.iter_modules(package.__path__)}
    if name not in files or any(entry.name == name for entry in entry_points(group=f"deltatune.{folder}")):
        return None
    found: dict[str, type] = {}
    _add(found, _own(folder, contract, files[name]), name)
    return found[name]


def _add(found: dict[str, type], cls: Any, name: str) -> None:
    if cls.type != name:
        raise DeltatuneError(f"{cls.__module__}.{cls.__name__} calls itself {cls.type!r} but is found as {name!r}")
    if name in found:
        raise DeltatuneError(f"{name!r} is both {found[name].__module__} and {cls.__module__}")
    found[name] = cls


@cache
def methods() -> Mapping[str, type[Method]]:
    """Every method by `type`."""
    return _discover("methods", Method)


@cache
def tasks() -> Mapping[str, type[Task]]:
    """Every task by `type`."""
    return _discover("tasks", Task)


def method(settings: str | Mapping[str, Any] | Sequence[Any], **fields: Any) -> Method:
    """The settings of a method by type; what is not given takes the method's defaults. A list is a mix of methods.

    >>> method("lora", r=4).r
    4
    >>> method("linear-prob")
    Traceback (most recent call last):
    deltatune.core.errors.SettingsError: method linear-prob is unknown; did you mean linear-probe?
    """
    if isinstance(settings, list | tuple):
        settings = {"type": "mix", "methods": list(settings)}
    parsed: Method = _parse("method", settings, fields)
    return parsed


def task(settings: str | Mapping[str, Any], **fields: Any) -> Task:
    """The settings of a task by type; raises `SettingsError` for an unknown one."""
    parsed: Task = _parse("task", settings, fields)
    return parsed


def _parse(what: Literal["method", "task"], settings: Any, fields: Mapping[str, Any]) -> Any:
    given = {"type": settings} if isinstance(settings, str) else settings
    if not isinstance(given, Mapping):
        raise SettingsError(f"a {what} is a name or settings with a type, not {str(given)[:80]}")
    values = {**given, **fields}
    name = values.pop("type", None)
    cls = _class(what, name)
    return cls.parse(values, what)


def _class(what: Literal["method", "task"], name: Any) -> Any:
    """The class of a name; the whole list is only looked at where our own files have none of this name."""
    folder, contract, every = ("methods", Method, methods) if what == "method" else ("tasks", Task, tasks)
    found = _named(folder, contract, name) if isinstance(name, str) else None
    if found is not None:
        return found
    known: Mapping[str, Any] = every()
    if name is None:
        raise SettingsError(f"{what}.type is missing", hint=f"known: {', '.join(known)}")
    if not isinstance(name, str) or name not in known:
        raise SettingsError(f"{what} {str(name)[:80]} is unknown", hint=did_you_mean(str(name), known))
    return known[name]
