"""AdaLoRA against the paper's formulas: closed form, importance, budget, what is kept and how it resumes."""

import pytest
import torch
from torch import nn

import deltatune
import shapes
from contract.cases import disturb
from deltatune.core.errors import SettingsError
from deltatune.train.loop import Stopped
from deltatune.train.loop import train as train_loop
from train.test_resume import interrupted
from train.toy import job, weights


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def attached(layer, **fields):
    settings = deltatune.AdaLoRA(target_modules="layers.0", **{"init_r": 4, "target_r": 2, **fields})
    return deltatune.attach(Layers(layer).eval(), settings)


def two_linear():
    torch.manual_seed(0)
    return Layers(nn.Linear(6, 8), nn.Linear(8, 5))


def two_layers(**fields):
    given = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 2, "lora_alpha": 4, **fields}
    return deltatune.attach(two_linear(), deltatune.AdaLoRA(target_modules=("layers.0", "layers.1"), **given))


def train(adapter, steps, optimizer=None, first=0):
    """Steps on fixed batches, with the penalty, as a training loop makes them."""
    optimizer = optimizer or torch.optim.SGD(adapter.parameters(), lr=0.5)
    for step in range(first, first + steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        (adapter.model(x).square().mean() + adapter.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step + 1


def kept(adapter):
    return torch.cat([module.kept for module in adapter.modules()])


def values(adapter):
    return torch.cat([module.lora_E.detach().flatten() for module in adapter.modules()])


def test_the_count_is_that_of_lora_plus_one_value_per_triplet():
    settings = deltatune.AdaLoRA(init_r=12, target_modules=("query", "value"))
    assert shapes.count(settings, "bert-base") == 24 * 12 * (768 + 768 + 1)
    assert shapes.count(deltatune.AdaLoRA(init_r=12), "bert-base") == 12 * 12 * (4 * 1537 + 2 * (768 + 3072 + 1))


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 3, padding=1)], ids=["linear", "conv"])
def test_the_output_is_the_closed_form(layer):
    adapter = attached(layer, lora_alpha=6)
    disturb(adapter, size=0.3)
    q, l, p = (tensor.detach() for tensor in adapter.parameters())
    x = torch.randn(3, 6) if layer.weight.dim() == 2 else torch.randn(3, 6, 4, 4)
    found = adapter.model(x)
    change = 6 / 4 * p @ torch.diag(l.flatten()) @ q.flatten(1)
    with adapter.disabled(), torch.no_grad():
        layer.weight.add_(change.view(layer.weight.shape))
        assert torch.allclose(found, adapter.model(x), atol=1e-5)


def test_the_start_is_normal_and_without_singular_values():
    q, l, p = attached(nn.Linear(400, 300), init_r=20).parameters()
    assert not l.any()
    for tensor in (q, p):
        assert torch.isclose(tensor.std(), torch.tensor(0.02), rtol=0.05)


def test_the_penalty_is_the_mean_distance_from_orthogonal():
    adapter = two_layers(orth_reg_weight=0.3)
    distances = []
    for module in adapter.modules():
        for gram in (module.lora_A @ module.lora_A.T, module.lora_B.T @ module.lora_B):
            distances.append((gram - torch.eye(4)).square().sum().sqrt())
    assert torch.allclose(adapter.penalty(), 0.3 * sum(distances) / 4)
    assert two_layers(orth_reg_weight=0.0).penalty() is None


def test_orthogonal_factors_have_no_penalty():
    adapter = two_layers()
    for module in adapter.modules():
        nn.init.orthogonal_(module.lora_A)
        nn.init.orthogonal_(module.lora_B)
    assert adapter.penalty() < 1e-5


def test_the_budget_falls_as_a_cube_from_all_to_the_target():
    settings = deltatune.AdaLoRA(init_r=12, target_r=8, tinit=100, tfinal=300)
    assert settings.phases(1000) == (100, 700)
    assert settings.budget(100, 1000, layers=10) == 120
    assert settings.budget(400, 1000, layers=10) == 80 + int(40 / 8)
    assert settings.budget(700, 1000, layers=10) == 80


def test_steps_may_be_shares_of_all():
    assert deltatune.AdaLoRA(tinit=0.1, tfinal=0.5).phases(200) == (20, 100)


def test_importance_is_sensitivity_times_uncertainty_by_hand():
    adapter = two_layers(tinit=5, orth_reg_weight=0.0)
    adapter.expect_steps(20)
    module = next(iter(adapter.modules()))
    smooth = {name: (torch.zeros(()), torch.zeros(())) for name in ("lora_A", "lora_E", "lora_B")}
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.5)
    for step in range(3):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        adapter.model(x).square().mean().backward()
        optimizer.step()
        for name, (mean, spread) in smooth.items():
            now = (getattr(module, name) * getattr(module, name).grad).abs().detach()
            mean = 0.85 * mean + 0.15 * now
            smooth[name] = mean, 0.85 * spread + 0.15 * (now - mean).abs()
        optimizer.zero_grad()
    q, l, p = (mean * spread for mean, spread in smooth.values())
    assert torch.allclose(module.importance(), l[:, 0] + q.mean(1) + p.mean(0), rtol=1e-5, atol=0)
    assert module.importance().min() > 0


def test_ranks_are_shared_out_on_schedule_and_stay_at_the_end():
    adapter = two_layers(tinit=2, tfinal=4)
    adapter.expect_steps(12)
    counts, final = {}, None
    for step in train(adapter, 12):
        counts[step] = int(kept(adapter).sum())
        if step == 8:
            final = kept(adapter).clone()
        if step >= 8:
            assert torch.equal(values(adapter) != 0, final)
    assert [counts[n] for n in (1, 2, 3)] == [8, 8, 8]
    assert [counts[n] for n in (4, 6, 8, 12)] == [4 + int(4 * (4 / 6) ** 3), 4 + int(4 * (2 / 6) ** 3), 4, 4]


def test_the_least_important_go_whichever_layer_they_are_in():
    adapter = two_layers()
    adapter.expect_steps(8)
    first, second = adapter.modules()
    with torch.no_grad():
        for index, module in enumerate((first, second)):
            module.lora_E.fill_(1.0)
            for name in ("sensitivity", "uncertainty"):
                getattr(module, f"{name}_lora_E").copy_(torch.arange(4.0).view(4, 1) + 3 * index)
    adapter.method.after_step(adapter.attached.placed, deltatune.core.method.Progress(6, 8))
    assert first.kept.tolist() == [False, False, False, True]  # scores 0 1 4 9, of which four are kept
    assert second.kept.tolist() == [False, True, True, True]  # 9 16 25 36; among equals the first
    assert first.lora_E.flatten().tolist() == [0.0, 0.0, 0.0, 1.0]


def test_a_triplet_may_come_back_before_the_end():
    adapter = two_layers(tinit=0, tfinal=1, deltaT=2)
    adapter.expect_steps(11)
    seen = []
    for step in train(adapter, 5):
        seen.append((step, int((values(adapter) == 0).sum())))
    assert dict(seen)[2] > 0 == dict(seen)[3]


def test_resuming_continues_to_the_bit():
    whole = two_layers(tfinal=3)
    whole.expect_steps(10)
    list(train(whole, 10))
    first, second = two_layers(tfinal=3), two_layers(tfinal=3)
    for adapter in (first, second):
        adapter.expect_steps(10)
    list(train(first, 5))
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    list(train(second, 5, first=5))
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_an_interrupted_run_of_our_loop_shares_out_the_same_ranks(tmp_path):
    fields = {"init_r": 2, "target_r": 1, "tinit": 0.2, "tfinal": 0.3, "deltaT": 2}
    method = deltatune.AdaLoRA(target_modules=("first", "second"), **fields)
    straight = job(tmp_path / "straight", method=method)
    total = train_loop(straight).steps
    with pytest.raises(Stopped):
        train_loop(interrupted(job(tmp_path / "resumed", method=method), step=total // 4))
    again = job(tmp_path / "resumed", method=method)
    train_loop(again, resume=True)
    assert int(kept(straight.handle).sum()) == 2
    assert all(torch.equal(t, weights(again.handle)[name]) for name, t in weights(straight.handle).items())


def test_a_saved_adapter_keeps_its_ranks_in_later_training(tmp_path):
    adapter = two_layers()
    adapter.expect_steps(8)
    list(train(adapter, 8))
    adapter.save(tmp_path / "saved")
    again = deltatune.load(two_linear(), tmp_path / "saved", name="again")
    x = torch.randn(4, 6)
    assert torch.equal(again.model(x), adapter.model(x))
    before = values(again)
    again.trainable(True)
    list(train(again, 3))  # without a number of steps: there is nothing to plan
    assert not torch.equal(values(again), before)
    assert torch.equal(values(again) != 0, kept(adapter))


def test_without_a_number_of_steps_the_first_one_is_an_error():
    with pytest.raises(SettingsError, match="has to know the number of optimizer steps"):
        list(train(two_layers(), 1))
    list(train(two_layers(total_step=8), 1))


@pytest.mark.parametrize(
    ("layer", "fields", "message"),
    [
        (nn.Linear(8, 8), {"init_r": 9}, r"rank r=9 is not allowed for AdaLoRA \(1..8 for layers.0\)"),
        (nn.Linear(8, 8), {"target_r": 5}, "target_r=5 is more than init_r=4"),
        (nn.Embedding(9, 8), {}, "AdaLoRA is for linear maps and convolutions"),
    ],
)
def test_settings_without_a_place_are_errors(layer, fields, message):
    with pytest.raises(SettingsError, match=message):
        attached(layer, **fields)


def test_phases_that_leave_no_time_are_an_error():
    with pytest.raises(SettingsError, match="tinit=5 and tfinal=5 leave none of 10 steps"):
        deltatune.AdaLoRA(tinit=5, tfinal=5).phases(10)
