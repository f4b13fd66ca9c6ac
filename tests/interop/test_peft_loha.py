"""LoHa folders go to peft and come from peft with equal outputs; kernels of LoHa and LoKr too."""

import copy

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, PeftModel, get_peft_model

import deltatune
from contract.cases import distance, disturb, model_of, outputs
from interop.targets import HEADS, NAMES

FAMILIES = ("bert", "roberta", "llama", "t5", "vit", "whisper")


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_we_save(family, tmp_path):
    base = model_of(family)
    model = copy.deepcopy(base)
    fields = {"rank_pattern": {"*.1.*": 2}, "alpha_pattern": {"*.0.*": 3}}
    settings = deltatune.LoHa(r=4, alpha=10, modules_to_save=("head",) if family in HEADS else None, **fields)
    adapter = deltatune.attach(model, settings, name="mine")
    disturb(adapter)
    adapter.save(tmp_path / "mine", task_type=HEADS.get(family))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "mine")).eval()
    assert distance(outputs(theirs), outputs(model)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_we_load_what_peft_saves(family, tmp_path):
    model = model_of(family)
    config = LoHaConfig(r=4, alpha=10, target_modules=NAMES[family], task_type=HEADS.get(family), init_weights=False)
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = deltatune.load(model, tmp_path / "theirs", name="theirs")
    assert adapter.method.type == "loha"
    assert distance(outputs(model), outputs(theirs)) < 1e-5


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.line = torch.nn.Conv2d(8, 6, 3, padding=1), torch.nn.Conv1d(8, 6, 3)

    def forward(self, image):
        return self.conv(image).flatten(2)[..., :2] + self.line(image.flatten(2))[..., :2]


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_convolutions_have_pefts_shapes(config, tmp_path):
    torch.manual_seed(1)
    model = Net()
    # LoKr: peft scrambles a whole W2 on Conv1d (its `make_kron` pads the left matrix in front), so a low rank only
    given = config(r=1, target_modules=["conv", "line"], init_weights=False)
    theirs = get_peft_model(copy.deepcopy(model), given).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    deltatune.load(model, tmp_path / "theirs")
    image = torch.randn(2, 8, 5, 5)
    assert torch.allclose(theirs(image), model(image), atol=1e-5)


@pytest.mark.parametrize("config", [LoHaConfig, LoKrConfig])
def test_factored_kernels_are_refused(config, tmp_path):
    theirs = get_peft_model(Net(), config(r=1, target_modules=["conv"], use_effective_conv2d=True))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(deltatune.DeltatuneError, match="use_effective_conv2d"):
        deltatune.load(Net(), tmp_path / "theirs")
