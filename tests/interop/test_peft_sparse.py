"""SHIRA folders of peft: the same weights and logits in both directions."""

import pytest
import torch
from peft import PeftModel, ShiraConfig, get_peft_model

import deltatune
from contract.cases import disturb, model_of, outputs

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # peft builds sparse tensors

TARGETS = {
    "bert": ["query", "dense"],
    "llama": ["q_proj", "down_proj"],
    "t5": ["q", "wo"],
}


def theirs_of(family):
    """peft's model, its values away from zero."""
    model = get_peft_model(model_of(family), ShiraConfig(r=2, target_modules=TARGETS[family], random_seed=3)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "shira_weight" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return model


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_folder_of_peft_has_its_logits_here_and_ours_there(tmp_path, family):
    theirs = theirs_of(family)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_of(family)
    adapter = deltatune.load(ours, tmp_path / "theirs", trainable=True)
    assert torch.allclose(outputs(ours), outputs(theirs), atol=1e-5)
    disturb(adapter, size=0.3)
    adapter.save(tmp_path / "ours")
    again = PeftModel.from_pretrained(model_of(family), tmp_path / "ours").eval()
    assert torch.allclose(outputs(again), outputs(ours), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_merged_weights_are_those_of_peft(tmp_path, family):
    theirs = theirs_of(family)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_of(family)
    deltatune.load(ours, tmp_path / "theirs").merge_and_unload()
    expected = theirs.merge_and_unload().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in model_of(family).state_dict().items())
