"""Diff pruning: the hard concrete distribution, the penalty, the three phases and the exact budget."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import SettingsError
from deltatune.methods.diff_pruning import HIGH, LOW, gate
from shapes import count, shape


def test_bert_large_has_two_values_per_entry_and_one_per_tensor_and_keeps_half_a_percent():
    entries = sum(torch.Size(site.shape).numel() for site in shape("bert-large").parameters())
    groups = len(shape("bert-large").parameters())
    assert count(deltatune.DiffPruning(), "bert-large") == 2 * entries + groups
    assert round(0.005 * entries) == 1_675_709
    assert count(deltatune.DiffPruning(elementwise=False), "bert-large") == entries + groups


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 2.0])
def test_gates_are_shut_and_open_as_often_as_the_closed_form_says(alpha):
    torch.manual_seed(0)
    z = gate(torch.full((200_000,), alpha), drawn=True)
    shut = torch.sigmoid(torch.tensor(math.log(-LOW / HIGH) - alpha))
    opened = 1 - torch.sigmoid(torch.tensor(math.log((1 - LOW) / (HIGH - 1)) - alpha))
    assert abs(float((z == 0).float().mean()) - float(shut)) < 5e-3
    assert abs(float((z == 1).float().mean()) - float(opened)) < 5e-3


def made(steps=10, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4))
    adapter = deltatune.attach(model, deltatune.DiffPruning(**{"density": 0.1, **settings}))
    adapter.train_mode(True)
    if steps:
        adapter.expect_steps(steps)
    return model, adapter


def test_the_penalty_is_the_expected_number_of_changes_by_monte_carlo():
    _, adapter = made(sparsity_weight=1.0)
    disturb(adapter, size=2.0)
    modules = list(adapter.attached.placed.modules())
    with torch.no_grad():
        for module in modules:
            module.alpha.sub_(5)
            module.group_alpha.sub_(5)
        drawn = [
            sum(float(((gate(m.alpha, True) != 0) * (gate(m.group_alpha, True) != 0)).sum()) for m in modules)
            for _ in range(3000)
        ]
    assert (
        abs(float(adapter.penalty().detach()) - sum(drawn) / len(drawn))
        < 4 * torch.tensor(drawn).std() / len(drawn) ** 0.5
    )


def train(model, adapter, optimizer, steps, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(step)
        x = torch.randn(16, 12)
        optimizer.zero_grad()
        penalty = adapter.penalty()
        loss = (model(x) - x[:, :4] * 2).square().mean()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()


def test_three_phases_end_with_exactly_the_budget_and_a_fixed_support():
    model, adapter = made(10)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-2))
    train(model, adapter, optimizer, 4)
    assert not adapter.ready and adapter.penalty() is not None
    train(model, adapter, optimizer, 1, start=4)
    assert adapter.ready and adapter.penalty() is None
    entries = 12 * 20 + 20 + 20 * 4 + 4
    supports = [m.mask.clone() for m in adapter.attached.placed.modules()]
    assert sum(int(mask.sum()) for mask in supports) == round(0.1 * entries)
    before = {name: tensor.clone() for name, tensor in adapter.export().tensors.items() if name.endswith("values")}
    train(model, adapter, optimizer, 5, start=5)
    for module, mask in zip(adapter.attached.placed.modules(), supports, strict=True):
        change = module.change(drawn=False)
        assert torch.equal(module.mask, mask)
        assert not change[~mask].any()
    after = adapter.export().tensors
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert sum(len(tensor) for name, tensor in after.items() if name.endswith("values")) <= round(0.1 * entries)


def test_the_projection_keeps_the_largest_changes_of_the_whole_model():
    model, adapter = made(10, alpha_init=50.0)  # gates wide open: the draw is the change
    disturb(adapter, size=1.0)
    modules = list(adapter.attached.placed.modules())
    sizes = torch.cat([module.change(drawn=False).detach().abs().flatten() for module in modules])
    adapter.method.project(adapter.attached.placed)
    kept = torch.cat([module.mask.flatten() for module in modules])
    assert float(sizes[kept].min()) >= float(sizes[~kept].max())


def test_outside_the_support_the_merged_model_is_the_base_to_the_bit():
    model, adapter = made(4)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items() if "deltas" not in name}
    train(model, adapter, torch.optim.AdamW(adapter.parameter_groups(1e-2)), 4)
    masks = {path: module.mask for path, module in adapter.attached.placed.sites.items()}
    adapter.train_mode(False)
    adapter.merge_and_unload()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor[~masks[name]], base[name][~masks[name]])


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_training_goes_on_to_the_bit_from_any_phase(stop):
    model, adapter = made(10)
    train(model, adapter, torch.optim.AdamW(adapter.parameter_groups(1e-2)), 10)
    first, half = made(10)
    begun = torch.optim.AdamW(half.parameter_groups(1e-2))
    train(first, half, begun, stop)
    second, rest = made(10)
    rest.load_state_dict({name: tensor.clone() for name, tensor in half.state_dict().items()})
    resumed = torch.optim.AdamW(rest.parameter_groups(1e-2))
    resumed.load_state_dict(begun.state_dict())
    train(second, rest, resumed, 10 - stop, start=stop)
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), rest.parameters(), strict=True))


def test_the_changes_are_stored_sparse_and_load_to_the_bit(tmp_path):
    model, adapter = made(4)
    train(model, adapter, torch.optim.AdamW(adapter.parameter_groups(1e-2)), 4)
    adapter.train_mode(False)
    adapter.save(tmp_path / "saved")
    fresh, other = made()
    other.detach()
    deltatune.load(fresh, tmp_path / "saved")
    x = torch.randn(3, 12)
    assert torch.equal(fresh(x), model(x))


def test_a_loaded_adapter_trains_on_with_the_entries_it_has(tmp_path):
    model, adapter = made(4)
    train(model, adapter, torch.optim.AdamW(adapter.parameter_groups(1e-2)), 4)
    adapter.save(tmp_path / "saved")
    fresh, other = made()
    other.detach()
    loaded = deltatune.load(fresh, tmp_path / "saved", trainable=True)
    loaded.expect_steps(4)
    before = {name: tensor.clone() for name, tensor in loaded.export().tensors.items()}
    train(fresh, loaded, torch.optim.AdamW(loaded.parameter_groups(1e-2)), 4)
    after = loaded.export().tensors
    assert all(
        torch.equal(after[name], before[name]) == name.endswith("indices") for name in before if len(before[name])
    )


def test_a_training_without_a_known_end_is_an_error():
    model, adapter = made(None)
    with pytest.raises(SettingsError, match="must know the number of steps; adapter.expect_steps"):
        train(model, adapter, torch.optim.AdamW(adapter.parameters()), 1)


def test_the_head_is_outside():
    adapter = deltatune.attach(model_of("bert"), deltatune.DiffPruning())
    assert not [site for site in adapter.attached.sites if site.path.startswith("classifier")]
    assert outputs(adapter.model).shape == (3, 3)


def test_an_embedding_that_makes_the_answer_too_is_the_head():
    """What the projection kept of SmolLM2 was the rows of tokens that never occur, and nothing was learned."""
    adapter = deltatune.attach(model_of("gpt2"), deltatune.DiffPruning())
    paths = {site.path for site in adapter.attached.sites}
    assert "transformer.wpe.weight" in paths and "transformer.wte.weight" not in paths
    both = deltatune.DiffPruning(tied_embedding=True)
    assert "transformer.wte.weight" in {site.path for site in deltatune.attach(model_of("gpt2"), both).attached.sites}
    untied = deltatune.attach(model_of("bert"), deltatune.DiffPruning())
    assert "bert.embeddings.word_embeddings.weight" in {site.path for site in untied.attached.sites}


def test_an_adapter_of_before_has_the_embedding_too(tmp_path):
    method = deltatune.DiffPruning(tied_embedding=True, density=0.5)
    adapter = deltatune.attach(model_of("gpt2"), method)
    disturb(adapter, size=1.0)
    method.project(adapter.attached.placed)
    adapter.train_mode(False)
    adapter.save(tmp_path / "saved")
    weights = tmp_path / "saved" / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["deltatune"])
    del record["settings"]["tied_embedding"]  # as the first versions wrote it
    save_file(load_file(weights), weights, {**metadata, "deltatune": json.dumps(record)})
    loaded = deltatune.load(model_of("gpt2"), tmp_path / "saved")
    assert loaded.method.tied_embedding
    assert torch.equal(outputs(loaded.model), outputs(adapter.model))


def test_the_gates_move_faster_than_the_changes_and_nothing_decays():
    paces = deltatune.attach(model_of("bert"), deltatune.DiffPruning(alpha_rate=70.0)).paces()
    rates = {name.rpartition(".")[2]: pace.rate for name, pace in paces.items()}
    assert rates == {"w": 1.0, "alpha": 70.0, "group_alpha": 70.0}
    assert not any(pace.decay for pace in paces.values())


@pytest.mark.parametrize("rate", [1.0, 10.0])
def test_the_projection_keeps_what_is_kept_and_the_refit_moves_it_so_much_faster(rate):
    model, adapter = made(10, alpha_init=50.0, refit_rate=rate)  # gates wide open: the draw is the change
    disturb(adapter, size=1.0)
    modules = list(adapter.attached.placed.modules())
    before = [module.change(drawn=False).detach().clone() for module in modules]
    adapter.method.project(adapter.attached.placed)
    projected = [module.change(drawn=False).detach().clone() for module in modules]
    for module, whole, kept in zip(modules, before, projected, strict=True):
        torch.testing.assert_close(kept, whole * module.mask)
    train(model, adapter, torch.optim.Adam(adapter.parameter_groups(1e-3)), 1, start=7)
    moved = torch.cat([(m.change(drawn=False) - p)[m.mask] for m, p in zip(modules, projected, strict=True)]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, rate * 1e-3), rtol=1e-2, atol=0)
