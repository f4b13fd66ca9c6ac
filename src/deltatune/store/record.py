"""Record: what an adapter file says of itself beside its tensors, read without trusting it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints

from deltatune.core.config import Settings
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Method
from deltatune.core.targeted import is_glob

FORMAT = 1
"""Version of what we write into the metadata."""
MAX_GLOBS, MAX_GLOB = 1000, 200
"""Globs in the settings of an adapter, and characters in one: each is matched with every layer."""

Word = Annotated[str, StringConstraints(max_length=512)]


class Facts(Settings):
    """What a task and a run add; of these four a program makes use, the rest is for people."""

    model_config = {"extra": "allow"}

    task: dict[str, Any] | None = None
    columns: dict[Word, Word | list[Word]] = {}
    dtype: Word = ""
    results: dict[str, Any] = {}


class Record(Settings):
    """Our own entry in the metadata of a safetensors header."""

    format: Literal[1]
    name: Word = "default"
    type: Word
    settings: dict[str, Any] = {}
    fingerprint: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    facts: dict[str, Any] = {}
    parts: Annotated[list[Word], Field(max_length=64)] = []

    @classmethod
    def of(cls, values: Mapping[str, Any], file: str) -> Self:
        """The record in an object; raises `AdapterError` for a newer one, unknown keys and values of another kind."""
        number = values.get("format")
        if type(number) is not int or number < 1:
            raise AdapterError(f"{file} has no format that deltatune wrote: {str(number)[:20]!r}")
        if number > FORMAT:
            raise AdapterError(
                f"{file} has format {str(number)[:20]}, this deltatune reads {FORMAT}",
                hint="update deltatune: a newer one wrote it",
            )
        try:
            record = cls.parse(values, "deltatune")
            Facts.parse(record.facts, "deltatune.facts")
        except SettingsError as error:
            raise AdapterError(f"{file}: {error.what}") from None
        return record


def check_globs(method: Method) -> None:
    """Raises `AdapterError` for more or longer globs than the settings of an adapter hold."""
    globs = {word for word in _words(method.model_dump(mode="json")) if is_glob(word)}
    longest = max(map(len, globs), default=0)
    if len(globs) > MAX_GLOBS or longest > MAX_GLOB:
        raise AdapterError(
            f"the settings of the adapter hold {len(globs)} globs of up to {longest} characters; "
            f"at most {MAX_GLOBS} of {MAX_GLOB} load"
        )


def _words(value: Any) -> Iterator[str]:
    """Every text in a value of JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)
