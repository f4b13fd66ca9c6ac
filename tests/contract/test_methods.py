"""What every method promises on every kind of model (the invariants of ARCHITECTURE.md)."""

import copy

import pytest
import torch

from contract.cases import attached, cases, distance, disturb, forward, model_of, outputs
from deltatune.core import registry
from deltatune.core.errors import AdapterError
from deltatune.engine.attach import attach
from deltatune.engine.compose import Rows
from models import inputs

pytestmark = pytest.mark.parametrize(("name", "family"), cases())


def test_the_start_is_the_base(name, family):
    bound = registry.methods()[name].can.identity
    base = outputs(model_of(family))
    model, _ = attached(name, family)
    if bound == 0.0:
        assert torch.equal(outputs(model), base)
    elif bound is not None:
        assert distance(outputs(model), base) <= bound


def test_switched_off_it_is_the_base_to_the_bit(name, family):
    base = outputs(model_of(family))
    model, handle = attached(name, family)
    disturb(handle)
    assert not torch.equal(outputs(model), base)
    with handle.disabled():
        assert torch.equal(outputs(model), base)
    assert not torch.equal(outputs(model), base)


def test_the_switch_survives_an_exception(name, family):
    model, handle = attached(name, family)
    with pytest.raises(RuntimeError, match="inside"), handle.disabled():
        raise RuntimeError("inside")
    assert handle.active


def test_only_the_declared_tensors_train(name, family):
    model, handle = attached(name, family)
    trained = {id(p) for p in handle.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    assert handle.trainable_parameters == handle.method.count(handle.attached.sites)


STEPS = {"conditional-adapter": 3}
"""Steps until the gradient is through the tensors that start at zero: one more than these in a row; 2 for most."""


def test_every_trained_tensor_gets_a_gradient_within_few_steps(name, family):
    model, handle = attached(name, family)
    handle.expect_steps(1000)
    optimizer = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    reached = set()
    for _ in range(STEPS.get(name, 2)):
        optimizer.zero_grad()
        loss, penalty = forward(model, inputs(model)).float().square().mean(), handle.penalty()
        (loss if penalty is None else loss + penalty).backward()
        reached |= {n for n, p in handle.named_parameters().items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    missing = set(handle.named_parameters()) - reached
    assert not {n for n in missing if not unreachable(n, family)}
    assert all(p.grad is None for n, p in model.named_parameters() if not p.requires_grad)


def unreachable(name, family):
    """Tensors of a base that no output of these small inputs depends on."""
    words = {
        "xlnet": ("mask_emb", "r_s_bias", "seg_embed"),
        "vit": ("mask_token", "pooler"),
        "albert": ("pooler",),
        "bert": ("pooler", "token_type"),
        "t5": ("relative_attention_bias",),
    }
    return any(word in name for word in words.get(family, ()))


def test_merged_equals_unmerged(name, family):
    model, handle = attached(name, family)
    disturb(handle)
    before = outputs(model)
    if not handle.method.can.merge:
        with pytest.raises(AdapterError, match="cannot be merged"):
            handle.merge()
        return
    handle.merge()
    assert handle.merged
    assert distance(outputs(model), before) < 1e-4


def test_unmerging_restores_the_base_to_the_bit(name, family):
    model, handle = attached(name, family)
    original = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    disturb(handle)
    before = outputs(model)
    if not handle.method.can.merge:
        return  # the refusal is tested above
    handle.merge()
    handle.unmerge()
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], value) for n, value in original.items())
    assert torch.equal(outputs(model), before)


def test_detaching_leaves_the_base_as_found(name, family):
    fresh = model_of(family)
    model, handle = attached(name, family)
    disturb(handle)
    outputs(model)
    handle.detach()
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh.modules()]
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in fresh.named_parameters()
    }
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert torch.equal(outputs(model), outputs(fresh))


def test_the_base_keeps_its_names_and_types(name, family):
    fresh = model_of(family)
    model, _ = attached(name, family)
    assert set(fresh.state_dict()) <= set(model.state_dict())
    kept = dict(model.named_modules())
    assert all(isinstance(kept[n], type(m)) for n, m in fresh.named_modules())


def test_a_second_adapter_leaves_the_first_alone(name, family):
    model, first = attached(name, family, "first")
    disturb(first)
    before = outputs(model)
    second = attach(model, registry.method(name), name="second", seed=5)
    disturb(second, seed=6)
    assert not torch.equal(outputs(model), before)
    first.activate()
    assert torch.equal(outputs(model), before)
    second.detach()
    assert torch.equal(outputs(model), before)


def test_rows_equal_separate_passes(name, family):
    model, first = attached(name, family, "first")
    second = attach(model, registry.method(name), name="second", seed=5)
    disturb(first)
    disturb(second, seed=6)
    batch = inputs(model)
    size = len(next(iter(batch.values())))
    plan = [("first", "second", None)[i % 3] for i in range(size)]
    if not first.method.can.rows:
        with pytest.raises(AdapterError, match="rows"):
            first.roster.activate(Rows(plan))
        return
    if any(getattr(site, "kind", "") == "tensor" for site in first.attached.sites):
        with pytest.raises(AdapterError, match="per row"), first.roster.activated(Rows(plan)):
            outputs(model, batch)
        return
    alone = []
    for adapter in plan:
        with first.roster.activated(adapter):
            alone.append(outputs(model, batch))
    with first.roster.activated(Rows(plan)):
        mixed = outputs(model, batch)
    for row, expected in enumerate(alone):
        assert distance(mixed[row], expected[row]) < 1e-5


def test_a_row_does_not_depend_on_its_neighbours(name, family):
    model, handle = attached(name, family)
    disturb(handle)
    batch = inputs(model)
    together = outputs(model, batch)
    single = outputs(model, {key: value[:1] for key, value in batch.items()})
    assert distance(single[0], together[0]) < 1e-5


def test_a_deep_copy_is_independent(name, family):
    model, handle = attached(name, family)
    disturb(handle)
    before = outputs(model)
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin), before)
    disturb(handle, seed=9)
    assert torch.equal(outputs(twin), before)
    assert not torch.equal(outputs(model), before)


def test_gradient_checkpointing_changes_nothing(name, family):
    model, handle = attached(name, family)
    disturb(handle)
    plain = gradients(model, handle)
    handle.checkpoint()
    again = gradients(model, handle)
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-5) for a, b in zip(again, plain, strict=True))


def gradients(model, handle):
    model.zero_grad()
    forward(model, {**inputs(model)}).float().square().mean().backward()
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in handle.parameters()]


def test_it_runs_in_bfloat16_with_float32_masters(name, family):
    model = model_of(family).to(torch.bfloat16)
    handle = attach(model, registry.method(name))
    batch = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs(model).items()}
    result = forward(model, batch)
    assert result.dtype == torch.bfloat16
    assert {p.dtype for p in handle.parameters()} == {torch.float32}
    result.float().square().mean().backward()


def test_it_runs_and_trains_under_autocast(name, family):
    model, handle = attached(name, family)
    disturb(handle)
    exact = outputs(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = forward(model, inputs(model))
    assert distance(result.detach().float(), exact) < 0.1
    result.float().square().mean().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in handle.parameters())


def test_training_is_repeatable_from_its_seed(name, family):
    _, first = attached(name, family, seed=3)
    _, again = attached(name, family, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_state_can_be_taken_and_given_back(name, family):
    _, source = attached(name, family)
    disturb(source)
    model, target = attached(name, family)
    target.load_state_dict(source.state_dict())
    assert torch.equal(outputs(model), outputs(source.model))


def test_the_model_can_be_moved_and_cast_with_its_adapter(name, family):
    model, handle = attached(name, family)
    disturb(handle)
    before = outputs(model)
    model.double().float()
    assert torch.equal(outputs(model), before)
