"""Entry: one technique of a comparison, with the settings it is tried with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltatune.core import registry
from deltatune.core.config import RunSettings
from deltatune.core.errors import SettingsError
from deltatune.core.method import Method
from deltatune.engine.attach import NAME

BASELINES = ("linear-probe", "full")
"""What every comparison is measured by: training nothing but a head, and training everything."""


@dataclass(frozen=True)
class Entry:
    """A method under its name in the comparison."""

    name: str
    settings: Mapping[str, Any]
    """As a run takes them: `type` and the method's own."""
    centre: float
    """Learning rate that the search begins at."""


def entries(settings: RunSettings, wanted: Sequence[str] | Mapping[str, Any]) -> list[Entry]:
    """The entries of a comparison: those wanted, the config's own method and the baselines, in this order.

    Names of methods take their defaults, the config's own type the config's settings; a mapping gives settings to names
    of one's own. Raises `SettingsError` for an unknown method, a name that no run can have, or one given twice.
    """
    own = registry.method(settings.method)
    given = wanted if isinstance(wanted, Mapping) else {name: name for name in wanted}
    if not isinstance(wanted, Mapping) and len(given) < len(wanted):
        twice = next(name for name in wanted if list(wanted).count(name) > 1)
        raise SettingsError(f"methods: {twice} is given twice", hint="give variants a name each, in Python")
    found = [_entry(name, value, own, settings) for name, value in given.items()]
    types = {entry.settings["type"] for entry in found}
    rest = [name for name in (own.type, *BASELINES) if name not in types and name not in given]
    return found + [_entry(name, name, own, settings) for name in dict.fromkeys(rest)]


def _entry(name: str, value: Any, own: Method, settings: RunSettings) -> Entry:
    if not NAME.fullmatch(name):
        raise SettingsError(f"methods: {name!r} names folders: lower-case letters, digits, - and _")
    mine = isinstance(value, str) and value == own.type
    method = own if mine else value if isinstance(value, Method) else registry.method(value)
    rate = settings.training.learning_rate if mine else None
    return Entry(name, {"type": method.type, **method.model_dump(mode="json")}, rate or method.learning_rate)
