"""Whatever the two files of an adapter hold: it loads, or it is our own error, in little time and memory."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import deltatune
from attacks.watched import watched
from deltatune.core import registry
from deltatune.core.errors import DeltatuneError
from models import tiny

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MORE = int(os.environ.get("EXAMPLES", "0"))
"""How many random examples instead of the same 60 in every run."""
FEW = settings(
    max_examples=MORE or 60,
    deadline=None,
    derandomize=not MORE,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LAYER = "base_model.model.bert.encoder.layer.0.attention.self.query"


class Target:
    """One small model and one folder for all examples: a refused adapter leaves both as they were."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model, self.folder = tiny("bert").eval(), folder
        self.classes = [type(module) for module in self.model.modules()]
        deltatune.attach(self.model, deltatune.LoRA(r=2, target_modules="query")).save(folder)
        deltatune.load(self.model, folder, name="again").detach()
        self.sound = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        for adapter in list(self.model.deltatune_roster.adapters):
            deltatune.Adapter(self.model, adapter).detach()

    def tried(self, files: dict[str, bytes]) -> bool:
        """Whether a folder of these files loads."""
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        try:
            with watched(self.folder):
                adapter = deltatune.load(self.model, self.folder)
        except DeltatuneError as error:
            assert len(str(error)) < 10_000
            return False
        finally:
            roster = vars(self.model).get("deltatune_roster")
            left = list(roster.adapters) if roster else []
        assert left[-1] == adapter.name
        for name in reversed(left):
            deltatune.Adapter(self.model, name).detach()
        assert [type(module) for module in self.model.modules()] == self.classes
        return True


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return Target(tmp_path_factory.mktemp("any") / "adapter")


@pytest.fixture
def sound(target):
    return (
        {name: SOUND[name] for name in SOUND}
        or SOUND.update({name: (target.folder / name).read_bytes() for name in (CONFIG, WEIGHTS)})
        or dict(SOUND)
    )


SOUND: dict[str, bytes] = {}
"""The files of the sound folder, before anything was tried."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def test_the_sound_files_load(target, sound):
    assert target.tried(sound)


@FEW
@given(content=st.binary(max_size=400))
@example(content=struct.pack("<Q", 2) + b"{}")
@example(content=b"")
def test_any_bytes_as_weights(target, sound, content):
    assert not target.tried({**sound, WEIGHTS: content})


@FEW
@given(content=st.binary(max_size=400))
@example(content=b"\xef\xbb\xbf{}")
@example(content=b"{}")
def test_any_bytes_as_settings(target, sound, content):
    target.tried({**sound, CONFIG: content})  # our own record stands in the weights


@FEW
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_byte_changed_anywhere(target, sound, place, value):
    whole = bytearray(sound[WEIGHTS])
    whole[int(place * len(whole))] = value
    target.tried({**sound, WEIGHTS: bytes(whole)})


@FEW
@given(place=st.floats(0, 1, exclude_max=True))
def test_cut_anywhere(target, sound, place):
    assert not target.tried({**sound, WEIGHTS: sound[WEIGHTS][: int(place * len(sound[WEIGHTS]))]})


@FEW
@given(
    header=st.dictionaries(
        st.sampled_from(["a", f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight", "__metadata__"]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "?"]),
                "shape": st.lists(st.integers(-1, 1 << 70) | st.integers(0, 4), max_size=4),
                "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2),
            }
        )
        | json_values,
        max_size=3,
    ),
    size=st.integers(0, 64),
)
def test_any_header(target, sound, header, size):
    raw = json.dumps(header).encode()
    assert not target.tried({**sound, WEIGHTS: struct.pack("<Q", len(raw)) + raw + b"\0" * size})


PEFT_TYPES = (
    "LORA",
    "IA3",
    "PROMPT_TUNING",
    "PREFIX_TUNING",
    "P_TUNING",
    "ADALORA",
    "LOHA",
    "LOKR",
    "OFT",
    "BOFT",
    "VERA",
)
PEFT_KEYS = (
    "r",
    "lora_alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layers_to_transform",
    "exclude_modules",
    "use_dora",
    "bias",
    "init_lora_weights",
    "num_virtual_tokens",
    "encoder_hidden_size",
    "prefix_projection",
    "base_model_name_or_path",
    "task_type",
    "target_r",
    "oft_block_size",
    "boft_block_size",
    "projection_prng_key",
    "feedforward_modules",
    "config",
    "name",
)


@FEW
@given(kind=st.sampled_from(PEFT_TYPES), changes=st.dictionaries(st.sampled_from(PEFT_KEYS), json_values, max_size=4))
def test_any_settings_of_peft(target, sound, kind, changes, tmp_path):
    save_file({f"{LAYER}.lora_A.weight": torch.ones(2, 32)}, tmp_path / WEIGHTS)
    content = {"peft_type": kind, "r": 2, "target_modules": ["query"], **changes}
    files = {CONFIG: json.dumps(content).encode(), WEIGHTS: (tmp_path / WEIGHTS).read_bytes()}
    assert not target.tried({**sound, **files})


HUB_KEYS = (
    "architecture",
    "reduction_factor",
    "non_linearity",
    "mh_adapter",
    "output_adapter",
    "is_parallel",
    "scaling",
    "leave_out",
    "ln_before",
    "phm_layer",
    "phm_dim",
    "use_gating",
    "r",
    "alpha",
    "attn_matrices",
    "composition_mode",
    "prompt_length",
    "prefix_length",
    "configs",
)


@FEW
@given(
    kind=st.sampled_from([None, "lora", "prompt_tuning", "prefix_tuning", "union"]),
    changes=st.dictionaries(st.sampled_from(HUB_KEYS), json_values, max_size=4),
    about=st.dictionaries(st.sampled_from(["hidden_size", "model_type", "model_name", "name", "version"]), json_values),
    key=st.sampled_from(["adapters.a.adapter_down.0.weight", "loras.a.lora_A", "x"]),
)
def test_any_settings_of_adapterhub(target, sound, kind, changes, about, key):
    place = "bert.encoder.layer.0.attention.self.query" if key.startswith("loras") else "bert.encoder.layer.0.output"
    save_file({f"{place}.{key}": torch.ones(2, 32)}, target.folder / "adapter.safetensors")
    config = {"architecture": kind, "reduction_factor": 16, "mh_adapter": False, "output_adapter": True, **changes}
    whole = {"config": config, "hidden_size": 32, "model_type": "bert", "name": "a", **about}
    assert not target.tried({**sound, CONFIG: json.dumps(whole).encode()})


@FEW
@given(data=st.data())
def test_any_settings_of_ours(target, sound, data, tmp_path):
    method = data.draw(st.sampled_from(sorted(registry.methods())))
    fields = sorted(registry.methods()[method].model_fields)
    large = st.integers(1, 1 << 40) | st.floats(min_value=1e-300, max_value=1e300)
    values = data.draw(st.dictionaries(st.sampled_from(fields), json_values | large, max_size=3))
    record = {"format": 1, "type": method, "settings": values, **data.draw(st.just({}) | records)}
    tensors = {f"{LAYER}.lora_A.weight": torch.ones(2, 32)}
    save_file(tensors, tmp_path / WEIGHTS, metadata={"deltatune": json.dumps(record)})
    target.tried({**sound, WEIGHTS: (tmp_path / WEIGHTS).read_bytes()})


records = st.dictionaries(
    st.sampled_from(["name", "fingerprint", "facts", "parts", "type", "format", "more"]), json_values, max_size=2
)
