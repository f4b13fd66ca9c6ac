"""Ladder side tuning: the closed form, no trace in the base, what a token may see, generation with a cache."""

import pytest
import torch
import torch.nn.functional as F

import deltatune
from contract.cases import distance, disturb, forward, model_of, outputs
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.engine.anatomy import Anatomy
from models import inputs, tiny
from shapes import count


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("bert-base", {}, 13 * 96 * 769 + 12 * (12 * 96**2 + 4 * 96 + 1) + 2 * 96 + 96 * 768),
        ("bert-base", {"leave_out": (0, 4, 8)}, 10 * 96 * 769 + 9 * (12 * 96**2 + 385) + 192 + 96 * 768),
        ("bert-base", {"reduction_factor": 4}, 13 * 192 * 769 + 12 * (12 * 192**2 + 769) + 384 + 192 * 768),
        ("roberta-large", {}, 25 * 128 * 1025 + 24 * (12 * 128**2 + 513) + 256 + 128 * 1024),
        ("t5-base", {}, 13 * 96 * 769 + 12 * (12 * 96**2 + 385) + 192 + 96 * 768),
        ("llama-7b", {"reduction_factor": 16}, 33 * 256 * 4097 + 32 * (12 * 256**2 + 1025) + 512 + 256 * 4096),
    ],
)
def test_it_trains_the_values_of_the_closed_form(model, settings, expected):
    assert count(deltatune.Ladder(**settings), model) == expected


def test_on_bert_base_it_trains_two_percent():
    assert count(deltatune.Ladder(), "bert-base") == 2_365_356


def test_the_width_is_a_multiple_of_the_heads():
    assert [deltatune.Ladder(reduction_factor=r)._width(Anatomy.of(tiny("bert")).side()) for r in (8, 5, 2.5)] == [
        4,
        4,
        12,
    ]


def ladder(family="bert", size=0.3, **settings):
    model = model_of(family)
    adapter = deltatune.attach(model, deltatune.Ladder(**{"reduction_factor": 4, **settings}))
    disturb(adapter, size=size)
    return model, adapter, next(iter(adapter.attached.placed.modules()))


def attention(x, weights, output, mask, heads=4):
    """Softmax attention written out, head by head."""
    q, k, v = (x @ w.T for w in weights)
    size, parts = x.shape[-1] // heads, []
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        scores = q[..., cut] @ k[..., cut].mT / size**0.5
        parts.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[..., cut])
    return torch.cat(parts, -1) @ output.T


def norm(x, gain, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


@pytest.mark.parametrize(("leave_out", "kept"), [((), [0, 1]), ((0,), [1])])
def test_the_output_is_the_closed_form(leave_out, kept):
    model, adapter, side = ladder(leave_out=leave_out)
    batch = inputs(model)
    with adapter.disabled(), torch.no_grad():
        hidden = model.bert(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].bool()
    seen = mask[:, None] | torch.eye(7, dtype=torch.bool)
    s = hidden[0] @ side.down_weight[0].T + side.down_bias[0]
    for i, number in enumerate(kept):
        g, block = torch.sigmoid(side.gates[i] / 0.1), side.blocks[i]
        down = hidden[number + 1] @ side.down_weight[i + 1].T + side.down_bias[i + 1]
        s = g * s + (1 - g) * down
        s = s + attention(norm(s, block.gains[0], block.biases[0]), block.attention, block.output, seen)
        s = s + F.gelu(norm(s, block.gains[1], block.biases[1]) @ block.inner.T) @ block.outer.T
    expected = hidden[-1] + norm(s, side.norm_weight, side.norm_bias) @ side.up_weight.T
    found = model.bert(**batch, output_hidden_states=True)
    assert torch.allclose(found.last_hidden_state[mask], expected[mask], atol=1e-5)
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    assert torch.equal(found.hidden_states[1], hidden[1])


def test_the_gates_start_in_the_middle_and_the_base_is_cut_off_by_its_maps():
    _, _, side = ladder(size=0.0)
    assert not side.gates.any() and not side.up_weight.any()
    model, _, side = ladder()
    with torch.no_grad():
        side.down_weight.zero_()
        side.down_bias.zero_()
        model.get_submodule("bert.encoder.layer.0").output.dense.weight.mul_(3)
    hidden = [torch.randn(1, 5, 32) for _ in range(3)]
    tokens = type("Tokens", (), {"mask": None, "remember": staticmethod(lambda i, k, v: (k, v))})
    first, second = (side([h * scale for h in hidden], hidden[-1], tokens) for scale in (1, 5))
    assert torch.equal(first, second)


FAMILIES = ("bert", "albert", "gpt2", "llama", "t5", "vit", "whisper")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_activation_inside_the_base_is_kept_for_backward(family):
    model, adapter, _ = ladder(family)
    (site,) = adapter.attached.sites
    inside, outputs_of_blocks, kept = [], [], []
    for path in site.blocks:
        block = model.get_submodule(path)
        block.register_forward_hook(lambda m, a, o: outputs_of_blocks.append(o[0] if isinstance(o, tuple) else o))
        for name, module in block.named_modules():
            if name and "deltas" not in name:
                module.register_forward_hook(lambda m, a, o: inside.append(o[0] if isinstance(o, tuple) else o))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = forward(model, inputs(model)).square().sum()
    block_outputs = {tensor.untyped_storage().data_ptr() for tensor in outputs_of_blocks}
    hidden = {tensor.untyped_storage().data_ptr() for tensor in inside} - block_outputs
    assert len(inside) > 10 and kept
    assert not any(tensor.untyped_storage().data_ptr() in hidden for tensor in kept)
    loss.backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not p.requires_grad)


def test_the_first_step_moves_the_last_map_and_the_next_one_everything():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.Ladder(reduction_factor=4))
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    for reached in (1, len(adapter.parameters())):
        optimizer.zero_grad()
        forward(model, inputs(model)).square().sum().backward()
        assert sum(bool(p.grad.any()) for p in adapter.parameters()) == reached
        optimizer.step()


# -- what a token sees


CAUSAL = ("gpt2", "gpt-neox", "opt", "bloom", "falcon", "phi3", "llama", "mistral", "qwen3", "gemma3")
DECODERS = ("t5", "bart", "mbart", "marian", "whisper")
BOTH = ("bert", "roberta", "albert", "distilbert", "deberta-v2", "electra", "esm", "mpnet", "modernbert", "torch")


@pytest.mark.parametrize("family", (*CAUSAL, *DECODERS))
def test_a_later_token_changes_nothing_before_it(family):
    model, _, _ = ladder(family)
    batch = inputs(model)
    batch.pop("attention_mask", None)
    name = "decoder_input_ids" if family in DECODERS else "input_ids"
    base = outputs(model, batch)
    batch[name] = batch[name].clone()
    batch[name][:, -1] = 44
    changed = outputs(model, batch)
    assert distance(changed[:, :-1], base[:, :-1]) < 1e-5
    assert distance(changed[:, -1], base[:, -1]) > 1e-4


@pytest.mark.parametrize("family", BOTH)
def test_in_an_encoder_every_token_sees_every_other(family):
    model, adapter, side = ladder(family)
    assert adapter.attached.sites[0].causal is False
    found = {}
    side.register_forward_hook(lambda m, args, out: found.update(mask=args[2].mask))
    outputs(model, {"input_ids": inputs(model)["input_ids"]})
    assert found["mask"] is None or bool(found["mask"].all())


@pytest.mark.parametrize("family", [name for name in BOTH if name != "torch"])
def test_padding_changes_nothing(family):
    model, _, _ = ladder(family)
    batch = inputs(model)
    hidden = outputs(model.base_model, batch)
    single = outputs(model.base_model, {name: tensor[2:, :5] for name, tensor in batch.items()})
    assert distance(single[0], hidden[2, :5]) < 1e-5
    if family not in ("roberta", "esm", "mpnet"):  # they count positions by the padding's id
        real = batch["attention_mask"].bool()
        batch["input_ids"] = batch["input_ids"].where(real, 77)
        assert distance(outputs(model.base_model, batch)[real], hidden[real]) < 1e-5


def test_padding_on_the_left_is_left_out_and_stays_finite():
    model, _, _ = ladder("llama")
    ids = inputs(model)["input_ids"][:1]
    alone = outputs(model, {"input_ids": ids})
    padded = {
        "input_ids": torch.cat([torch.full((1, 3), 50), ids], 1),
        "attention_mask": torch.tensor([[0] * 3 + [1] * 7]),
        "position_ids": torch.tensor([[0] * 3 + list(range(7))]),
    }
    found = outputs(model, padded)
    assert torch.isfinite(found).all()
    assert distance(found[:, 3:], alone) < 1e-5


def test_the_mask_is_that_of_the_decoder_not_of_the_encoder():
    model, _, _ = ladder("t5")
    batch = inputs(model)
    plain = outputs(model, batch)
    batch["decoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    found = outputs(model, batch)
    assert distance(found[:, :3], plain[:, :3]) < 1e-5


# -- generation


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bloom", "t5", "bart", "whisper"])
def test_generation_with_a_cache_equals_generation_without(family, beams):
    model, adapter, _ = ladder(family, size=0.6)
    given = {k: v for k, v in inputs(model).items() if not k.startswith("decoder")}
    if family not in DECODERS:
        given = {k: v.flip(1) for k, v in given.items()}  # padding stands on the left
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False}

    def generated(**more):
        found = model.generate(**given, **options, **more, return_dict_in_generate=True, output_scores=True)
        return found.sequences, torch.stack(found.scores).nan_to_num(neginf=0.0)

    (texts, scores), (again, others) = (generated(use_cache=cache) for cache in (True, False))
    assert torch.equal(texts, again)
    assert distance(scores, others) < 1e-5
    with adapter.disabled():
        assert distance(generated()[1][0], scores[0]) > 1e-4


def test_logits_with_a_cache_are_those_without():
    model, _, _ = ladder("llama")
    ids = inputs(model)["input_ids"][:1]
    whole = outputs(model, {"input_ids": ids})
    with torch.no_grad():
        first = model(input_ids=ids[:, :4], use_cache=True)
        parts = [first.logits]
        for part in (ids[:, 4:5], ids[:, 5:]):
            parts.append(model(input_ids=part, past_key_values=first.past_key_values).logits)
    assert distance(torch.cat(parts, 1), whole) < 1e-5


def test_a_cache_that_the_side_network_has_not_seen_is_refused():
    model, adapter, _ = ladder("llama")
    ids = inputs(model)["input_ids"][:1]
    with torch.no_grad(), adapter.disabled():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    with torch.no_grad(), pytest.raises(AdapterError, match="tokens that the side network has not seen"):
        model(input_ids=ids[:, :1], past_key_values=cache)


def test_a_training_step_keeps_nothing_in_the_cache():
    model, _, _ = ladder("llama")
    cache = model(**inputs(model), use_cache=True).past_key_values
    assert len(cache.layers) == 2


# -- settings


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {"leave_out": (2,)}, r"leave_out names block 2 and this model has 2 \(0..1\)"),
        ("bert", {"leave_out": (0, 1)}, "leaves no block"),
        ("bert", {"reduction_factor": 30}, "leaves less than 4 values for 4 heads at width 32; try reduction_factor=4"),
        ("xlnet", {}, r"do not pass on \[rows, tokens, width\]"),
        ("patchtst", {}, r"do not pass on \[rows, tokens, width\]"),
        ("mamba", {}, "no cache of keys and values"),
        ("swin", {}, "differ in width"),
    ],
)
def test_what_has_no_place_is_an_error(family, settings, message):
    with pytest.raises(SettingsError, match=message):
        deltatune.attach(model_of(family), deltatune.Ladder(**settings))


def test_blocks_left_out_are_not_read():
    model, _, side = ladder(leave_out=(0,))
    assert len(side.blocks) == 1 and side.down_weight.shape[0] == 2
    hidden = [torch.randn(1, 5, 32) for _ in range(3)]
    tokens = type("Tokens", (), {"mask": None, "remember": staticmethod(lambda i, k, v: (k, v))})
    base = side(hidden, hidden[-1], tokens)
    assert torch.equal(base, side([hidden[0], hidden[1] + 9, hidden[2]], hidden[-1], tokens))
    assert not torch.equal(base, side([hidden[0], hidden[1], hidden[2] + 9], hidden[-1], tokens))


def test_a_shared_block_is_read_at_every_run():
    _, adapter, side = ladder("albert")
    (site,) = adapter.attached.sites
    assert (len(site.blocks), site.depth, len(side.blocks)) == (1, 2, 2)
