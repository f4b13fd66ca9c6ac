"""LoRA against its closed form and the counts of the literature."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import deltatune
from contract.cases import disturb
from deltatune.core.errors import SettingsError
from deltatune.engine.anatomy import Anatomy
from models import tiny


@pytest.fixture(scope="module")
def bert_base():
    with torch.device("meta"):
        return Anatomy.of(BertModel(BertConfig()))


def test_bert_base_query_value_rank_8_trains_294_912_values(bert_base):
    settings = deltatune.LoRA(r=8, target_modules=("query", "value"))
    assert settings.count(settings.sites(bert_base)) == 294_912


@pytest.mark.parametrize(("rslora", "scale"), [(False, 16 / 4), (True, 16 / 2)])
def test_the_output_is_the_closed_form(rslora, scale):
    layer = nn.Linear(6, 5)
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.LoRA(r=4, target_modules="0", use_rslora=rslora))
    disturb(adapter)
    a, b = adapter.parameters()
    x = torch.randn(3, 6)
    assert torch.allclose(model(x), x @ layer.weight.T + layer.bias + scale * (x @ a.T @ b.T), atol=1e-6)


def test_a_is_kaiming_uniform_and_b_zero():
    model = nn.Sequential(nn.Linear(400, 50))
    a, b = deltatune.attach(model, deltatune.LoRA(r=8, target_modules="0")).parameters()
    assert a.abs().max() <= 1 / 400**0.5
    assert torch.isclose(a.std(), torch.tensor(1 / (3 * 400) ** 0.5), rtol=0.05)
    assert not b.any()


def test_dropout_acts_in_training_only():
    model = nn.Sequential(nn.Linear(64, 5)).eval()
    adapter = deltatune.attach(model, deltatune.LoRA(r=4, target_modules="0", lora_dropout=0.5))
    disturb(adapter)
    x = torch.randn(3, 64)
    assert torch.equal(model(x), model(x))
    adapter.train_mode(True)
    assert not torch.equal(model(x), model(x))


def test_ranks_and_alphas_follow_their_patterns():
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    settings = deltatune.LoRA(
        r=4, lora_alpha=8, target_modules=("0", "1"), rank_pattern={"1": 2}, alpha_pattern={"0": 6}
    )
    adapter = deltatune.attach(model, settings)
    first, second = adapter.attached.placed.modules()
    assert (first.lora_A.shape[0], second.lora_A.shape[0]) == (4, 2)
    assert (first.scale, second.scale) == (6 / 4, 8 / 2)


def test_a_pattern_counts_in_its_order_after_a_reload_and_a_full_path_first(tmp_path):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(9, 9), nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)))

    model, fresh = net(), net()
    settings = deltatune.LoRA(target_modules="*", rank_pattern={"1.1": 2, "*": 3, "0": 5})
    adapter = deltatune.attach(model, settings)
    disturb(adapter)
    assert [module.lora_A.shape[0] for module in adapter.attached.placed.modules()] == [5, 3, 2]
    adapter.save(tmp_path / "saved")
    assert deltatune.load(fresh, tmp_path / "saved").method == settings
    x = torch.randn(2, 9)
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 10}, r"rank r=10 is not allowed for LoRA \(1..9 for 0\); try r=8"),
        ({"rank_pattern": {"nothing": 2}}, "pattern 'nothing' matches no targeted layer"),
        ({"layers_to_transform": (3,)}, "layers_to_transform=.3. leaves no targeted layer"),
    ],
)
def test_settings_without_a_place_are_errors(fields, message):
    with pytest.raises(SettingsError, match=message):
        deltatune.attach(nn.Sequential(nn.Linear(9, 9)), deltatune.LoRA(target_modules="0", **fields))


def test_grouped_convolutions_are_refused():
    with pytest.raises(SettingsError, match="grouped convolution"):
        deltatune.attach(nn.Sequential(nn.Conv1d(8, 8, 3, groups=2)), deltatune.LoRA(r=2, target_modules="0"))


def test_scaled_embeddings_are_merged_with_their_scale():
    class Scaled(nn.Embedding):
        def forward(self, tokens):
            return super().forward(tokens) * 3.0

    model = nn.Sequential(Scaled(11, 6))
    adapter = deltatune.attach(model, deltatune.LoRA(r=2, target_modules="0"))
    disturb(adapter)
    tokens = torch.arange(11)
    before = model(tokens)
    adapter.merge()
    assert torch.allclose(model(tokens), before, atol=1e-5)


def test_torch_attention_that_reads_its_weights_is_adapted_and_merged():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)
    base = model(x, x, x)[0]
    adapter = deltatune.attach(model, deltatune.LoRA(r=2, target_modules="out_proj"))
    disturb(adapter)
    changed = model(x, x, x)[0]
    assert not torch.allclose(changed, base)
    adapter.merge()
    assert torch.allclose(model(x, x, x)[0], changed, atol=1e-6)


def test_torchs_fused_encoder_layer_does_not_pass_the_adapter_by():
    model = tiny("torch").eval()
    tokens = torch.randint(3, 90, (2, 5))
    with torch.no_grad():
        base = model(tokens)[0]
        adapter = deltatune.attach(model, deltatune.LoRA(r=2, target_modules=("linear1", "linear2")))
        disturb(adapter)
        changed = model(tokens)[0]
        assert not torch.allclose(changed, base)
        adapter.merge()
        assert torch.allclose(model(tokens)[0], changed, atol=1e-5)
        adapter.unmerge()
        adapter.detach()
        assert torch.allclose(model(tokens)[0], base, atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_gate_scales_the_term_of_every_token_and_cannot_be_merged(tmp_path):
    layer = nn.Linear(6, 5)
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.LoRA(r=4, lora_alpha=8, target_modules="0", use_gating=True))
    disturb(adapter, size=0.3)
    module = adapter.attached.placed.sites["0"]
    x = torch.randn(3, 6)
    term = 2 * (x @ module.lora_A.T @ module.lora_B.T)
    expected = x @ layer.weight.T + layer.bias + torch.sigmoid(x @ module.gate)[:, None] * term
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert adapter.trainable_parameters == adapter.method.count(adapter.attached.sites) == 4 * 11 + 6
    with pytest.raises(deltatune.DeltatuneError, match="with gates cannot be merged"):
        adapter.merge()
    adapter.save(tmp_path / "saved")
    assert "DELTATUNE_LORA" in (tmp_path / "saved" / "adapter_config.json").read_text()
    fresh = nn.Sequential(nn.Linear(6, 5))
    fresh.load_state_dict({"0.weight": layer._parameters["weight"], "0.bias": layer._parameters["bias"]})
    deltatune.load(fresh, tmp_path / "saved")
    assert torch.equal(fresh(x), model(x))
