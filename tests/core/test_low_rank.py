"""What methods of low rank have in common: the fields and shapes of peft's files."""

import pytest
import torch
from peft import LoHaConfig, LoraConfig

import deltatune
from deltatune.core.errors import AdapterError
from deltatune.core.low_rank import read_lora_config
from deltatune.engine.anatomy import Anatomy
from models import tiny

EXPERTS = ("*.experts.gate_up_proj", "*.experts.down_proj")


def test_what_a_file_says_beside_our_settings_is_what_peft_has_by_default():
    sites = deltatune.LoRA().sites(Anatomy.of(tiny("bert")))
    ours, theirs = deltatune.LoRA().peft_config(sites), LoraConfig().to_dict()
    for name in ("init_lora_weights", "use_dora", "bias", "fan_in_fan_out", "target_parameters"):
        assert ours[name] == theirs[name], name
    loha, theirs = deltatune.LoHa().peft_config(sites), LoHaConfig().to_dict()
    assert (loha["init_weights"], loha["use_effective_conv2d"]) == (theirs["init_weights"], False)


def test_stacked_experts_come_back_from_pefts_shapes():
    method = deltatune.LoRA(target_modules=EXPERTS)
    for site in method.sites(Anatomy.of(tiny("qwen3-moe"))):
        rank = method.rank(site)
        own = {
            "lora_A": torch.randn(site.copies, rank, site.in_features),
            "lora_B": torch.randn(site.copies, site.out_features, rank),
        }
        written = method.to_peft(site, own)
        assert written["lora_A.weight"].shape == (site.copies * rank, site.in_features)
        assert written["lora_B.weight"].shape == (site.out_features, rank * site.copies)
        read = method.of_peft(site, written)
        assert all(torch.equal(read[name], own[name]) for name in own)


def test_a_variant_of_another_algorithm_is_refused_and_a_plain_file_is_read():
    plain = {"r": 4, "lora_alpha": 8, "bias": "none", "lora_bias": False, "init_lora_weights": "gaussian"}
    found = read_lora_config(deltatune.LoRA, plain | {"target_modules": ["query"]})
    assert (found.r, found.lora_alpha, found.target_modules) == (4, 8, ("query",))
    with pytest.raises(AdapterError, match="lora_bias=True is a variant of LoRA"):
        read_lora_config(deltatune.LoRA, plain | {"lora_bias": True})
