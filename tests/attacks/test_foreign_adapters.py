"""Hostile adapter folders: each ends in our own error, quickly, in little memory, and leaves the model as it was."""

import json
import os
import pickle
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltatune
from deltatune.core.errors import DeltatuneError
from models import tiny

SECONDS, BYTES = 2.0, 200 << 20
"""What a refusal may take at most."""
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
    "a hundred thousand tensors": tensors(lambda found: found.update({f"x{i}": torch.ones(1) for i in range(20_000)})),
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
    # the file system
    "weights that are a link out of the folder": linked(WEIGHTS, "/etc/hostname"),
    "a config that is a link out of the folder": linked(CONFIG, "/etc/hostname"),
    "weights that are a device": linked(WEIGHTS, "/dev/zero"),
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


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused(attack, good, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes((good / "plain" / name).read_bytes())
    ATTACKS[attack](folder)
    model = base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DeltatuneError):
        deltatune.load(model, folder)
    assert time.process_time() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < BYTES
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not Path("/tmp/deltatune-was-here").exists()
