"""A LoRA-FA folder is a LoRA for peft, with equal logits."""

import pytest
import torch
from peft import PeftModel

import deltatune
from contract.cases import disturb, model_of, outputs


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2", "vit"])
def test_peft_has_our_logits_from_our_folder(tmp_path, family):
    ours = model_of(family)
    adapter = deltatune.attach(ours, deltatune.LoRAFA(r=4))
    disturb(adapter)
    adapter.save(tmp_path / "saved")
    theirs = PeftModel.from_pretrained(model_of(family), tmp_path / "saved").eval()
    assert torch.allclose(outputs(theirs), outputs(ours), atol=1e-5)
