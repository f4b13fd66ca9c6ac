"""AdaLoRA folders go to peft and come from peft with equal outputs, and both share out the same ranks."""

import copy

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import deltatune
from contract.cases import distance, disturb, model_of, outputs
from interop.targets import HEADS, NAMES
from models import inputs

FAMILIES = ("bert", "roberta", "gpt2", "llama", "t5", "vit", "whisper")


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_we_save(family, tmp_path):
    base = model_of(family)
    model = copy.deepcopy(base)
    settings = deltatune.AdaLoRA(init_r=4, target_r=2, modules_to_save=("head",) if family in HEADS else None)
    adapter = deltatune.attach(model, settings, name="mine")
    disturb(adapter)
    for index, module in enumerate(adapter.attached.placed.modules()):
        module.kept[index % 4] = False
        with torch.no_grad():
            module.prune()
    adapter.save(tmp_path / "mine", task_type=HEADS.get(family))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "mine")).eval()
    assert distance(outputs(theirs), outputs(model)) < 1e-5


def peft_config(family, **fields):
    given = {"init_r": 4, "target_r": 2, "total_step": 8, "tinit": 1, "tfinal": 2, "orth_reg_weight": 0.1, **fields}
    return AdaLoraConfig(target_modules=NAMES[family], fan_in_fan_out=family == "gpt2", **given)


def test_a_file_with_more_triplets_than_its_settings_is_refused(tmp_path):
    deltatune.attach(model_of("bert"), deltatune.AdaLoRA(init_r=4, target_r=2)).save(tmp_path / "mine")
    weights = tmp_path / "mine" / "adapter_model.safetensors"
    save_file(load_file(weights), weights)  # without our own settings, as from elsewhere
    config = tmp_path / "mine" / "adapter_config.json"
    config.write_text(config.read_text().replace('"init_r": 4', '"init_r": 3'))
    with pytest.raises(deltatune.DeltatuneError, match="shape"):
        deltatune.load(model_of("bert"), tmp_path / "mine")


def peft_steps(theirs, batch, steps):
    """Training as peft's documentation writes it."""
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=1.0)
    for step in range(1, steps + 1):
        theirs(**batch)[0].square().mean().backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore:.*LoRA tensor.*have invalid shape")  # peft's, about layers with no rank left
@pytest.mark.parametrize("family", FAMILIES)
def test_we_load_what_peft_saves_with_its_ranks(family, tmp_path):
    model = model_of(family)
    theirs = get_peft_model(copy.deepcopy(model), peft_config(family, task_type=HEADS.get(family))).eval()
    peft_steps(theirs, inputs(model), 8)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = deltatune.load(model, tmp_path / "theirs", name="theirs")
    assert adapter.method.type == "adalora"
    assert distance(outputs(model), outputs(theirs)) < 1e-5
    left = sum(int((module.lora_E != 0).sum()) for module in adapter.attached.placed.modules())
    assert left == 2 * len(adapter.attached.sites)


def test_both_keep_the_same_triplets_step_by_step():
    model = model_of("bert")
    config = peft_config("bert", total_step=12, deltaT=2, tfinal=4, lora_alpha=8)
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    fields = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 4, "deltaT": 2, "lora_alpha": 8}
    ours = deltatune.attach(model, deltatune.AdaLoRA(target_modules=tuple(NAMES["bert"]), **fields))
    pairs = [
        (module, theirs.get_submodule(f"base_model.model.{path}"))
        for path, module in ours.attached.placed.sites.items()
    ]
    with torch.no_grad():
        for module, other in pairs:
            for name in ("lora_A", "lora_E", "lora_B"):
                noise = torch.randn_like(getattr(module, name)) * 0.3
                getattr(module, name).copy_(noise)
                getattr(other, name)["default"].copy_(noise)
    ours.expect_steps(12)
    mine = torch.optim.SGD(ours.parameters(), lr=0.1)
    yours = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.1)
    batch, zeros = inputs(model), []
    for step in range(1, 13):
        for net, optimizer in ((model, mine), (theirs, yours)):
            net(**batch)[0].square().mean().backward()
            optimizer.step()
        theirs.base_model.update_and_allocate(step)
        for optimizer in (mine, yours):
            optimizer.zero_grad(set_to_none=True)
        for module, other in pairs:
            assert torch.equal(module.lora_E == 0, other.lora_E["default"] == 0)
            assert torch.allclose(module.lora_E, other.lora_E["default"], rtol=1e-3, atol=1e-5)
        zeros.append(sum(int((module.lora_E == 0).sum()) for module, _ in pairs))
    assert zeros[0] == 0 < zeros[3] <= zeros[7] == zeros[11] == 2 * len(pairs)
