"""Uni-LoRA folders with their map come from peft and go to peft with equal logits; without it they are refused."""

import copy

import pytest
import torch
from peft import PeftModel, UniLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import deltatune
from contract.cases import distance, disturb, model_of, outputs
from deltatune.core.errors import AdapterError
from interop.targets import HEADS, NAMES

FAMILIES = ("bert", "llama", "t5", "gpt2", "vit")


def of_peft(model, family, **settings):
    config = UniLoraConfig(
        r=4,
        theta_d_length=100,
        target_modules=NAMES[family],
        task_type=HEADS.get(family),
        fan_in_fan_out=family == "gpt2",
        **settings,
    )
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        theirs.base_model.unilora_theta_d["default"].normal_(generator=torch.Generator().manual_seed(1))
    return theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_we_load_what_peft_saves_with_its_map(family, tmp_path):
    model = model_of(family)
    base = outputs(model)
    theirs = of_peft(model, family, save_indices=True)
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = deltatune.load(model, tmp_path / "theirs", trainable=True)
    assert adapter.method.type == "shared-lora"
    assert distance(outputs(model), outputs(theirs)) < 1e-5
    assert distance(outputs(model), base) > 1e-3
    disturb(adapter)
    adapter.save(tmp_path / "ours")
    fresh = model_of(family)
    deltatune.load(fresh, tmp_path / "ours")
    assert torch.equal(outputs(fresh), outputs(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_we_save_with_our_map(family, tmp_path):
    base = model_of(family)
    model = copy.deepcopy(base)
    head = ("head",) if family in HEADS else None
    settings = deltatune.SharedLoRA(save_indices=True, modules_to_save=head)
    adapter = deltatune.attach(model, settings, name="mine")
    disturb(adapter, size=0.5)
    adapter.save(tmp_path / "mine", task_type=HEADS.get(family))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "mine")).eval()
    assert distance(outputs(theirs), outputs(model)) < 1e-5


def test_a_folder_without_its_map_is_refused(tmp_path):
    of_peft(model_of("bert"), "bert").save_pretrained(tmp_path / "theirs")
    with pytest.raises(AdapterError, match="save_indices=True"):
        deltatune.load(model_of("bert"), tmp_path / "theirs")


def test_places_outside_of_the_vector_are_refused(tmp_path):
    of_peft(model_of("bert"), "bert", save_indices=True).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(tensor for key, tensor in tensors.items() if "indices" in key).fill_(100)
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"places outside of 0\.\.99"):
        deltatune.load(model_of("bert"), tmp_path / "theirs")
