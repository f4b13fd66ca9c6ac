"""LayerNorm tuning: the count, what moves, peft's folders both ways."""

import pytest
import torch
import torch.nn.functional as F
from peft import LNTuningConfig, PeftModel, get_peft_model
from torch import nn

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import SettingsError
from shapes import count


def test_bert_base_trains_38_400_values_and_t5_base_47_616():
    assert count(deltatune.LayerNormTuning(), "bert-base") == 38_400
    assert count(deltatune.LayerNormTuning(), "t5-base") == 47_616
    assert count(deltatune.LayerNormTuning(), "llama-7b") == 65 * 4096


def test_gain_and_bias_are_replaced():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.LayerNormTuning())
    disturb(adapter, size=0.3)
    path = "bert.encoder.layer.0.output.LayerNorm"
    sites = adapter.attached.placed.sites
    x = torch.randn(2, 32)
    expected = F.layer_norm(x, (32,), sites[f"{path}.weight"].value, sites[f"{path}.bias"].value, 1e-12)
    assert torch.allclose(model.get_submodule(path)(x), expected, atol=1e-6)


def test_a_model_without_norms_is_refused():
    with pytest.raises(SettingsError, match="there are none here"):
        deltatune.attach(nn.Sequential(nn.Linear(3, 3)), deltatune.LayerNormTuning())


@pytest.mark.filterwarnings("ignore:Unsupported layer type", "ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize(("family", "targets"), [("bert", ["LayerNorm"]), ("llama", ["input_layernorm", "norm"])])
def test_a_folder_of_peft_has_its_logits_here_and_ours_there(tmp_path, family, targets):
    theirs = get_peft_model(model_of(family), LNTuningConfig(target_modules=targets)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "ln_tuning" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_of(family)
    base = outputs(ours)
    adapter = deltatune.load(ours, tmp_path / "theirs", trainable=True)
    assert not torch.allclose(outputs(ours), base, atol=1e-3)
    assert torch.allclose(outputs(ours), outputs(theirs), atol=1e-6)
    disturb(adapter, size=0.3)
    adapter.save(tmp_path / "ours")
    again = PeftModel.from_pretrained(model_of(family), tmp_path / "ours").eval()
    assert torch.allclose(outputs(again), outputs(ours), atol=1e-6)
