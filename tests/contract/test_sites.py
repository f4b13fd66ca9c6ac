"""Each kind of site and each need of the contract, proven with a toy method of a few lines."""

import copy
from typing import ClassVar

import pytest
import torch
from torch import nn

from contract.cases import distance, forward, model_of, outputs
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.method import Can, Method
from deltatune.core.site import (
    InputAdapter,
    KeyValueAdapter,
    LayerAdapter,
    Shared,
    SideAdapter,
    SiteAdapter,
    SublayerAdapter,
)
from deltatune.engine.attach import attach
from deltatune.engine.compose import Rows, Stack
from models import ROWS, inputs


class Toy(Method):
    """What the toys have in common."""

    type: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy"
    paper: ClassVar[str] = "none"
    can: ClassVar[Can] = Can()
    learning_rate: ClassVar[float] = 1e-3

    def count(self, sites):
        raise NotImplementedError


# -- a parameter shared between sites


class SharedScale(Toy):
    def sites(self, model):
        return model.layers("attention.query")

    def share(self, sites, rng):
        return Scale(0.0)

    def build(self, site, origin, shared, rng):
        return Scaled(shared)


class Scale(Shared):
    def __init__(self, start):
        super().__init__()
        self.size = nn.Parameter(torch.full((1,), start))


class Scaled(LayerAdapter):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared
        self.own = nn.Parameter(torch.ones(1))

    def forward(self, x, base):
        return base(x) * (1 + self.own * self.shared.size)


def test_a_shared_parameter_is_one_tensor_trained_and_saved_once():
    model = model_of("bert")
    handle = attach(model, SharedScale())
    assert [n for n in handle.named_parameters() if "shared" in n] == ["shared.size"]
    assert len(handle.named_parameters()) == 1 + 2
    forward(model, inputs(model)).square().sum().backward()
    assert handle.named_parameters()["shared.size"].grad.abs() > 0
    assert [n for n in handle.export().tensors if "shared" in n] == ["shared.size"]
    twin = copy.deepcopy(model)
    scales = {id(m.shared.size) for m in twin.modules() if isinstance(m, Scaled)}
    assert len(scales) == 1


# -- a penalty, and a hook per step


class Pulled(Toy):
    def sites(self, model):
        return model.layers("attention.query")

    def build(self, site, origin, shared, rng):
        return Scaled(Scale(1.0))

    def penalty(self, placed):
        return sum(module.own.square().sum() for module in placed.modules())


class Counting(Pulled):
    def penalty(self, placed):
        return None

    def after_step(self, placed, progress):
        for module in placed.modules():
            module.own.data.fill_(progress.step / (progress.total or 1))


Counting.penalty = Method.penalty


def test_the_penalty_is_in_the_models_own_loss_while_training():
    model = model_of("bert")
    labels = torch.zeros(ROWS, dtype=torch.long)
    handle = attach(model, Pulled())
    plain = model(**inputs(model), labels=labels).loss
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trained = model(**inputs(model), labels=labels).loss
    assert torch.isclose(trained, plain + handle.penalty())
    assert float(handle.penalty().detach()) == 2.0


def test_the_step_hook_runs_in_any_loop_and_its_count_resumes():
    model = model_of("bert")
    handle = attach(model, Counting())
    handle.expect_steps(4)
    optimizer = torch.optim.SGD(handle.parameters(), lr=0.0)
    for _ in range(2):
        optimizer.step()
    assert {float(m.own.detach()) for m in handle.attached.placed.modules()} == {0.5}
    other = attach(model_of("bert"), Counting())
    other.load_state_dict(handle.state_dict())
    assert other.attached.steps == 2
    handle.detach()
    optimizer.step()
    assert other.attached.steps == 2


def test_a_sequential_with_a_socket_of_its_own_runs_its_layers_only():
    class Pulling(Pulled):
        def sites(self, model):
            return model.layers(("0", "2"))

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(2, 4)
    base = model(x)
    handle = attach(model, Pulling())
    with handle.disabled():
        assert torch.equal(model(x), base)
    assert len(model) == 3 and [type(child).__name__ for child in model] == ["Linear", "Tanh", "Linear"]


# -- sublayer outputs, conditioned on each row


class Conditioned(Toy):
    where: tuple[str, ...] = ("attention", "mlp")

    def sites(self, model):
        return model.sublayers(self.where)

    def build(self, site, origin, shared, rng):
        return Bottleneck(site.width, rng)


class Bottleneck(SublayerAdapter):
    """h + up(relu(down(h))) * (1 + task)."""

    def __init__(self, width, rng):
        super().__init__()
        self.down = nn.Parameter(torch.randn(4, width, generator=rng) * 0.3)
        self.up = nn.Parameter(torch.randn(width, 4, generator=rng) * 0.3)

    def forward(self, h, stream):
        size = 1.0 if stream.condition is None else (1.0 + stream.condition).view(-1, 1, 1)
        return h + torch.relu(h @ self.down.mT) @ self.up.mT * size


SUBLAYER_FAMILIES = (
    "bert",
    "roberta",
    "albert",
    "distilbert",
    "electra",
    "deberta-v2",
    "modernbert",
    "gpt2",
    "opt",
    "llama",
    "mistral",
    "qwen3",
    "t5",
    "bart",
    "vit",
    "dinov2",
    "whisper",
    "wav2vec2",
)


@pytest.mark.parametrize("family", SUBLAYER_FAMILIES)
def test_sublayer_outputs_are_found_and_changed(family):
    model = model_of(family)
    base = outputs(model)
    handle = attach(model, Conditioned())
    kinds = {site.role for site in handle.attached.sites}
    assert kinds == {"attention", "mlp"}
    assert distance(outputs(model), base) > 1e-3
    with handle.disabled():
        assert torch.equal(outputs(model), base)
    handle.detach()
    assert torch.equal(outputs(model), base)


def test_a_sublayer_adapter_of_bert_equals_the_closed_form():
    model = model_of("bert")
    handle = attach(model, Conditioned(where=("mlp",)))
    site = handle.attached.sites[0]
    block = model.get_submodule("bert.encoder.layer.0")
    assert (site.path, site.norm) == ("bert.encoder.layer.0.output.dropout", "bert.encoder.layer.0.output.LayerNorm")
    x = torch.randn(2, 5, 32)
    h = block.output.dense(block.intermediate(x))
    adapter = handle.attached.placed.sites[site.path]
    expected = block.output.LayerNorm(adapter(h, type("S", (), {"condition": None})) + x)
    handle.roster.frame[site.residual] = x
    assert torch.allclose(block.output(block.intermediate(x), x), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_condition_reaches_each_row(family):
    model = model_of(family)
    handle = attach(model, Conditioned())
    tasks = torch.tensor([0.0, 3.0, -1.0])
    with handle.conditioned(tasks):
        mixed = outputs(model)
    for row, task in enumerate(tasks):
        with handle.conditioned(task.repeat(ROWS)):
            assert distance(mixed[row], outputs(model)[row]) < 1e-5
    assert distance(mixed[1], outputs(model)[1]) > 1e-4


@pytest.mark.parametrize("family", ["bert", "llama", "vit", "whisper"])
def test_rows_of_sublayer_adapters_equal_separate_passes(family):
    model = model_of(family)
    handle = attach(model, Conditioned(), name="one")
    attach(model, Conditioned(), name="two", seed=7)
    alone = {}
    for name in ("one", "two", None):
        with handle.roster.activated(name):
            alone[name] = outputs(model)
    with handle.roster.activated(Rows(["two", None, "one"])):
        mixed = outputs(model)
    for row, name in enumerate(("two", None, "one")):
        assert distance(mixed[row], alone[name][row]) < 1e-5


# -- keys and values


class Prefix(Toy):
    can: ClassVar[Can] = Can(identity=None)
    tokens: int = 3

    def sites(self, model):
        return model.attentions(("self",))

    def build(self, site, origin, shared, rng):
        shape = (2, site.key_value_heads, self.tokens, site.head_width)
        return KeysAndValues(torch.randn(shape, generator=rng))


class KeysAndValues(KeyValueAdapter):
    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, rows, condition):
        keys, values = self.values.unsqueeze(1).expand(-1, rows, -1, -1, -1)
        return keys, values


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "gpt2", "t5", "vit", "whisper", "bart"])
def test_a_prefix_changes_attention_and_nothing_else(family, attention):
    model = model_of(family)
    model.set_attn_implementation(attention)
    base = outputs(model)
    handle = attach(model, Prefix())
    assert distance(outputs(model), base) > 1e-4
    together = outputs(model)
    single = outputs(model, {k: v[:1] for k, v in inputs(model).items()})
    assert distance(single[0], together[0]) < 1e-5
    with handle.disabled():
        assert distance(outputs(model), base) == 0
    handle.detach()
    assert model.config._attn_implementation == attention
    assert torch.equal(outputs(model), base)


def test_a_prefix_of_llama_equals_attention_over_longer_keys():
    model = model_of("llama")
    model.set_attn_implementation("eager")
    handle = attach(model, Prefix())
    seen = {}
    layer = model.model.layers[0].self_attn
    layer.register_forward_hook(lambda m, a, k, o: seen.update(given=k, out=o[0]), with_kwargs=True)
    layer.o_proj.register_forward_hook(lambda m, a, o: seen.update(mixed=a[0]))
    batch = {"input_ids": inputs(model)["input_ids"][:1]}
    outputs(model, batch)
    x, (cos, sin) = seen["given"]["hidden_states"], seen["given"]["position_embeddings"]
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k, v = (p(x).view(1, 7, -1, 8).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    front_k, front_v = handle.attached.placed.sites["model.layers.0.self_attn"](1, None)
    k = torch.cat([front_k, k], 2).repeat_interleave(2, 1)
    v = torch.cat([front_v, v], 2).repeat_interleave(2, 1)
    mask = torch.ones(7, 10).tril(3).bool()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(1, 7, -1)
    assert torch.allclose(seen["mixed"], expected, atol=1e-5)


def test_rows_of_prefixes_of_different_length_equal_separate_passes():
    model = model_of("bert")
    handle = attach(model, Prefix(tokens=2), name="short")
    attach(model, Prefix(tokens=5), name="long", seed=3)
    plan = ["long", None, "short"]
    alone = []
    for name in plan:
        with handle.roster.activated(name):
            alone.append(outputs(model))
    with handle.roster.activated(Rows(plan)):
        mixed = outputs(model)
    for row in range(ROWS):
        assert distance(mixed[row], alone[row][row]) < 1e-5


def test_generation_with_a_prefix_and_a_cache_equals_generation_without():
    model = model_of("llama")
    attach(model, Prefix())
    given = {k: v[:1] for k, v in inputs(model).items()}
    texts = [model.generate(**given, max_new_tokens=6, use_cache=cache, do_sample=False) for cache in (True, False)]
    assert torch.equal(texts[0], texts[1])


@pytest.mark.parametrize("family", ["xlnet", "bloom", "deberta-v2", "mpnet"])
def test_models_outside_the_attention_registry_are_refused_clearly(family):
    with pytest.raises(SettingsError, match="attention registry"):
        attach(model_of(family), Prefix())


# -- virtual tokens, from an encoder that is folded away


class Prompt(Toy):
    def sites(self, model):
        return model.inputs()

    def build(self, site, origin, shared, rng):
        return PromptEncoder(site.width, rng)


class PromptEncoder(InputAdapter):
    tokens = 4

    def __init__(self, width, rng):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(self.tokens, 3, generator=rng))
        self.mix = nn.Parameter(torch.randn(3, width, generator=rng))

    def prompt(self):
        return torch.tanh(self.codes) @ self.mix

    def forward(self, rows, condition):
        return self.prompt().expand(rows, -1, -1)

    def folded(self):
        return PlainPrompt(self.prompt().detach())


class PlainPrompt(InputAdapter):
    def __init__(self, prompt):
        super().__init__()
        self.embeddings = nn.Parameter(prompt)
        self.tokens = len(prompt)

    def forward(self, rows, condition):
        return self.embeddings.expand(rows, -1, -1)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "t5", "vit", "distilbert"])
def test_a_prompt_goes_in_and_comes_out_again(family):
    model = model_of(family)
    base = outputs(model)
    handle = attach(model, Prompt())
    changed = outputs(model)
    assert changed.shape == base.shape
    assert distance(changed, base) > 1e-5
    single = outputs(model, {k: v[:1] for k, v in inputs(model).items()})
    assert distance(single[0], changed[0]) < 1e-5
    forward(model, inputs(model)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in handle.parameters())
    handle.detach()
    assert torch.equal(outputs(model), base)


def test_a_prompt_of_real_tokens_equals_feeding_these_tokens():
    model = model_of("llama")
    words = torch.tensor([5, 9, 11, 30])
    handle = attach(model, Prompt())
    plain = PlainPrompt(model.get_input_embeddings()(words).detach())
    handle.load_tensors({"model.embed_tokens.embeddings": plain.embeddings.detach()})
    batch = inputs(model)
    longer = {
        "input_ids": torch.cat([words.expand(ROWS, -1), batch["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones(ROWS, 4, dtype=torch.long), batch["attention_mask"]], 1),
    }
    with_prompt = outputs(model, batch)
    with handle.disabled():
        expected = outputs(model, longer)[:, 4:]
    real = batch["attention_mask"].bool()
    assert distance(with_prompt[real], expected[real]) < 1e-5


def test_the_folded_prompt_is_saved_and_the_encoder_resumes():
    model = model_of("bert")
    handle = attach(model, Prompt())
    expected = outputs(model)
    tensors = handle.export().tensors
    assert [t.shape for t in tensors.values()] == [(4, 32)]
    assert any("codes" in n for n in handle.state_dict())
    fresh = model_of("bert")
    other = attach(fresh, Prompt(), seed=9)
    other.load_tensors(tensors)
    assert torch.equal(outputs(fresh), expected)
    third = attach(model_of("bert"), Prompt(), seed=9)
    third.load_state_dict(handle.state_dict())
    assert torch.equal(outputs(third.model), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_prompt_and_a_cache_equals_generation_without(beams):
    model = model_of("gpt2")
    attach(model, Prompt())
    given = {k: v[:2] for k, v in inputs(model).items()}
    given = {k: v[:, :5] for k, v in given.items()}
    texts = [
        model.generate(**given, max_new_tokens=6, num_beams=beams, use_cache=cache, do_sample=False)
        for cache in (True, False)
    ]
    assert torch.equal(texts[0], texts[1])


# -- a side network


class Ladder(Toy):
    can: ClassVar[Can] = Can(rows=False, mix=False)

    def sites(self, model):
        return [model.side()]

    def build(self, site, origin, shared, rng):
        return Side(site.depth + 1, site.width)


class Side(SideAdapter):
    """last + sum_i W_i h_i."""

    def __init__(self, count, width):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(count, width, width))

    def forward(self, hidden, last, beside):
        return last + sum(h @ w for h, w in zip(hidden, self.weights, strict=True))


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "vit", "t5"])
def test_a_side_network_learns_without_a_gradient_in_the_base(family):
    model = model_of(family)
    base = outputs(model)
    handle = attach(model, Ladder())
    assert torch.equal(outputs(model), base)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        forward(model, inputs(model)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in handle.parameters())
    assert not any(48 in shape for shape in kept if len(shape) == 3)  # no activation of a feed-forward is kept


# -- composition


def test_stacked_layer_adapters_see_each_other_as_their_base():
    model = model_of("bert")
    one = attach(model, Pulled(), name="one")
    attach(model, Pulled(), name="two", seed=1)
    layer = model.bert.encoder.layer[0].attention.self.query
    x = torch.randn(2, 5, 32)
    with one.roster.activated(None):
        base = layer(x)
    with one.roster.activated(Stack("one", "two")):
        assert torch.allclose(layer(x), base * 4, atol=1e-6)


def test_what_cannot_act_on_rows_or_be_mixed_says_so():
    model = model_of("bert")
    one = attach(model, Ladder(), name="one")
    attach(model, Ladder(), name="two")
    with pytest.raises(AdapterError, match="single rows"):
        one.roster.activate(Rows(["one", "two", None]))
    with pytest.raises(AdapterError, match="combined"):
        one.roster.activate(Stack("one", "two"))
    assert one.roster.active == "two"


def test_every_site_adapter_can_be_folded_into_itself():
    assert isinstance(Side(1, 2).folded(), SiteAdapter)
