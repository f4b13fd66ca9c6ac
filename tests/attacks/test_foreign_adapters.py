"""Hostile adapter folders: each ends in our own error, quickly, in little memory, and leaves the model as it was."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltatune
from attacks.watched import watched
from deltatune.core.errors import DeltatuneError
from deltatune.store.files import MAX_TENSORS
from models import tiny

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base():
    torch.manual_seed(0)
    return tiny("bert").eval()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound folder of ours, and the same as peft would write it: without our record in the header."""
    folder = tmp_path_factory.mktemp("good")
    model = base()
    deltatune.attach(model, deltatune.LoRA(r=2, target_modules=("query",))).save(folder / "ours")
    (folder / "plain").mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / "plain" / name).write_bytes((folder / "ours" / name).read_bytes())
    save_file(load_file(folder / "ours" / WEIGHTS), folder / "plain" / WEIGHTS, metadata={"format": "pt"})
    return folder


def config(**changes) -> Callable[[Path], None]:
    def change(folder):
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**values, **changes}))

    return change


def text(value: str | bytes, name: str = CONFIG) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(value if isinstance(value, bytes) else value.encode())


def tensors(change) -> Callable[[Path], None]:
    def changed(folder):
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS, {"format": "pt"})

    return changed


def first(found):
    return min(found)


def replaced(make) -> Callable[[Path], None]:
    def change(found):
        found[first(found)] = make(found[first(found)])

    return tensors(change)


def added(name: str, tensor=None) -> Callable[[Path], None]:
    return tensors(lambda found: found.update({name: torch.ones(2, 32) if tensor is None else tensor}))


def renamed(name: str) -> Callable[[Path], None]:
    return tensors(lambda found: found.update({name: found.pop(first(found))}))


def header(value: dict | bytes, data: bytes = b"", length: int | None = None) -> Callable[[Path], None]:
    def change(folder):
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)

    return change


def entry(shape, start=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def ours(**changes) -> Callable[[Path], None]:
    """Changes inside our own record of the settings."""

    def change(folder):
        record = {"format": 1, "name": "default", "type": "lora", "settings": {"r": 2, "target_modules": ["query"]}}
        meta = {"format": "pt", "deltatune": json.dumps({**record, **changes})}
        save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata=meta)

    return change


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/deltatune-was-here",)


def linked(name: str, target: str) -> Callable[[Path], None]:
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def raw_record(text: str) -> Callable[[Path], None]:
    """Our own record, as a text that json.dumps would not write."""
    return lambda folder: save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"deltatune": text})


def part(make: Callable[[Path], None], **changes) -> Callable[[Path], None]:
    """A mix of one LoRA, whose part is made by `make` from a sound folder."""

    def change(folder):
        place = folder / "parts" / "one"
        place.parent.mkdir()
        shutil.copytree(folder, place, ignore=lambda *_: ["parts"])
        ours(**changes)(folder)
        make(place)

    return change


def adapterhub(**changes) -> Callable[[Path], None]:
    """A bottleneck adapter in AdapterHub's format."""

    def change(folder):
        about = {
            "config": {"reduction_factor": 16, "mh_adapter": False, "output_adapter": True, "non_linearity": "relu"}
        }
        about |= {"hidden_size": 32, "model_type": "bert", "model_name": "x", "name": "a", "version": "adapters.1.3.0"}
        (folder / CONFIG).write_text(json.dumps({**about, **changes}))
        (folder / WEIGHTS).rename(folder / "adapter.safetensors")

    return change


def fusion(names) -> Callable[[Path], None]:
    def change(folder):
        (folder / "adapter_fusion_config.json").write_text(json.dumps({"config": {}, "adapter_names": names}))

    return change


def nested(times: int) -> list:
    settings: dict = {"type": "lora"}
    for _ in range(times):
        settings = {"type": "mix", "methods": [settings]}
    return [settings]


MIX = {"type": "mix", "settings": {"methods": [{"type": "lora", "r": 2, "target_modules": ["query"]}]}}


def sparse(path: Path, size: int) -> None:
    """A sound file of one tensor that takes no room on disk."""
    raw = json.dumps({"a": entry([size // 4], 0, size)}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + size)


DEEP = "[" * 100_000 + "]" * 100_000
ATTACKS: dict[str, Callable[[Path], None]] = {
    # bytes that are no safetensors
    "a pickle under the name of the weights": text(pickle.dumps(Bomb()), WEIGHTS),
    "a torch archive under the name of the weights": lambda f: torch.save({"a": torch.ones(2)}, f / WEIGHTS),
    "an empty file of weights": text(b"", WEIGHTS),
    "weights of seven bytes": text(b"\x01" * 7, WEIGHTS),
    "weights that end in the middle": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
    "weights with bytes left over": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"\0" * 64),
    "a header that says it is huge": header({}, length=1 << 40),
    "a header of negative length": header({}, length=(1 << 64) - 1),
    "a header that is no JSON": header(b"{" * 64),
    "a deep header": header(DEEP.encode()),
    "offsets that overlap": header({"a": entry([2]), "b": entry([2], 4, 12)}, b"\0" * 12),
    "offsets outside the file": header({"a": entry([2], 0, 1 << 40)}, b"\0" * 8),
    "offsets that run backwards": header({"a": entry([2], 8, 0)}, b"\0" * 8),
    "a shape that is larger than its bytes": header({"a": entry([1 << 40])}, b"\0" * 8),
    "a shape whose product overflows": header({"a": entry([1 << 32, 1 << 32, 2])}, b"\0" * 8),
    "a negative shape": header({"a": entry([-2])}, b"\0" * 8),
    "an unknown dtype": header({"a": entry([2], dtype="PICKLE")}, b"\0" * 8),
    "only pickled weights": lambda f: ((f / WEIGHTS).unlink(), (f / "adapter_model.bin").write_bytes(b"x"))[0],
    "a tensor twice in the header": header(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b"\0" * 8,
    ),
    "a hole between tensors": header({"a": entry([2]), "b": entry([2], 16, 24)}, b"\0" * 24),
    "a shape of no elements but many rows": header({"a": entry([0, 1 << 60], 0, 0)}),
    "a shape with ten thousand dimensions": header({"a": entry([1] * 10_000, 0, 4)}, b"\0" * 4),
    "a name of a megabyte": header({"a" * (1 << 20): entry([2])}, b"\0" * 8),
    "a name that clears the terminal": header({"\x1b[2J\x07": entry([2])}, b"\0" * 8),
    "a name of nothing": header({"": entry([2])}, b"\0" * 8),
    "a gigabyte that is a hole on disk": lambda f: sparse(f / WEIGHTS, 1 << 30),
    "a zip with a pickle behind a safetensors header": lambda f: (f / WEIGHTS).write_bytes(
        (f / WEIGHTS).read_bytes() + pickle.dumps(Bomb())
    ),
    # tensors that do not belong
    "not a number": replaced(lambda t: t * float("nan")),
    "infinity": replaced(lambda t: t + float("inf")),
    "another shape": replaced(lambda t: t[:, :-1]),
    "a rank that is not the config's": replaced(lambda t: torch.cat([t, t])),
    "no elements": replaced(lambda t: t[:0]),
    "one dimension more": replaced(lambda t: t[None]),
    "integers": replaced(lambda t: t.to(torch.int64)),
    "a tensor for no layer": added("base_model.model.bert.encoder.layer.7.attention.self.query.lora_A.weight"),
    "a tensor outside of the model": added("evil.weight"),
    "a tensor named like a dunder": added("base_model.model.__class__.lora_A.weight"),
    "a tensor named like a path": added("../../../tmp/evil"),
    "a tensor named by a look-alike": renamed(
        "base_model.model.bert.encoder.layer.0.attention.self.quеry.lora_A.weight"
    ),
    "a tensor less": tensors(lambda found: found.pop(first(found))),
    "a tensor more than any adapter has": header(
        {f"x{i}": entry([1], 4 * i, 4 * i + 4) for i in range(MAX_TENSORS + 1)}, b"\0" * (4 * MAX_TENSORS + 4)
    ),
    "complex numbers": replaced(lambda t: t.to(torch.complex64)),
    "yes and no": replaced(lambda t: t.bool()),
    "a tensor named like a method of the module": added("base_model.model.bert.train"),
    "a tensor named like the module's list of layers": added("base_model.model.bert.encoder.layer"),
    "a tensor of the base": added("base_model.model.bert.embeddings.word_embeddings.weight"),
    "a tensor of the base by its own name": added("bert.embeddings.word_embeddings.weight"),
    "a tensor named with two dots": added("base_model.model.bert..encoder.lora_A.weight"),
    # configs
    "a config that is no JSON": text("{"),
    "a config that is a list": text("[]"),
    "a config that is not UTF-8": text(b'{"peft_type": "\xff"}'),
    "a deep config": text(f'{{"peft_type": {DEEP}}}'),
    "an unknown type": config(peft_type="EVIL"),
    "a type that is no text": config(peft_type=["LORA"]),
    "an enormous rank": config(r=1 << 40),
    "a rank of zero": config(r=0),
    "a rank that is text": config(r="2; rm -rf /"),
    "an infinite scale": text('{"peft_type": "LORA", "r": 2, "lora_alpha": Infinity, "target_modules": ["query"]}'),
    "a scale that is not a number": text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": NaN, "target_modules": ["query"]}'
    ),
    "a catastrophic pattern": config(target_modules="(a+)+$"),
    "a pattern for ranks": config(rank_pattern={"(x+x+)+y": 4}),
    "a million targets": config(target_modules=[f"m{i}" for i in range(100_000)]),
    "code for another class": config(auto_mapping={"base_model_class": "os", "parent_library": "system"}, r="x"),
    "a variant that needs other code": config(init_lora_weights="loftq"),
    "modules that are no names": config(modules_to_save=[["a"]]),
    "a key given twice": text('{"peft_type": "LORA", "r": 2, "r": 4, "target_modules": ["query"]}'),
    "a scale beyond all numbers": text(
        '{"peft_type": "LORA", "r": 2, "lora_alpha": 1e999, "target_modules": ["query"]}'
    ),
    "a rank of five thousand digits": text('{"peft_type": "LORA", "r": ' + "9" * 5000 + "}"),
    "a rank between two": config(r=2.5),
    "a rank that is true": config(r=True),
    "a rank that is a list": config(r=[2]),
    "targets that are numbers": config(target_modules=[1, 2]),
    "targets that are an object": config(target_modules={"query": 1}),
    "no targets": config(target_modules=[]),
    "a target that is a dunder": config(target_modules=["__class__"]),
    "a target that is a method": config(target_modules=["forward", "train"]),
    "a target by a look-alike": config(target_modules=["quеry"]),
    "a target of ten megabytes": config(target_modules=["q" * (10 << 20)]),
    "a glob of four hundred stars": config(target_modules=["*q" * 400]),
    "ten thousand globs": config(target_modules=[f"*{i}*query" for i in range(10_000)]),
    "ten thousand patterns for ranks": config(rank_pattern={f"*{i}*": 2 for i in range(10_000)}),
    "a base that is a list": config(base_model_name_or_path=["a"]),
    "a base that clears the terminal": config(base_model_name_or_path="\x1b[2J"),
    "a task type that is an object": config(task_type={"a": 1}),
    "layers beyond the last": config(layers_to_transform=[1 << 40]),
    "a prompt with a tokenizer of its own": config(
        peft_type="PROMPT_TUNING",
        num_virtual_tokens=2,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="x",
        tokenizer_name_or_path="evil/x",
        tokenizer_kwargs={"trust_remote_code": True},
    ),
    "a method from another module": config(peft_type="XLORA", auto_mapping={"parent_library": "os"}),
    # our own record
    "a record of a newer version": ours(format=99),
    "a record that is no object": lambda f: save_file(load_file(f / WEIGHTS), f / WEIGHTS, {"deltatune": "[1]"}),
    "an unknown method": ours(type="os.system"),
    "a method that is a path": ours(type="../../evil"),
    "settings that are no mapping": ours(settings=[1]),
    "unknown settings": ours(settings={"r": 2, "exec": "1"}),
    "a name that is a path": ours(name="../../evil"),
    "a name that is an attribute": ours(name="__class__"),
    "parts outside of the folder": ours(parts=["../../.."]),
    "parts that are absolute": ours(parts=["/etc"]),
    "an enormous prompt": ours(type="prompt", settings={"num_virtual_tokens": 1 << 40}),
    "an enormous prefix": ours(type="prefix", settings={"num_virtual_tokens": 1 << 36}),
    "an enormous bottleneck": ours(type="adapter", settings={"reduction_factor": 1e-12}),
    "enormous projections": ours(type="vera", settings={"r": 1 << 36}),
    "an enormous table of tasks": ours(type="conditional-adapter", settings={"tasks": 1 << 50}),
    "an enormous shared vector": ours(type="shared-lora", settings={"theta_d_length": 1 << 40}),
    "a ladder wider than the sky": ours(type="ladder", settings={"reduction_factor": 1e-12}),
    "another base": ours(fingerprint="0" * 64),
    "a key given twice in the record": raw_record('{"format": 1, "type": "lora", "type": "full"}'),
    "a deep record": raw_record(f'{{"format": 1, "type": "lora", "facts": {DEEP}}}'),
    "a record with keys of its own": ours(run="rm -rf /"),
    "a format that is a list": ours(format=[1]),
    "a type that is an object": ours(type={"a": 1}),
    "a name that is a list": ours(name=["a"]),
    "a name of a megabyte of letters": ours(name="a" * (1 << 20)),
    "a name with a dot": ours(name="a.b"),
    "a name by a look-alike": ours(name="defаult"),
    "a name that is reserved on Windows": ours(name="con:"),
    "a name that ends a line": ours(name="a\n"),
    "a name that turns the line around": ours(name="a\u202eb"),
    "a fingerprint that is a number": ours(fingerprint=1),
    "a fingerprint of something else": ours(fingerprint="x"),
    "facts that are a list": ours(facts=[1]),
    "a task that is a list": ours(facts={"task": ["text-classification"]}),
    "columns that are numbers": ours(facts={"columns": {"text": 1}}),
    "a dtype that is a list": ours(facts={"dtype": ["float32"]}),
    "results that are a text": ours(facts={"results": "100 %"}),
    "code of a repository": ours(settings={"r": 2, "target_modules": ["query"], "trust_remote_code": True}),
    "a hidden layer as wide as the sea": ours(
        type="prefix", settings={"num_virtual_tokens": 2, "prefix_projection": True, "encoder_hidden_size": 1 << 40}
    ),
    "a prompt encoder as wide as the sea": ours(
        type="p-tuning", settings={"num_virtual_tokens": 2, "encoder_hidden_size": 1 << 40}
    ),
    "a prompt encoder as deep as the sea": ours(
        type="p-tuning", settings={"num_virtual_tokens": 2, "encoder_num_layers": 1 << 40}
    ),
    "a prompt that starts from words beyond the vocabulary": ours(
        type="prompt", settings={"num_virtual_tokens": 2, "prompt_tuning_init": "text", "initial_token_ids": [1 << 40]}
    ),
    "a fusion of paths": ours(type="adapter-fusion", settings={"adapters": ["/etc", "../.."]}),
    "mixes in mixes": ours(type="mix", settings={"methods": nested(10)}),
    "mixes in mixes without end": ours(type="mix", settings={"methods": nested(400)}),
    "a mix without its parts": ours(**MIX),
    "parts nobody asked for": part(lambda place: None, parts=["one"]),
    "a part without files": part(lambda place: (place / CONFIG).unlink(), parts=["one"], **MIX),
    "a part that is another method": part(config(peft_type="IA3"), parts=["one"], **MIX),
    "a part twice": part(lambda place: None, parts=["one", "one"], **MIX),
    "a part in itself": part(
        lambda place: (ours(parts=["one"], **MIX)(place), (place / "parts").symlink_to(".."))[0], parts=["one"], **MIX
    ),
    "a part that is a link out of the folder": part(
        lambda place: (place.rename(place.parents[2] / "elsewhere"), place.symlink_to("../../elsewhere"))[0],
        parts=["one"],
        **MIX,
    ),
    "a part named as a path of another system": ours(parts=["..\\up"], **MIX),
    "a part with an endless name": ours(parts=["a" * 500], **MIX),
    "ten thousand parts": ours(parts=["one"] * 10_000, **MIX),
    # AdapterHub's format
    "AdapterHub: another activation": adapterhub(config={"non_linearity": "os.system", "reduction_factor": 16}),
    "AdapterHub: an enormous bottleneck": adapterhub(config={"reduction_factor": 1e-300}),
    "AdapterHub: a negative bottleneck": adapterhub(config={"reduction_factor": -1}),
    "AdapterHub: a factor that is a list": adapterhub(config={"reduction_factor": ["a"]}),
    "AdapterHub: a width of text": adapterhub(hidden_size="32"),
    "AdapterHub: an enormous width": adapterhub(hidden_size=1 << 60),
    "AdapterHub: a base that is a list": adapterhub(model_name=["a"]),
    "AdapterHub: only a pickle": lambda f: (adapterhub()(f), (f / "adapter.safetensors").rename(f / "a.bin"))[0],
    "AdapterHub: an unknown architecture": adapterhub(config={"architecture": "os.system"}),
    "AdapterHub: a union of nothing": adapterhub(config={"architecture": "union", "configs": []}),
    "AdapterHub: a union of texts": adapterhub(config={"architecture": "union", "configs": ["a"]}),
    "AdapterHub: an enormous rank": adapterhub(config={"architecture": "lora", "r": 1 << 60}),
    "AdapterHub: an enormous prompt": adapterhub(config={"architecture": "prompt_tuning", "prompt_length": 1 << 60}),
    "AdapterHub: a fusion of paths": fusion(["../../.."]),
    "AdapterHub: a fusion of absolute paths": fusion(["/etc"]),
    "AdapterHub: a fusion of numbers": fusion([1]),
    "AdapterHub: a setup of nothing": text('{"adapter_setup": {"type": "Fuse"}}', "adapter_setup.json"),
    "AdapterHub: a setup that is a list": text("[]", "adapter_setup.json"),
    # the file system
    "weights that are a link out of the folder": linked(WEIGHTS, "/etc/hostname"),
    "a config that is a link out of the folder": linked(CONFIG, "/etc/hostname"),
    "weights that are a device": linked(WEIGHTS, "/dev/zero"),
    "weights that are a link to themselves": linked(WEIGHTS, WEIGHTS),
    "weights that are a pipe": lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS))[0],
    "a config that is a pipe": lambda f: ((f / CONFIG).unlink(), os.mkfifo(f / CONFIG))[0],
    "weights that are a link to a folder of like name": lambda f: (
        (f.parent / "adapter-evil").mkdir(),
        (f / WEIGHTS).rename(f.parent / "adapter-evil" / WEIGHTS),
        (f / WEIGHTS).symlink_to(f"../adapter-evil/{WEIGHTS}"),
    )[0],
    "weights that are a folder": lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir())[0],
    "a config that is a folder": lambda f: ((f / CONFIG).unlink(), (f / CONFIG).mkdir())[0],
}


def test_the_sound_folders_load(good):
    for name in ("ours", "plain"):
        deltatune.load(base(), good / name)


def test_a_link_into_the_blobs_of_a_hub_cache_is_followed_and_no_other(good, tmp_path):
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, WEIGHTS):
        (blobs / name).write_bytes((good / "ours" / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    deltatune.load(base(), snapshot)
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(good / "ours" / WEIGHTS)
    with pytest.raises(DeltatuneError, match="is a link to .* outside of its folder"):
        deltatune.load(base(), snapshot)


@pytest.fixture
def folder(good, tmp_path):
    """A copy of the plain folder, to be spoilt."""
    return Path(shutil.copytree(good / "plain", tmp_path / "adapter"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused(attack, folder):
    ATTACKS[attack](folder)
    model = base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    with watched(folder.parent), pytest.raises(DeltatuneError) as refusal:
        deltatune.load(model, folder)
    assert len(str(refusal.value)) < 10_000
    assert all(letter.isprintable() or letter == "\n" for letter in str(refusal.value))
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not Path("/tmp/deltatune-was-here").exists()


HARMLESS: dict[str, Callable[[Path], None]] = {
    "words for other loaders": config(
        auto_mapping={"base_model_class": "X", "parent_library": "os"}, auto_map={"a": "b"}
    ),
    "a switch that has no meaning here": config(trust_remote_code=True),
    "a base that is an address": config(base_model_name_or_path="https://evil.example/x"),
    "another file beside": text(pickle.dumps(Bomb()), "adapter_model.bin"),
    "a module beside": text("raise SystemExit", "modeling_evil.py"),
    "a glob with every sign": config(target_modules=["*.query", "*[q]uer?"]),
    "a name that modules have too: layers": ours(name="layers"),
    "a name that modules have too: train": ours(name="train"),
    "a name that modules have too: double": ours(name="double"),
    "a name that modules have too: forward": ours(name="forward"),
    "a name that modules have too: state_dict": ours(name="state_dict"),
    "a name that dictionaries have too: items": ours(name="items"),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_harmless_loads_and_acts_as_the_sound_folder(case, folder, good):
    HARMLESS[case](folder)
    ids = torch.arange(5)[None]
    expected, model = base(), base()
    deltatune.load(expected, good / "plain")
    with watched(folder.parent):
        deltatune.load(model, folder)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids)[0], expected(input_ids=ids)[0])
    model.train().double()  # no name stands in the way of these


def test_a_rank_within_bounds_is_not_allocated_for_a_small_file(tmp_path):
    """4096 is a rank that layers of this size may have: 8 GiB of A and B, for a file of some bytes."""
    width = 1 << 15
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA", "r": 4096, "target_modules": ["0", "1", "2", "3"]}')
    save_file({"base_model.model.0.lora_A.weight": torch.ones(2, 4)}, tmp_path / WEIGHTS)
    layers = torch.nn.Sequential(*(torch.nn.Linear(width, width, device="meta") for _ in range(4)))
    for method, changes in {
        "lora": {},
        "vera": {"r": 1 << 16},
        "full": {},
        "adapter": {},
        "dora": {},
        "loha": {},
    }.items():
        settings = {"r": 4096, "target_modules": ["0", "1", "2", "3"], **changes}
        kept = {key: settings[key] for key in settings if key in type(deltatune.method(method)).model_fields}
        ours(type=method, settings=kept)(tmp_path)
        with watched(tmp_path), pytest.raises(DeltatuneError):
            deltatune.load(layers, tmp_path)
