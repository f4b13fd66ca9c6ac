"""VeRA folders go to peft and come from peft with equal logits, with the projection in the file or drawn again."""

import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model

import deltatune
from contract.cases import disturb, model_of, outputs


@pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A")
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("family", "targets"), [("bert", ["query", "dense"]), ("llama", ["q_proj", "down_proj"]), ("gpt2", ["c_attn"])]
)
def test_a_folder_of_peft_has_its_logits_here_and_ours_there(tmp_path, family, targets, keep):
    config = VeraConfig(r=12, target_modules=targets, save_projection=keep, fan_in_fan_out=family == "gpt2")
    theirs = get_peft_model(model_of(family), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "vera_lambda" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_of(family)
    adapter = deltatune.load(ours, tmp_path / "theirs", trainable=True)
    assert torch.allclose(outputs(ours), outputs(theirs), atol=1e-5)
    disturb(adapter, size=0.3)
    adapter.save(tmp_path / "ours")
    again = PeftModel.from_pretrained(model_of(family), tmp_path / "ours").eval()
    assert torch.allclose(outputs(again), outputs(ours), atol=1e-5)
