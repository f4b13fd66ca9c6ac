"""What a setting means that nobody names: it changes on purpose only.

After a change that is meant, and a line in CHANGELOG.md, the file is written anew:

    PYTHONPATH=src:tests python tests/golden/test_golden_defaults.py
"""

import json
from functools import cache

import pytest

from deltatune.core import registry
from deltatune.core.config import DataSettings, TrainingSettings
from golden.base import HERE

FILE = HERE / "defaults.json"


@cache
def defaults() -> dict[str, dict]:
    """Every setting's default, by method, task and group, as JSON; what must be given is left out."""
    groups = {"training": TrainingSettings, "data": DataSettings}
    kinds = {f"method {name}": cls for name, cls in registry.methods().items()}
    kinds |= {f"task {name}": cls for name, cls in registry.tasks().items()}
    return {name: plain(cls) for name, cls in sorted({**groups, **kinds}.items())}


def plain(cls) -> dict:
    """The defaults of one class."""
    optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
    return json.loads(cls.model_construct().model_dump_json(include=optional))


@pytest.mark.parametrize("name", json.loads(FILE.read_text()) if FILE.exists() else ())
def test_a_default_is_what_it_was(name):
    before, now = json.loads(FILE.read_text())[name], defaults().get(name, {})
    assert {key: now.get(key, "gone") for key in before} == before


if __name__ == "__main__":
    FILE.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
