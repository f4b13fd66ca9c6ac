"""AdapterFusion against its closed form, its penalty in every loop, and its folder."""

import pytest
import torch
import torch.nn.functional as F

import deltatune
from contract.cases import disturb, forward, model_of, outputs
from deltatune.core.errors import AdapterError, SettingsError
from models import inputs
from shapes import count

NAMES = ("a", "b", "c")


def fused(family="bert", placement="pfeiffer", move=True, **settings):
    model = model_of(family)
    for seed, name in enumerate(NAMES):
        method = deltatune.BottleneckAdapter(placement=placement, sublayers=("mlp",), bottleneck_size=3)
        disturb(deltatune.attach(model, method, name=name, seed=seed), seed=seed, size=0.3)
    adapter = deltatune.attach(model, deltatune.AdapterFusion(adapters=NAMES, **settings), name="fusion")
    if move:
        disturb(adapter, seed=9, size=0.3)
    return model, adapter


def test_the_count_is_that_of_the_paper_less_the_key_bias_that_cannot_learn():
    trained = count(deltatune.AdapterFusion(adapters=NAMES), "bert-base")
    assert trained + 12 * 768 == 21_252_096
    assert count(deltatune.AdapterFusion(adapters=NAMES, value=False), "bert-base") == 12 * (2 * 768**2 + 768)


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_the_output_is_the_closed_form(placement):
    model, adapter = fused(placement=placement)
    path = "bert.encoder.layer.1.output.dropout"
    fusion = adapter.attached.placed.sites[path]
    units = [adapter.roster.adapters[name].placed.sites[path] for name in NAMES]
    block = model.bert.encoder.layer[1]
    seen = {}
    block.intermediate.register_forward_hook(lambda _, args, out: seen.update(x=args[0], inner=out))
    expected = model(**inputs(model), output_hidden_states=True).hidden_states[-1]
    x, norm = seen["x"], block.output.LayerNorm
    h = F.linear(seen["inner"], block.output.dense.weight, block.output.dense.bias)
    read = {"houlsby": h, "pfeiffer": norm(h + x), "parallel": x}[placement]
    u = [F.gelu(read @ m.down_weight.T + m.down_bias) @ m.up_weight.T + m.up_bias for m in units]
    query = read @ fusion.query_weight.T + fusion.query_bias
    scores = torch.stack([(query * (each @ fusion.key_weight.T + 0.7)).sum(-1) for each in u], -1)  # any key bias
    values = torch.stack([each @ fusion.value_weight.T for each in u], -2)
    mixture = (scores.softmax(-1).unsqueeze(-1) * values).sum(-2)
    assert torch.allclose(norm(h + mixture + x), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "vit", "whisper"])
def test_fusing_copies_of_one_adapter_gives_that_adapter(family):
    model, adapter = fused(family, move=False)
    first = adapter.roster.adapters["a"].placed
    for name in NAMES[1:]:
        for ours, theirs in zip(adapter.roster.adapters[name].placed.modules(), first.modules(), strict=True):
            ours.load_state_dict(theirs.state_dict())
    with deltatune.active(model, "a"):
        expected = outputs(model)
    assert torch.allclose(outputs(model), expected, atol=1e-5)


def test_query_and_key_start_small_and_around_zero_and_the_value_as_the_identity():
    _, adapter = fused(move=False)
    for fusion in adapter.attached.placed.modules():
        for weight in (fusion.query_weight, fusion.key_weight):
            assert abs(float(weight.detach().mean())) < 0.003 and abs(float(weight.detach().std()) - 0.02) < 0.002
        assert torch.equal(fusion.value_weight, torch.eye(32)) and not fusion.query_bias.any()


def test_only_the_fusion_trains():
    model, adapter = fused()
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapter.parameters()}
    forward(model, inputs(model)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert adapter.trainable_parameters == adapter.method.count(adapter.attached.sites)


def test_the_penalty_is_part_of_the_loss_that_the_model_computes():
    model, adapter = fused()
    batch = {**inputs(model), "labels": torch.tensor([0, 1, 1])}
    plain = model(**batch).loss
    model.train()
    torch.manual_seed(0)
    with_penalty = model(**batch).loss
    penalty = adapter.penalty()
    expected = 0.01 * sum(
        (torch.eye(32) - module.value_weight).square().sum() for module in adapter.attached.placed.modules()
    )
    assert torch.allclose(penalty, expected) and expected > 0
    model.eval()
    with adapter.disabled():
        assert not torch.equal(model(**batch).loss, plain)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.allclose(model(**batch).loss, plain + penalty, atol=1e-5)
    assert with_penalty > penalty


def test_it_is_saved_with_its_adapters_and_loads_with_or_without_them(tmp_path):
    model, adapter = fused()
    adapter.save(tmp_path / "fusion")
    assert sorted(path.name for path in (tmp_path / "fusion" / "parts").iterdir()) == list(NAMES)
    fresh = model_of("bert")
    again = deltatune.load(fresh, tmp_path / "fusion")
    assert torch.equal(outputs(fresh), outputs(model))
    again.detach()
    deltatune.load(fresh, tmp_path / "fusion")  # a, b, c are still there, and the same
    assert torch.equal(outputs(fresh), outputs(model))


def test_another_adapter_of_the_same_name_is_not_taken_for_the_fused_one(tmp_path):
    _, adapter = fused()
    adapter.save(tmp_path / "fusion")
    fresh = model_of("bert")
    deltatune.attach(fresh, deltatune.BottleneckAdapter(placement="pfeiffer", bottleneck_size=3), name="b")
    with pytest.raises(AdapterError, match="works on one named 'b', and another of that name is attached"):
        deltatune.load(fresh, tmp_path / "fusion")
    assert list(vars(fresh)["deltatune_roster"].adapters) == ["b"]


def test_an_adapter_that_is_fused_cannot_leave_alone():
    model, adapter = fused()
    with pytest.raises(AdapterError, match="adapter 'fusion' works on 'a'; detach 'fusion' first"):
        deltatune.Adapter(model, "a").detach()
    adapter.detach()
    deltatune.Adapter(model, "a").detach()


def test_what_cannot_be_fused_is_an_error():
    model = model_of("bert")
    with pytest.raises(SettingsError, match="needs two adapters or more"):
        deltatune.attach(model, deltatune.AdapterFusion(adapters=("a", "a")))
    deltatune.attach(model, deltatune.BottleneckAdapter(placement="pfeiffer"), name="a")
    with pytest.raises(AdapterError, match="no adapter named 'b'"):
        deltatune.attach(model, deltatune.AdapterFusion(adapters=("a", "b")))
    deltatune.attach(model, deltatune.LoRA(r=2), name="b")
    deltatune.attach(model, deltatune.AdapterFusion(adapters=("a", "b")), name="fusion")
    with pytest.raises(AdapterError, match="no adapter 'b' at this sublayer; here are a, fusion"):
        outputs(model)
