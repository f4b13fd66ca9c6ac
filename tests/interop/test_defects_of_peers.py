"""What goes wrong in `peft` 0.21.2 and `adapters` 1.3.0 and must not go wrong here, one test per defect.

Each docstring says what the peer does. Defects that other tests hold (merging DoRA and (IA)3 with biases, names that
collide with attributes and paths, cycles of merging in bfloat16, tied weights, one graph under torch.compile, the
fusion's penalty in any loop, Compacter's start, scaling before the activation) are not repeated here.
"""

import json
import socket
import typing

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import deltatune
from contract.cases import anatomy_of, cases, disturb, forward, model_of, outputs
from deltatune.core import registry
from deltatune.core.errors import SettingsError
from models import inputs

HOMES = {}
for _method, _family in cases():
    HOMES.setdefault(_method, _family)
"""A family for every method."""


def with_adapter(name, seed=0, adapter="default"):
    """A model and a disturbed adapter of this method on it."""
    model = model_of(HOMES[name])
    handle = deltatune.attach(model, registry.method(name), name=adapter, seed=seed)
    disturb(handle)
    return model, handle


# -- combining


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "lora", "use_rslora": True},
        {"type": "dora"},
        {"type": "lora", "rank_pattern": {"*.1.*": 2}, "alpha_pattern": {"*.0.*": 3}},
    ],
)
def test_an_average_of_one_adapter_is_that_adapter(settings):
    """peft #3761: `add_weighted_adapter` is silently wrong for use_rslora and DoRA, by 0.2 to 1.4 of the logits."""
    model = model_of("bert")
    disturb(deltatune.attach(model, deltatune.method(settings), name="one"))
    alone = outputs(model)
    with deltatune.active(model, deltatune.Average({"one": 1.0})):
        assert torch.allclose(outputs(model), alone, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in HOMES if registry.methods()[name].can.mix])
def test_lora_goes_together_with_every_other_method_and_both_are_saved(name, tmp_path):
    """peft #445, #1590: 9 of 45 types combine, none of prompt learning, and what combines cannot be saved."""
    model = model_of(HOMES[name])
    mix = deltatune.method("mix", methods=[{"type": "lora", "target_modules": "attention.query"}, {"type": name}])
    handle = deltatune.attach(model, mix)
    disturb(handle)
    handle.train_mode(False)
    expected = outputs(model)
    handle.save(tmp_path / "saved")
    fresh = model_of(HOMES[name])
    deltatune.load(fresh, tmp_path / "saved")
    assert torch.equal(outputs(fresh), expected)


@pytest.mark.parametrize("name", [name for name in HOMES if registry.methods()[name].can.rows])
def test_rows_of_a_batch_train_their_own_adapters(name):
    """peft raises for `adapter_names` while training, and (IA)3 and prompt tuning ignore them without a word."""
    model, one = with_adapter(name, adapter="one")
    two = deltatune.attach(model, one.method, name="two", seed=1)
    disturb(two, 5)
    for handle in (one, two):
        handle.train_mode(True)
        handle.trainable(True)
    with deltatune.active(model, deltatune.Rows(["one", "two", None])):
        forward(model, inputs(model))[1].square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in two.parameters())
    assert all(p.grad is None or not p.grad.any() for p in one.parameters())


# -- switching


def test_switching_off_thaws_nothing():
    """peft #3447: after `disable_adapter()` a frozen adapter takes gradients."""
    model, handle = with_adapter("lora")
    handle.trainable(False)
    with handle.disabled():
        pass
    handle.activate()
    assert not any(p.requires_grad for p in handle.parameters())


def test_activating_one_adapter_freezes_no_other():
    """peft #3580: `set_adapter` sets requires_grad of every adapter."""
    model, one = with_adapter("lora", adapter="one")
    two = deltatune.attach(model, deltatune.LoRA(), name="two")
    one.activate()
    assert all(p.requires_grad for handle in (one, two) for p in handle.parameters())


def test_loading_an_adapter_leaves_the_mode_and_the_training_of_others_alone(tmp_path):
    """peft: `load_adapter` of a frozen adapter puts the whole model in eval(), in the middle of a training."""
    _, saved = with_adapter("lora", adapter="saved")
    saved.save(tmp_path / "saved")
    model, trained = with_adapter("lora", adapter="trained")
    model.train()
    adapter = deltatune.load(model, tmp_path / "saved")
    loaded = {inner for module in adapter.modules() for inner in module.modules()}
    assert all(module.training for module in model.modules() if module not in loaded)
    assert all(p.requires_grad for p in trained.parameters())


def test_a_forward_that_fails_leaves_no_hook_behind():
    """peft #3475: after an exception in a batch of several adapters, every later call fails."""
    model, one = with_adapter("lora", adapter="one")
    expected = outputs(model)
    bad = {**inputs(model), "input_ids": torch.full_like(inputs(model)["input_ids"], 10**6)}
    with pytest.raises(IndexError), deltatune.active(model, deltatune.Rows(["one", None, "one"])):
        forward(model, bad)
    assert torch.equal(outputs(model), expected)


def test_a_merged_adapter_is_not_switched_off_behind_ones_back():
    """peft: `disable_adapter()` on a merged model unmerges at the first forward and never merges again."""
    model, handle = with_adapter("lora")
    handle.merge()
    merged = outputs(model)
    with pytest.raises(deltatune.DeltatuneError, match="merged and cannot be switched off"), handle.disabled():
        pass
    assert handle.merged
    assert torch.equal(outputs(model), merged)


@pytest.mark.parametrize("name", HOMES)
def test_evaluating_changes_no_state(name):
    """`adapters` lowers the temperature of a fusion at every forward, in eval mode too."""
    model, handle = with_adapter(name)
    handle.train_mode(False)
    before = {key: tensor.clone() for key, tensor in handle.state_dict().items()}
    first = outputs(model)
    assert torch.equal(outputs(model), first)
    assert all(torch.equal(tensor, before[key]) for key, tensor in handle.state_dict().items())


# -- virtual tokens


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prefix_acts_alike_with_and_without_a_mask_in_both_attentions(family):
    """`adapters` masks the prefix out under SDPA when there is a mask, and without one the causal mask is off."""
    found = []
    batch = {"input_ids": inputs(model_of(family))["input_ids"]}
    for attention in ("eager", "sdpa"):
        for mask in ({}, {"attention_mask": torch.ones_like(batch["input_ids"])}):
            model = model_of(family)
            model.set_attn_implementation(attention)
            off = outputs(model, batch | mask)
            disturb(deltatune.attach(model, deltatune.method("prefix")), size=1.0)
            found.append(outputs(model, batch | mask))
            assert not torch.allclose(found[-1], off, atol=1e-2)
    assert all(torch.allclose(each, found[0], atol=1e-5) for each in found)


def test_a_prefix_leaves_the_relative_positions_of_t5_alone():
    """`adapters` counts the prefix into them: behind P virtual tokens every token is P away from itself."""
    model = model_of("t5")
    handle = deltatune.attach(model, deltatune.method("prefix", num_virtual_tokens=3))
    disturb(handle, size=1.0)
    attention, seen = model.encoder.block[0].layer[0].SelfAttention, {}
    attention.register_forward_pre_hook(
        lambda m, a, k: seen.update(x=a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    attention.o.register_forward_pre_hook(lambda m, a: seen.update(mixed=a[0]))
    batch = {key: tensor[:1] for key, tensor in inputs(model).items()}
    outputs(model, batch | {"attention_mask": torch.ones_like(batch["input_ids"])})
    x = seen["x"]
    q, k, v = (p(x).view(1, x.shape[1], -1, 8).transpose(1, 2) for p in (attention.q, attention.k, attention.v))
    front_k, front_v = handle.attached.placed.sites["encoder.block.0.layer.0.SelfAttention"](1, None)
    bias = torch.nn.functional.pad(attention.compute_bias(x.shape[1], x.shape[1]), (3, 0))
    weights = (q @ torch.cat([front_k, k], 2).mT + bias).softmax(-1)
    mixed = (weights @ torch.cat([front_v, v], 2)).transpose(1, 2).flatten(2)
    assert torch.allclose(seen["mixed"], mixed, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in HOMES if not registry.methods()[name].can.rows])
def test_what_cannot_act_on_single_rows_says_so(name):
    """peft: prompt tuning takes `adapter_names` and ignores them, every row gets the default adapter."""
    model, _ = with_adapter(name)
    rows = deltatune.Rows(["default", None])
    with pytest.raises(deltatune.DeltatuneError, match="single rows"), deltatune.active(model, rows):
        pass


# -- saving and loading


@pytest.mark.parametrize("name", HOMES)
def test_an_adapter_loads_equal_whatever_seed_it_began_with(name, tmp_path):
    """peft: a PiSSA adapter (pissa_niter_1) reloaded under another seed is off by 0.475."""
    model, handle = with_adapter(name, seed=5)
    handle.train_mode(False)
    expected = outputs(model)
    handle.save(tmp_path / "saved")
    fresh = model_of(HOMES[name])
    torch.manual_seed(99)
    deltatune.load(fresh, tmp_path / "saved")
    assert torch.equal(outputs(fresh), expected)


@pytest.mark.parametrize("name", HOMES)
def test_a_loaded_adapter_can_be_trained_on(name, tmp_path):
    """peft: `from_pretrained(is_trainable=True)` raises for prompt learning, and a prompt encoder is lost."""
    _, saved = with_adapter(name)
    saved.save(tmp_path / "saved")
    model = model_of(HOMES[name])
    handle = deltatune.load(model, tmp_path / "saved", trainable=True)
    forward(model, inputs(model)).square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in handle.parameters())


@pytest.mark.parametrize("name", HOMES)
def test_every_setting_survives_saving_and_loading(name, tmp_path):
    """`adapters` forgets fields of DiReFT and prompt tuning in the file; reloaded, they are other methods."""
    changed = otherwise(registry.method(name), HOMES[name])
    model = model_of(HOMES[name])
    handle = deltatune.attach(model, changed)
    handle.save(tmp_path / "saved")
    assert deltatune.load(model_of(HOMES[name]), tmp_path / "saved").method == changed


def otherwise(method, family):
    """The same method with every setting changed that can be changed alone."""
    sites = anatomy_of(family)
    for field, info in type(method).model_fields.items():
        for value in others(getattr(method, field), info.annotation):
            try:
                changed = type(method).parse({**method.model_dump(), field: value})
                changed.sites(sites)
                changed.count(changed.sites(sites))
                deltatune.attach(model_of(family), changed)
            except (SettingsError, NotImplementedError):
                continue
            method = changed
            break
    return method


def others(value, annotation):
    """Values a setting may have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value // 2, value + 1]
    if isinstance(value, float):
        return [value / 2 or 0.125]
    return [word for word in typing.get_args(annotation) if isinstance(word, str) and word != value]


@pytest.mark.parametrize("name", HOMES)
def test_a_folder_holds_every_tensor_once_and_no_pickle(name, tmp_path):
    """`adapters` writes pickles unless told otherwise, and prefixes once per layer, which safetensors refuses."""
    _, handle = with_adapter(name)
    handle.save(tmp_path / "saved")
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    for path in files:
        if path.suffix == ".safetensors":
            trained = [tensor for tensor in load_file(path).values() if tensor.is_floating_point()]
            moved = [tensor for tensor in trained if len(tensor.unique()) > 1]
            assert len({bytes(tensor.flatten().view(torch.uint8).tolist()) for tensor in moved}) == len(moved)


def test_the_rule_of_compacter_is_saved_on_a_model_that_is_its_own_backbone(tmp_path):
    """`adapters` looks for `.shared_parameters.`; on T5 the key begins with it, and the rule is not in the file."""
    model = model_of("t5")
    handle = deltatune.attach(model, deltatune.method("compacter"))
    disturb(handle)
    expected = outputs(model)
    handle.save(tmp_path / "saved")
    fresh = model_of("t5")
    deltatune.load(fresh, tmp_path / "saved")
    assert torch.equal(outputs(fresh), expected)


def test_saving_asks_no_network_and_takes_no_embeddings_along(tmp_path, monkeypatch):
    """peft #1452, #1689: saving may ask the hub for the vocabulary and add the embeddings without being asked."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    _, handle = with_adapter("lora")
    handle.save(tmp_path / "saved", base_model="somebody/some-model")
    keys = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert all("lora_" in key for key in keys)


@pytest.mark.parametrize("spoil", ["extra", "missing", "prefix"])
def test_tensors_that_do_not_belong_are_errors_not_warnings(spoil, tmp_path):
    """peft #1323: missing keys only warn, extra keys say nothing, a wrong prefix loads a random adapter."""
    _, handle = with_adapter("lora")
    handle.save(tmp_path / "saved")
    path = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(path)
    if spoil == "extra":
        tensors["base_model.model.bert.encoder.layer.9.lora_A.weight"] = torch.zeros(2, 2)
    elif spoil == "missing":
        tensors.popitem()
    else:
        tensors = {key.replace("base_model.", "basemodel."): tensor for key, tensor in tensors.items()}
    save_file(tensors, path)  # without our metadata, as from elsewhere
    model = model_of("bert")
    with pytest.raises(deltatune.DeltatuneError, match=r"missing|belongs to no layer"):
        deltatune.load(model, tmp_path / "saved")
    assert torch.equal(outputs(model), outputs(model_of("bert")))


@pytest.mark.parametrize("name", HOMES)
def test_no_method_takes_a_foreign_or_misshapen_tensor(name, tmp_path):
    """peft: unexpected keys in a file are ignored with no message at all."""
    _, handle = with_adapter(name)
    handle.save(tmp_path / "saved")
    path = tmp_path / "saved" / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    first = max(tensors, default="")
    odd = [{**tensors, "base_model.model.foreign": torch.zeros(2)}, {**tensors, "foreign": torch.zeros(2)}]
    odd += [{**tensors, first: torch.zeros(shape)} for shape in ((), (0,), (3, 5, 7, 2)) if first]
    model = model_of(HOMES[name])
    for changed in odd:
        save_file(changed, path, metadata=metadata)
        with pytest.raises(deltatune.DeltatuneError, match=r"foreign|shape"):
            deltatune.load(model, tmp_path / "saved")


@pytest.mark.parametrize(
    ("field", "value"),
    [("layer_replication", [[0, 1], [0, 2]]), ("trainable_token_indices", [3]), ("init_lora_weights", "pissa")],
)
def test_a_variant_that_would_merge_or_load_wrongly_is_refused(field, value, tmp_path):
    """peft merges layer_replication although it means to refuse, and loads PiSSA onto a base it was not cut from."""
    _, handle = with_adapter("lora")
    handle.save(tmp_path / "saved")
    path = tmp_path / "saved" / "adapter_model.safetensors"
    save_file(load_file(path), path)
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    (tmp_path / "saved" / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(deltatune.DeltatuneError, match=field):
        deltatune.load(model_of("bert"), tmp_path / "saved")


# -- settings


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ("query", "valeu")},
        {"target_modules": "attention", "exclude_modules": ("query", "valeu")},
        {"modules_to_save": ("classifier", "poler")},
        {"layers_to_transform": (0, 7)},
        {"rank_pattern": {"query": 4, "valeu": 2}},
        {"alpha_pattern": {"valeu": 2}},
    ],
)
def test_a_typo_beside_a_good_name_is_an_error(settings):
    """peft #1959, #3693: a name that matches nothing is silent as long as another one matches."""
    with pytest.raises(deltatune.DeltatuneError, match=r"valeu|poler|7"):
        deltatune.attach(model_of("bert"), deltatune.LoRA(**settings))
