"""A method or a task is one class in one file, under the name of the file; others come by entry points."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from deltatune.core import registry
from deltatune.core.errors import DeltatuneError, SettingsError
from deltatune.core.method import Method
from deltatune.methods.lora import LoRA


class Foreign(LoRA):
    """Somebody else's."""

    type = "foreign"


@pytest.fixture
def installed(monkeypatch):
    """Puts classes under names into the entry points of other packages."""

    def install(**classes):
        found = [SimpleNamespace(name=name, load=lambda cls=cls: cls) for name, cls in classes.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "deltatune.methods" else [])
        for lookup in (registry.methods, registry._named):
            lookup.cache_clear()

    yield install
    monkeypatch.undo()
    for lookup in (registry.methods, registry._named):
        lookup.cache_clear()


def test_a_method_of_another_package_is_one_like_ours(installed):
    installed(foreign=Foreign)
    assert registry.methods()["foreign"] is Foreign and list(registry.methods()) == sorted(registry.methods())
    assert registry.method("foreign", r=3).r == 3


def test_a_name_that_is_taken_or_another_than_its_own_is_an_error(installed):
    installed(lora=LoRA)
    with pytest.raises(DeltatuneError, match="'lora' is both deltatune.methods.lora and deltatune.methods.lora"):
        registry.method("lora")
    installed(other=Foreign)
    with pytest.raises(DeltatuneError, match="Foreign calls itself 'foreign' but is found as 'other'"):
        registry.methods()


@pytest.mark.parametrize("classes", [[], [LoRA, Foreign]])
def test_a_file_holds_one(monkeypatch, classes):
    module = ModuleType("deltatune.methods.wrong")
    for cls in classes:
        own = type(cls.__name__, (cls,), {"__module__": module.__name__})
        setattr(module, cls.__name__, own)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(DeltatuneError, match=f"wrong must hold one Method, found {len(classes)}"):
        registry._own("methods", Method, "wrong")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "method.type is missing"),
        ({"type": 3}, "method 3 is unknown"),
        (3, "a method is a name or settings with a type, not 3"),
        ("lara", "did you mean lora"),
    ],
)
def test_what_names_no_method_is_an_error_with_those_there_are(settings, why):
    with pytest.raises(SettingsError) as error:
        registry.method(settings)
    assert why in str(error.value)


def test_a_list_is_a_mix():
    assert [member.type for member in registry.method(["lora", "adapter"]).members()] == ["lora", "adapter"]
    assert registry.method("lora") == registry.method({"type": "lora"})
