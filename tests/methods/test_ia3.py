"""(IA)3: the paper's counts and places, merging with random biases, peft's folders both ways."""

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, PeftModel, get_peft_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import SettingsError
from deltatune.engine.anatomy import Anatomy
from shapes import count

T0 = {"3B": (2048, 32, 64, 5120, 540_672), "11B": (4096, 64, 64, 10240, 1_081_344)}


def test_bert_base_trains_55_296_values():
    assert count(deltatune.IA3(), "bert-base") == 12 * (2 * 768 + 3072) == 55_296
    assert count(deltatune.IA3(), "llama-7b") == 32 * (2 * 4096 + 11008)


@pytest.mark.parametrize(("width", "heads", "head", "ff", "expected"), T0.values(), ids=T0)
def test_t0_trains_the_values_of_the_paper(width, heads, head, ff, expected):
    with torch.device("meta"):
        model = T5ForConditionalGeneration(
            T5Config(
                d_model=width,
                d_kv=head,
                d_ff=ff,
                num_layers=24,
                num_heads=heads,
                vocab_size=128,
                feed_forward_proj="gated-gelu",
            )
        )
    settings = deltatune.IA3()
    assert settings.count(settings.sites(Anatomy.of(model))) == expected


def test_the_output_is_the_closed_form_at_the_papers_places():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.IA3())
    disturb(adapter, size=0.3)
    sites = adapter.attached.placed.sites
    block, x = model.bert.encoder.layer[0], torch.randn(2, 4, 32)
    key = block.attention.self.key
    scale = sites["bert.encoder.layer.0.attention.self.key"].scale
    assert torch.allclose(key(x), scale * F.linear(x, key.weight, key.bias), atol=1e-6)
    down = block.output.dense
    inner = torch.randn(2, 4, down.in_features)
    scale = sites["bert.encoder.layer.0.output.dense"].scale
    assert torch.allclose(down(inner), F.linear(scale * inner, down.weight, down.bias), atol=1e-6)
    assert "bert.encoder.layer.0.attention.output.dense" not in sites  # which peft's `output.dense` takes along


def test_nothing_pulls_the_scales_to_zero():
    adapter = deltatune.attach(model_of("bert"), deltatune.IA3())
    assert {group["weight_decay"] for group in adapter.parameter_groups(1e-3, weight_decay=0.1)} == {0.0}


def test_embeddings_and_convolutions_are_refused():
    with pytest.raises(SettingsError, match="scales linear layers"):
        deltatune.attach(nn.Sequential(nn.Conv1d(4, 4, 3)), deltatune.IA3(target_modules="0"))


@pytest.mark.parametrize(
    ("family", "targets", "feedforward"),
    [
        ("bert", ["key", "value", "output.dense"], ["output.dense"]),
        ("llama", ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
        ("t5", ["k", "v", "wo"], ["wo"]),
        ("gpt2", ["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    ],
)
def test_a_folder_of_peft_has_its_logits_here(tmp_path, family, targets, feedforward):
    config = IA3Config(target_modules=targets, feedforward_modules=feedforward, fan_in_fan_out=family == "gpt2")
    theirs = get_peft_model(model_of(family), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "ia3_l" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    theirs.save_pretrained(tmp_path)
    ours = model_of(family)
    base = outputs(ours)
    deltatune.load(ours, tmp_path)
    assert not torch.allclose(outputs(ours), base, atol=1e-4)
    assert torch.allclose(outputs(ours), outputs(theirs), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2"])
def test_peft_has_our_logits_from_our_folder(tmp_path, family):
    ours = model_of(family)
    adapter = deltatune.attach(ours, deltatune.IA3())
    disturb(adapter, size=0.3)
    adapter.save(tmp_path / "saved")
    theirs = PeftModel.from_pretrained(model_of(family), tmp_path / "saved").eval()
    assert torch.allclose(outputs(theirs), outputs(ours), atol=1e-5)
