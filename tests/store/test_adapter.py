"""An adapter folder: what is missing is said, parts are folders of their own, names are peft's."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import AdapterError
from deltatune.store import adapter as store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "reviews"
    deltatune.attach(model_of("bert"), deltatune.LoRA(r=2, target_modules=("query",)), name="reviews").save(path)
    return path


def copy_of(folder, place, **record):
    """The same adapter elsewhere, with other words in its record."""
    place.mkdir(parents=True)
    for name in (store.CONFIG, "README.md"):
        (place / name).write_bytes((folder / name).read_bytes())
    with safe_open(folder / store.WEIGHTS, framework="pt") as file:
        own = json.loads(file.metadata()["deltatune"])
    metadata = {"format": "pt", "deltatune": json.dumps({**own, **record})}
    save_file(load_file(folder / store.WEIGHTS), place / store.WEIGHTS, metadata)
    return place


def test_a_folder_that_is_not_there_is_said_with_one_that_is_near(folder):
    with pytest.raises(AdapterError, match="no such adapter folder") as error:
        store.read(folder.parent / "review")
    assert str(folder) in error.value.hint
    with pytest.raises(AdapterError, match="no such adapter folder") as error:
        store.read(folder / "not" / "there")
    assert error.value.hint is None
    with pytest.raises(AdapterError, match="no such adapter folder") as error:
        store.read(folder / "alone")
    assert error.value.hint is None


def test_a_folder_without_one_of_its_files_says_which(folder, tmp_path):
    place = copy_of(folder, tmp_path / "a")
    (place / store.WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=f"has no {store.WEIGHTS}") as error:
        store.read(place)
    assert "never loaded" in error.value.hint
    (place / store.CONFIG).unlink()
    with pytest.raises(AdapterError, match=f"is not an adapter folder: it has no {store.CONFIG}"):
        store.read(place)


def test_parts_are_read_to_the_third_level_and_not_further(folder, tmp_path):
    place = tmp_path / "top"
    for level in range(4):
        copy_of(folder, place.joinpath(*["parts", "in"] * level), name=f"level-{level}", parts=["in"] * (level < 3))
    file = store.read(place)
    for level in range(4):
        assert file.name == f"level-{level}" and len(file.parts) == (level < 3)
        file = file.parts[0] if file.parts else file
    deeper = copy_of(folder, tmp_path / "deeper", parts=["in"])
    (deeper / "parts").mkdir()
    place.rename(deeper / "parts" / "in")
    with pytest.raises(AdapterError, match="parts are nested more than 3 deep"):
        store.read(deeper)


def test_a_part_is_a_folder_below(folder, tmp_path):
    place = copy_of(folder, tmp_path / "a", parts=["../b"])
    with pytest.raises(AdapterError, match="'../b' is not the name of a folder"):
        store.read(place)
    place = copy_of(folder, tmp_path / "c", parts=["b"])
    (place / "parts").mkdir()
    (place / "parts" / "b").symlink_to(folder)
    with pytest.raises(AdapterError, match="is a link to .*, outside of its folder"):
        store.read(place)


def test_a_mix_is_written_with_its_parts_and_counted_with_them(tmp_path):
    model = model_of("bert")
    parts = [{"type": "lora", "r": 2}, {"type": "adapter", "bottleneck_size": 3}]
    mixed = deltatune.attach(model, deltatune.Mix(methods=parts), name="both")
    disturb(mixed)
    mixed.save(tmp_path / "both")
    written = sorted(path.relative_to(tmp_path / "both") for path in tmp_path.rglob("*.safetensors"))
    assert [path.parts[:1] for path in written] == [(store.WEIGHTS,), ("parts",), ("parts",)]
    assert store.size(tmp_path / "both") == sum((tmp_path / "both" / path).stat().st_size for path in written)
    assert (tmp_path / "both" / written[1].parent / "README.md").is_file()
    fresh = model_of("bert")
    deltatune.load(fresh, tmp_path / "both")
    assert torch.equal(outputs(fresh), outputs(model))


def test_what_was_measured_is_on_the_card_and_not_in_the_weights(tmp_path):
    handle = deltatune.attach(model_of("bert"), deltatune.LoRA(r=2, target_modules=("query",)))
    facts = {"energy": {"joules": 3.0, "source": "a meter"}, "dtype": "float32"}
    store.write(replace(handle.export(), facts=facts), tmp_path / "a")
    assert store.read(tmp_path / "a").facts == {"dtype": "float32"}
    assert "3 J (a meter)" in (tmp_path / "a" / "README.md").read_text()


def test_values_that_peft_does_not_write_are_refused(folder, tmp_path):
    place = copy_of(folder, tmp_path / "a")
    save_file(load_file(place / store.WEIGHTS), place / store.WEIGHTS, {"format": "pt"})
    config = json.loads((place / store.CONFIG).read_text())
    assert store.read(place).name == "default"
    for change, why in (
        ({"peft_type": "NEVER"}, "no method for peft_type 'NEVER'"),
        ({"modules_to_save": 3}, "modules_to_save 3 are not names"),
        ({"modules_to_save": ["a", 3]}, "modules_to_save .* are not names"),
        ({"rank_pattern": 3}, "values are not of the kinds that peft writes"),
    ):
        (place / store.CONFIG).write_text(json.dumps({**config, **change}))
        with pytest.raises(AdapterError, match=why):
            store.read(place)


@pytest.mark.parametrize("layout", ["peft", "adapterhub"])
def test_saving_into_a_folder_leaves_what_is_no_adapter_there(tmp_path, layout):
    """A note, a repository, the state of a trainer: they were deleted with the folder that the new one replaced."""
    method = deltatune.LoRA(r=2, target_modules=("attention.query", "attention.value"))
    adapter = deltatune.attach(model_of("bert"), method, name="a")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "parts" / "old").mkdir(parents=True)
    adapter.save(tmp_path)
    disturb(adapter)
    adapter.save(tmp_path, layout=layout)
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / ".git" / "HEAD").read_text() == "ref"
    assert not (tmp_path / "parts").exists() and not list(tmp_path.parent.glob(".replaced-*"))
    again = deltatune.load(model_of("bert"), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), adapter.parameters(), strict=True))


def test_a_merged_adapter_is_not_saved(tmp_path):
    """Its file would be for the merged base, and load on no other."""
    adapter = deltatune.attach(model_of("bert"), deltatune.LoRA(r=2), name="a")
    adapter.merge()
    with pytest.raises(AdapterError, match="'a' is merged.*unmerge it first"):
        adapter.save(tmp_path / "out")
    adapter.unmerge()
    deltatune.load(model_of("bert"), adapter.save(tmp_path / "out"))
