"""LoKr folders go to peft and come from peft with equal outputs."""

import copy

import pytest
from peft import LoKrConfig, PeftModel, get_peft_model
from peft.tuners.lokr.layer import factorization

import deltatune
from contract.cases import distance, disturb, model_of, outputs
from deltatune.ops import kronecker
from interop.targets import HEADS, NAMES

SETTINGS = {
    "whole": {"r": 16},
    "low-rank": {"r": 2},
    "both": {"r": 1, "decompose_both": True},
    "factor": {"r": 2, "decompose_factor": 4},
}


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", ["bert", "roberta", "llama", "t5", "vit", "whisper"])
def test_peft_loads_what_we_save(family, fields, tmp_path):
    base = model_of(family)
    model = copy.deepcopy(base)
    head = ("head",) if family in HEADS else None
    adapter = deltatune.attach(model, deltatune.LoKr(alpha=10, modules_to_save=head, **fields), name="mine")
    disturb(adapter)
    adapter.save(tmp_path / "mine", task_type=HEADS.get(family))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "mine")).eval()
    assert distance(outputs(theirs), outputs(model)) < 1e-5


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_we_load_what_peft_saves(family, fields, tmp_path):
    model = model_of(family)
    config = LoKrConfig(
        alpha=10,
        target_modules=NAMES[family],
        task_type=HEADS.get(family),
        init_weights=False,
        rank_pattern={NAMES[family][0]: 1},
        **fields,
    )
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = deltatune.load(model, tmp_path / "theirs", name="theirs")
    assert adapter.method.type == "lokr"
    assert distance(outputs(model), outputs(theirs)) < 1e-5


@pytest.mark.parametrize("factor", [-1, 1, 3, 4, 8, 16])
def test_sizes_are_split_as_peft_splits_them(factor):
    for size in (*range(1, 200), 768, 1024, 3072, 4096, 11_008):
        assert kronecker.split(size, factor) == factorization(size, factor)
