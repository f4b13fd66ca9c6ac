"""Saving, loading, compiling, generating, naming: what a method goes through in use."""

import pytest
import torch

import deltatune
from contract.cases import FAMILIES, attached, cases, distance, disturb, fits, forward, model_of, outputs
from deltatune.core import registry
from deltatune.core.errors import SettingsError
from deltatune.engine.attach import attach
from models import inputs

METHODS = tuple(dict.fromkeys(name for name, _ in cases()))
"""Those that need nothing but a model; `adapter-fusion` has tests of its own."""


@pytest.mark.parametrize(("name", "family"), cases())
def test_a_saved_adapter_loads_to_the_bit_with_the_same_settings(name, family, tmp_path):
    model = model_of(family)
    adapter = deltatune.attach(model, registry.method(name))
    disturb(adapter)
    adapter.save(tmp_path / "saved")
    fresh = model_of(family)
    again = deltatune.load(fresh, tmp_path / "saved", name="again")
    assert torch.equal(outputs(fresh), outputs(model))
    assert again.method == adapter.method
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_it_compiles_to_one_graph(name):
    family = next(f for f in ("llama", "bert") if fits(registry.method(name), f))
    model, handle = attached(name, family)
    disturb(handle)
    expected = outputs(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    given = {**inputs(model)} | ({"use_cache": False} if family == "llama" else {})
    with torch.no_grad():
        assert distance(compiled(**given)[0], expected) < 1e-5


def fitting(*families):
    """Every (method, family) of these families that fit together."""
    return [(name, family) for name, family in cases() if family in families]


@pytest.mark.parametrize(("name", "family"), fitting("gpt2", "llama", "t5"))
def test_generation_is_the_same_with_and_without_a_cache(name, family):
    model, handle = attached(name, family)
    disturb(handle, size=0.3)
    given = {k: v[:2, :5] for k, v in inputs(model).items() if k != "decoder_input_ids"}
    for beams in (1, 3):
        texts = [
            model.generate(**given, max_new_tokens=5, num_beams=beams, use_cache=cache, do_sample=False)
            for cache in (True, False)
        ]
        assert torch.equal(texts[0], texts[1])


@pytest.mark.parametrize(("name", "family"), fitting("bert", "llama", "vit"))
def test_eager_and_fused_attention_agree(name, family):
    found = []
    for attention in ("eager", "sdpa"):
        model = model_of(family)
        model.set_attn_implementation(attention)
        disturb(attach(model, registry.method(name)))
        mask = inputs(model).get("attention_mask")
        result = outputs(model)
        found.append(result if mask is None or result.dim() < 3 else result[mask.bool()])
    assert distance(found[0], found[1]) < 1e-5


@pytest.mark.parametrize("name", [n for n in METHODS if n != "linear-probe"])  # its tensors are those of full
def test_gradients_are_those_of_finite_differences(name):
    model, handle, batch = small_in_double(name)
    for module in handle.modules():
        module.double()
    disturb(handle, size=0.3)
    free = [p for n, p in handle.named_parameters().items() if not (name == "dora" and "lora_" in n)]

    def loss(*_):
        return forward(model, batch).square().sum()

    assert torch.autograd.gradcheck(loss, free, fast_mode=len(free) > 8)


def small_in_double(name):
    """Two plain layers, or the first family that has the method's sites, in float64."""
    torch.manual_seed(3)
    fields = registry.methods()[name].model_fields
    settings = {"r": 2} if "r" in fields else {}
    if "target_modules" in fields and fields["target_modules"].default is not None:
        settings["target_modules"] = ("first", "last")
    model = TwoLayers().double().eval()
    try:
        handle = attach(model, registry.method(name, **settings))
    except SettingsError:
        family = next(family for given, family in cases() if given == name)
        model = model_of(family).double()
        batch = inputs(model)
        return model, attach(model, registry.method(name)), batch
    return model, handle, {"x": torch.randn(6, 4, dtype=torch.float64)}


class TwoLayers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 4)

    def forward(self, x):
        return (self.last(self.first(x).tanh()),)


@pytest.mark.parametrize(
    "adapter", ["train", "double", "half", "layers", "model", "self", "q-proj", "a_b", "weight", "0"]
)
def test_names_that_collide_with_attributes_and_paths_work(adapter, tmp_path):
    model = model_of("llama")
    first = deltatune.attach(model, deltatune.LoRA(r=2), name="default")
    second = deltatune.attach(model, deltatune.LoRA(r=2), name=adapter)
    disturb(second)
    expected = outputs(model)
    for handle in (first, second):
        handle.save(tmp_path / handle.name)
    sizes = {(tmp_path / h.name / "adapter_model.safetensors").stat().st_size // 100 for h in (first, second)}
    assert len(sizes) == 1
    fresh = model_of("llama")
    deltatune.load(fresh, tmp_path / adapter)
    assert torch.equal(outputs(fresh), expected)


@pytest.mark.parametrize(
    "adapter", ["", ".", "..", "../up", "a/b", "a.b", "A", "-a", "a-", "a b", "é", "x" * 65, "a\n", "con\0"]
)
def test_other_names_are_refused(adapter):
    model = model_of("bert")
    with pytest.raises(deltatune.DeltatuneError, match="not allowed"):
        deltatune.attach(model, deltatune.LoRA(), name=adapter)


def test_a_name_is_taken_once():
    model = model_of("bert")
    deltatune.attach(model, deltatune.LoRA())
    with pytest.raises(deltatune.DeltatuneError, match="already attached"):
        deltatune.attach(model, deltatune.LoRA())


def test_average_is_the_weighted_sum_of_outputs():
    model = model_of("bert")
    one = attach(model, registry.method("lora"), name="one")
    two = attach(model, registry.method("lora"), name="two", seed=1)
    for seed, handle in enumerate((one, two)):
        disturb(handle, seed)
    layer = model.bert.encoder.layer[0].attention.self.query
    x = torch.randn(2, 5, 32)
    with deltatune.active(model, "one"):
        first = layer(x)
    with deltatune.active(model, "two"):
        second = layer(x)
    with deltatune.active(model, deltatune.Average({"one": 0.7, "two": 0.3})):
        assert torch.allclose(layer(x), 0.7 * first + 0.3 * second, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_stack_merges_layer_by_layer_like_nested_weights(name):
    model = model_of("bert")
    one = attach(model, registry.method("lora"), name="one")
    two = attach(model, registry.method(name), name="two", seed=1)
    disturb(one, 1)
    disturb(two, 2)
    with deltatune.active(model, deltatune.Stack("one", "two")):
        stacked = outputs(model)
    one.activate()
    one.merge()
    two.roster.active = "two"  # on top of the merged base, which activate() would refuse for "one" only
    assert distance(outputs(model), stacked) < 1e-4


def test_rows_train_each_adapter_on_its_own_rows():
    model = model_of("bert")
    one = attach(model, registry.method("lora"), name="one")
    two = attach(model, registry.method("lora"), name="two", seed=1)
    disturb(one)
    disturb(two, 5)
    batch = inputs(model)
    with deltatune.active(model, deltatune.Rows(["one", "two", None])):
        forward(model, batch).square().sum().backward()
    mixed = [p.grad.clone() for p in one.parameters()]
    model.zero_grad()
    with deltatune.active(model, "one"):
        forward(model, {k: v[:1] for k, v in batch.items()}).square().sum().backward()
    assert all(torch.allclose(a, p.grad, atol=1e-5) for a, p in zip(mixed, one.parameters(), strict=True))


def test_tied_weights_are_refused_for_merging_with_the_way_out():
    model = model_of("gpt2")
    handle = attach(model, registry.method("lora", target_modules=("lm_head",)))
    disturb(handle)
    with pytest.raises(deltatune.DeltatuneError, match=r"shares its weight with transformer.wte.weight"):
        handle.merge()
    assert not handle.merged


def test_a_failed_merge_changes_nothing():
    model = model_of("bert")
    handle = attach(model, registry.method("lora"))
    disturb(handle)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        handle.parameters()[-1].fill_(float("inf"))
    with pytest.raises(deltatune.DeltatuneError, match="not finite"):
        handle.merge()
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in before.items() if "deltas" not in n)


def test_merge_and_unload_leaves_a_plain_model():
    model = model_of("llama")
    handle = attach(model, registry.method("lora"))
    disturb(handle)
    expected = outputs(model)
    plain = handle.merge_and_unload()
    assert plain is model
    assert not any("deltas" in n for n, _ in model.named_modules())
    assert distance(outputs(model), expected) < 1e-5


def test_twenty_cycles_of_merging_in_bfloat16_change_no_bit():
    model = model_of("llama").to(torch.bfloat16)
    before = {n: p.clone() for n, p in model.named_parameters()}
    handle = attach(model, registry.method("lora"))
    disturb(handle)
    for _ in range(20):
        handle.merge()
        handle.unmerge()
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in before.items())


def test_switching_is_one_assignment():
    model = model_of("llama")
    handle = attach(model, registry.method("lora"))
    calls = []
    model.modules = lambda: calls.append(1) or iter(())  # a walk would come through here
    with handle.disabled():
        pass
    handle.activate()
    assert not calls


class Linear4bit(torch.nn.Linear):
    """Stands in for a layer of bitsandbytes: recognised by its class name."""


def test_a_quantised_base_is_adapted_but_never_merged_into_nor_trained():
    model = torch.nn.Sequential(Linear4bit(8, 8))
    base = model(torch.ones(1, 8))
    with pytest.raises(deltatune.DeltatuneError, match="full cannot train on a quantised base"):
        attach(model, registry.method("full"))
    model[0].weight.SCB = None
    model[0].weight.dequantize = lambda: model[0]._parameters["weight"].detach().float()
    handle = attach(model, registry.method("lora", r=2, target_modules="0"))
    assert torch.equal(model(torch.ones(1, 8)), base)
    with pytest.raises(deltatune.DeltatuneError, match="merging into a quantised weight is not possible"):
        handle.merge()
    assert not handle.merged


def test_every_refusal_says_why_and_what_would_work():
    for name in METHODS:
        for family in (family for family in FAMILIES if (name, family) not in cases()):
            with pytest.raises(SettingsError) as refusal:
                attach(model_of(family), registry.method(name))
            assert refusal.value.what and refusal.value.hint, (name, family)
