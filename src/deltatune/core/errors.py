"""Errors a user can act on: what happened, the value, and what would work.

Every error of ours is a `DeltatuneError`. Its exit code is the one the command line ends with:
1 the work failed, 2 the settings or the input are wrong, 3 a gate was not met, 4 the disk refuses.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DeltatuneError(Exception):
    """Something failed; the message says what, the optional hint says what would work.

    >>> print(DeltatuneError("rank r=0 is not allowed for LoRA", hint="try r=8"))
    rank r=0 is not allowed for LoRA; try r=8
    """

    exit_code = 1

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        self.what = what = _shown(what)
        self.hint = hint = _shown(hint) if hint else hint
        super().__init__(f"{what}; {hint}" if hint else what)


MAX_CHARACTERS = 4000


def _shown(text: str) -> str:
    r"""A text that a terminal can show, whoever wrote the names in it: no control characters, no endless line.

    >>> print(_shown("tensor \x1b[2J"))
    tensor \x1b[2J
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."


class SettingsError(DeltatuneError):
    """A setting is unknown, misspelt, out of range or without effect."""

    exit_code = 2


class DataError(DeltatuneError):
    """A data file is missing, unreadable, or has rows the task cannot use."""

    exit_code = 2


class AdapterError(DeltatuneError):
    """An adapter does not fit: wrong base, wrong tensors, wrong name, or not possible on this model."""

    exit_code = 2


class GateError(DeltatuneError):
    """A check that the user asked for was not passed."""

    exit_code = 3


class StorageError(DeltatuneError):
    """The disk refuses: it is full, read-only or broken. What had been saved is still there."""

    exit_code = 4


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """A hint that lists up to `count` near names, or all names when none is near.

    >>> did_you_mean("lora_alpa", ["r", "lora_alpha", "lora_dropout"])
    'did you mean lora_alpha?'
    >>> did_you_mean("xyz", ["lora", "dora"])
    'known: dora, lora'
    """
    names = sorted(set(known))
    near = get_close_matches(word, names, n=count, cutoff=0.6) or [name for name in names if word in name][:count]
    if near:
        return f"did you mean {' or '.join(near)}?"
    shown = names if len(names) <= 30 else [*names[:30], f"... {len(names) - 30} more"]
    return f"known: {', '.join(shown)}" if shown else "there are none"
