"""OFT folders go to peft and come from peft with equal outputs."""

import copy

import pytest
import torch
from peft import OFTConfig, PeftModel, get_peft_model

import deltatune
from contract.cases import distance, disturb, model_of, outputs
from deltatune.methods.oft import nearest_divisor
from interop.targets import HEADS, NAMES

FAMILIES = ("bert", "roberta", "llama", "t5", "vit", "whisper")
SETTINGS = {
    "exact": {"oft_block_size": 8},
    "series": {"oft_block_size": 8, "use_cayley_neumann": True},
    "terms": {"oft_block_size": 8, "use_cayley_neumann": True, "num_cayley_neumann_terms": 8},
    "number": {"r": 4},
    "shared": {"oft_block_size": 8, "block_share": True},
}


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_we_save(family, fields, tmp_path):
    base = model_of(family)
    model = copy.deepcopy(base)
    head = ("head",) if family in HEADS else None
    adapter = deltatune.attach(model, deltatune.OFT(modules_to_save=head, **fields), name="mine")
    disturb(adapter)
    adapter.save(tmp_path / "mine", task_type=HEADS.get(family))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "mine")).eval()
    assert distance(outputs(theirs), outputs(model)) < 1e-5


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_we_load_what_peft_saves(family, fields, tmp_path):
    model = model_of(family)
    given = {"use_cayley_neumann": False, "oft_block_size": 0, "task_type": HEADS.get(family), **fields}
    config = OFTConfig(target_modules=NAMES[family], **given)
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = deltatune.load(model, tmp_path / "theirs", name="theirs")
    assert adapter.method.type == "oft"
    assert distance(outputs(model), outputs(theirs)) < 1e-5


def test_sizes_are_adjusted_as_peft_adjusts_them():
    from peft.tuners.oft.layer import OFTLayer

    for inputs in (*range(2, 130), 768, 1000, 3072):
        for wanted in (2, 3, 8, 32, 60, 500):
            given = wanted if inputs % wanted == 0 else OFTLayer.adjust_oft_parameters(None, inputs, wanted)
            assert nearest_divisor(inputs, wanted) == given


def test_the_series_of_an_older_peft_is_refused():
    settings = deltatune.OFT(oft_block_size=8, use_cayley_neumann=True)
    config = {**settings.peft_config([]), "peft_type": "OFT", "target_modules": ["query"]}
    assert deltatune.OFT.from_peft(config).use_cayley_neumann
    for version in ("0.17.1", None):
        with pytest.raises(deltatune.DeltatuneError, match=r"before 0\.18"):
            deltatune.OFT.from_peft({**config, "peft_version": version})


@pytest.mark.parametrize("fields", [{"coft": True}, {"bias": "all"}])
def test_variants_that_we_lack_are_refused(fields, tmp_path):
    theirs = get_peft_model(model_of("bert"), OFTConfig(target_modules=["query"], oft_block_size=8, **fields))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(deltatune.DeltatuneError, match="variants of OFT"):
        deltatune.load(model_of("bert"), tmp_path / "theirs")
