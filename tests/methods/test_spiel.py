"""SpIEL: what is dropped, what grows, the optimizer's state, exact resume."""

import pytest
import torch
from torch import nn

import deltatune
from deltatune.core.errors import SettingsError
from shapes import count


def made(steps=None, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20))
    fields = {"density": 0.1, "reselect_every": 4, "watch": 2, **settings}
    adapter = deltatune.attach(model, deltatune.SpIEL(target_modules="0", **fields))
    adapter.train_mode(True)
    if steps:
        adapter.expect_steps(steps)
    return model, adapter, adapter.attached.placed.sites["0"]


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(16, 30, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :20] * 2).square().mean().backward()
        optimizer.step()


def test_the_number_of_entries_stays_and_they_stay_sorted_and_distinct():
    model, adapter, module = made(40)
    before = module.indices.clone()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    train(model, optimizer, 20)
    assert len(module.indices.unique()) == 60 == count_of(adapter)
    assert torch.equal(module.indices, module.indices.sort().values)
    assert len(set(module.indices.tolist()) - set(before.tolist())) > 0


def count_of(adapter):
    return adapter.method.count(adapter.attached.sites)


def test_the_smallest_are_dropped_for_the_largest_gradients_and_start_like_them():
    model, adapter, module = made(replaced=0.5)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    train(model, optimizer, 7)
    kept = {}
    original = type(module).exchange

    def spying(self, number, given):
        kept["values"], kept["indices"] = self.values.detach().clone(), self.indices.clone()
        kept["sums"], kept["candidates"] = self.sums.clone(), self.candidates.clone()
        original(self, number, given)
        kept["number"] = number

    type(module).exchange = spying
    try:
        train(model, optimizer, 1, start=7)
    finally:
        type(module).exchange = original
    assert kept["number"] == 30
    dropped = set(kept["indices"][kept["values"].abs().topk(30, largest=False).indices].tolist())
    grown = set(kept["candidates"][kept["sums"].abs().topk(30).indices].tolist())
    after = set(module.indices.tolist())
    assert grown <= after and not dropped & (after - grown)
    fresh = torch.tensor([index in grown for index in module.indices.tolist()])
    assert not module.values[fresh].any() and module.values[~fresh].all()
    state = optimizer.state[module.values]
    mean = {int(c): float(s) / 2 for c, s in zip(kept["candidates"], kept["sums"], strict=True)}
    wanted = torch.tensor([mean[int(index)] for index in module.indices[fresh]]) * (1 - 0.9**8)
    assert torch.allclose(state["exp_avg"][fresh], wanted, atol=1e-7)


def test_the_first_time_all_random_entries_make_place():
    model, adapter, module = made(40)
    before = module.indices.clone()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    train(model, optimizer, 4)
    assert not set(module.indices.tolist()) & set(before.tolist()) and not module.values.any()
    after = module.indices.clone()
    train(model, optimizer, 4, start=4)
    assert len(set(module.indices.tolist()) - set(after.tolist())) == round(0.2 * (1 - 8 / 40) * 60)


def test_the_exchanged_share_falls_to_zero_at_the_end():
    model, adapter, module = made(8)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    train(model, optimizer, 7)
    before = module.indices.clone()
    train(model, optimizer, 1, start=7)
    assert torch.equal(module.indices, before)


@pytest.mark.parametrize("stop", [3, 4, 6, 7])
def test_a_training_goes_on_to_the_bit_from_any_step(stop):
    model, adapter, module = made(12)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    train(model, optimizer, 12)
    first, half, _ = made(12)
    begun = torch.optim.AdamW(half.parameters(), lr=1e-2)
    train(first, begun, stop)
    state, moments = half.state_dict(), begun.state_dict()
    second, rest, again = made(12)
    rest.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    resumed = torch.optim.AdamW(rest.parameters(), lr=1e-2)
    resumed.load_state_dict(moments)
    train(second, resumed, 12 - stop, start=stop)
    assert torch.equal(again.indices, module.indices) and torch.equal(again.values, module.values)


def test_only_the_entries_are_saved(tmp_path):
    model, adapter, _ = made(12)
    train(model, torch.optim.AdamW(adapter.parameters(), lr=1e-2), 6)
    assert sorted(adapter.export().tensors) == ["0.indices", "0.values"]
    adapter.save(tmp_path / "saved")
    fresh, _, _ = made()
    deltatune.Adapter(fresh, "default").detach()
    deltatune.load(fresh, tmp_path / "saved")
    x = torch.randn(3, 30)
    adapter.train_mode(False)
    assert torch.equal(fresh(x), model(x))


def test_a_loaded_adapter_trains_on_with_the_entries_it_has(tmp_path):
    model, adapter, _ = made(12)
    train(model, torch.optim.AdamW(adapter.parameters(), lr=1e-2), 6)
    adapter.save(tmp_path / "saved")
    fresh, untrained, _ = made()
    untrained.detach()
    loaded = deltatune.load(fresh, tmp_path / "saved", trainable=True)
    before = {name: tensor.clone() for name, tensor in loaded.export().tensors.items()}
    train(fresh, torch.optim.AdamW(loaded.parameters(), lr=1e-2), 5)
    assert torch.equal(loaded.export().tensors["0.indices"], before["0.indices"])
    assert not torch.equal(loaded.export().tensors["0.values"], before["0.values"])


def test_watching_longer_than_a_round_is_an_error_and_counts_are_those_of_the_share():
    with pytest.raises(SettingsError, match="watch=4 must be less than reselect_every=4"):
        made(watch=4)
    assert count(deltatune.SpIEL(target_modules=("attention.query",)), "bert-base") == 12 * 5898


def test_without_a_gradient_that_was_seen_nothing_is_exchanged():
    _, adapter, module = made()
    with torch.no_grad():
        module.values.normal_()
    before = (module.values.detach().clone(), module.indices.clone())
    module.exchange(5, torch.optim.AdamW(adapter.parameters()))
    assert torch.equal(module.values, before[0]) and torch.equal(module.indices, before[1])
