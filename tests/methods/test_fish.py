"""FISH: Fisher information row by row, one choice over all layers, nothing changed before it, exact resume."""

import pytest
import torch
from torch import nn

import deltatune
from deltatune.core.errors import SettingsError
from shapes import count


def made(steps=None, seed=0, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5))
    fields = {"density": 0.1, "fisher_steps": 3, **settings}
    adapter = deltatune.attach(model, deltatune.FISH(target_modules=("0", "2"), **fields), seed=seed)
    if steps:
        adapter.expect_steps(steps)
    return model, adapter, list(adapter.attached.placed.modules())


def batch(step):
    return torch.randn(4, 6, 12, generator=torch.Generator().manual_seed(step))


def error(model, x):
    return (model(x) - x[..., :5] * 2).square()


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        error(model, batch(step)).mean().backward()
        optimizer.step()


def fisher_by_hand(tokens):
    """Squared gradients of plain weights, one row after the other."""
    model = made()[0]
    model = nn.Sequential(*(nn.Linear(m.in_features, m.out_features) if hasattr(m, "weight") else m for m in model))
    model.load_state_dict({k: v for k, v in made()[0].state_dict().items() if "deltas" not in k})
    found = [torch.zeros(20, 12), torch.zeros(5, 20)]
    for step in range(3):
        x = batch(step) if tokens else batch(step)[:, 0]
        for row in x:
            loss = error(model, row[None]).sum() / error(model, x).numel()
            for total, gradient in zip(
                found, torch.autograd.grad(loss, [model[0].weight, model[2].weight]), strict=True
            ):
                total += gradient.square()
    return found


@pytest.mark.parametrize("tokens", [True, False])
def test_the_information_is_the_sum_of_the_squared_gradients_of_every_row(tokens):
    model, _, modules = made()
    for step in range(3):
        error(model, batch(step) if tokens else batch(step)[:, 0]).mean().backward()
    for module, expected in zip(modules, fisher_by_hand(tokens), strict=True):
        assert torch.allclose(module.fisher, expected, rtol=1e-4, atol=1e-10)


def test_the_entries_of_most_information_over_all_layers_are_chosen():
    model, adapter, modules = made(10)
    train(model, torch.optim.AdamW(adapter.parameters(), lr=1e-2), 3)
    whole = torch.cat([f.flatten() for f in fisher_by_hand(True)])
    expected = whole.topk(34).indices.sort().values
    tensors = adapter.export().tensors
    found = torch.cat([tensors["0.indices"], tensors["2.indices"] + 240]).long()
    assert torch.equal(found, expected)
    assert adapter.trainable_parameters == 34 == adapter.method.count(adapter.attached.sites)
    assert len(tensors["0.indices"]) != 24  # not a tenth of each
    assert all(len(module.fisher) == 0 for module in modules)


def test_nothing_changes_before_the_choice_and_only_the_chosen_after_it():
    model, adapter, _ = made(10)
    base = model(batch(9))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    assert torch.equal(model(batch(9)), base) and not adapter.ready
    train(model, optimizer, 2, start=2)
    assert not torch.equal(model(batch(9)), base) and adapter.ready
    chosen = [adapter.export().tensors[f"{path}.indices"] for path in (0, 2)]
    before = [layer._parameters["weight"].clone().flatten() for layer in (model[0], model[2])]
    adapter.merge()
    for layer, kept, indices in zip((model[0], model[2]), before, chosen, strict=True):
        changed = (layer.weight.flatten() != kept).nonzero().squeeze(1)
        assert set(changed.tolist()) <= set(indices.tolist())
    adapter.unmerge()
    assert torch.equal(model[0].weight.flatten(), before[0])


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_training_goes_on_to_the_bit_from_any_step(stop):
    model, adapter, _ = made(8)
    train(model, torch.optim.AdamW(adapter.parameters(), lr=1e-2), 8)
    first, half, _ = made(8)
    begun = torch.optim.AdamW(half.parameters(), lr=1e-2)
    train(first, begun, stop)
    second, rest, _ = made(8, seed=4)
    resumed = torch.optim.AdamW(rest.parameters(), lr=1e-2)
    rest.load_state_dict({name: tensor.clone() for name, tensor in half.state_dict().items()})
    resumed.load_state_dict(begun.state_dict())
    train(second, resumed, 8 - stop, start=stop)
    assert all(torch.equal(tensor, rest.state_dict()[name]) for name, tensor in adapter.state_dict().items())
    assert all(torch.equal(tensor, rest.export().tensors[name]) for name, tensor in adapter.export().tensors.items())


def test_a_folder_holds_the_chosen_entries_of_every_layer(tmp_path):
    model, adapter, _ = made(10)
    train(model, torch.optim.AdamW(adapter.parameters(), lr=1e-2), 6)
    assert sorted(adapter.export().tensors) == ["0.indices", "0.values", "2.indices", "2.values"]
    adapter.save(tmp_path / "saved")
    fresh, untrained, _ = made()
    untrained.detach()
    deltatune.load(fresh, tmp_path / "saved")
    assert torch.equal(fresh(batch(9)), model(batch(9)))


def test_a_loaded_adapter_trains_on_with_the_entries_it_has(tmp_path):
    model, adapter, _ = made(10)
    train(model, torch.optim.AdamW(adapter.parameters(), lr=1e-2), 6)
    adapter.save(tmp_path / "saved")
    fresh, untrained, _ = made()
    untrained.detach()
    loaded = deltatune.load(fresh, tmp_path / "saved", trainable=True)
    before = {name: tensor.clone() for name, tensor in loaded.export().tensors.items()}
    train(fresh, torch.optim.AdamW(loaded.parameters(), lr=1e-2), 4)
    after = loaded.export().tensors
    assert all(torch.equal(after[name], before[name]) == name.endswith("indices") for name in before)


def test_a_layer_that_gets_no_entry_is_the_base():
    model, adapter, modules = made(10, density=0.01)
    with torch.no_grad():
        modules[1].fisher.add_(100.0)  # what all rows so far had
    train(model, torch.optim.AdamW(adapter.parameters(), lr=1e-2), 5)
    assert len(adapter.export().tensors["0.indices"]) == 0 and len(adapter.export().tensors["2.indices"]) == 3
    with adapter.disabled():
        base = model[0](batch(1))
    assert torch.equal(model[0](batch(1)), base)


def test_a_training_that_ends_before_the_choice_is_an_error():
    model, adapter, _ = made(3)
    with pytest.raises(SettingsError, match="fisher_steps=3 leaves no step of 3"):
        train(model, torch.optim.AdamW(adapter.parameters(), lr=1e-2), 1)


def test_the_count_is_the_share_of_all_targeted_entries():
    assert count(deltatune.FISH(density=0.01, target_modules=("attention.query",)), "bert-base") == 12 * 5898
