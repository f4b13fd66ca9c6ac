"""LoRA and DoRA folders go to peft and come from peft with equal logits, heads included."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import deltatune
from contract.cases import distance, disturb, model_of, outputs

FAMILIES = ("bert", "roberta", "llama", "t5", "gpt2", "vit", "whisper", "distilbert", "qwen3")
HEADS = {"bert": "SEQ_CLS", "roberta": "SEQ_CLS", "distilbert": "SEQ_CLS"}
TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "t5": ["q", "wo"],
    "gpt2": ["c_attn", "c_fc"],
    "vit": ["q_proj", "fc2"],
    "whisper": ["q_proj", "fc1"],
    "distilbert": ["q_lin", "lin2"],
    "qwen3": ["q_proj", "up_proj"],
}


def targets(family):
    return TARGETS.get(family, ["query", "value"])


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_we_save(method, family, tmp_path):
    base = model_of(family)
    model = copy.deepcopy(base)
    head = ("head",) if family in HEADS else None
    settings = deltatune.method(method, r=4, lora_alpha=10, rank_pattern={"*.1.*": 2}, modules_to_save=head)
    adapter = deltatune.attach(model, settings, name="mine")
    disturb(adapter)
    adapter.save(tmp_path / "mine", task_type=HEADS.get(family))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "mine")).eval()
    assert distance(outputs(theirs), outputs(model)) < 1e-5


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_we_load_what_peft_saves(use_dora, family, tmp_path):
    model = model_of(family)
    config = LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=targets(family),
        use_dora=use_dora,
        use_rslora=True,
        task_type=HEADS.get(family),
        fan_in_fan_out=family == "gpt2",
    )
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    noise(theirs)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = deltatune.load(model, tmp_path / "theirs", name="theirs")
    assert adapter.method.type == ("dora" if use_dora else "lora")
    assert distance(outputs(model), outputs(theirs)) < 1e-5


def noise(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "whisper"])
def test_a_folder_that_went_through_peft_comes_back_equal(family, tmp_path):
    model = model_of(family)
    adapter = deltatune.attach(model, deltatune.LoRA(r=4))
    disturb(adapter)
    expected = outputs(model)
    adapter.save(tmp_path / "ours")
    base = model_of(family)
    PeftModel.from_pretrained(base, str(tmp_path / "ours")).save_pretrained(str(tmp_path / "theirs"))
    fresh = model_of(family)
    deltatune.load(fresh, tmp_path / "theirs")
    assert torch.equal(outputs(fresh), expected)


def test_convolutions_and_embeddings_have_pefts_shapes(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.embed = torch.nn.Conv2d(4, 6, 3, padding=1), torch.nn.Embedding(9, 5)
            self.line = torch.nn.Conv1d(5, 4, 3)

        def forward(self, image, tokens):
            return self.conv(image).mean() + self.line(self.embed(tokens).mT).sum()

    torch.manual_seed(1)
    model = Net()
    twin, fresh = copy.deepcopy(model), copy.deepcopy(model)
    adapter = deltatune.attach(model, deltatune.LoRA(r=2, target_modules=("conv", "embed", "line")))
    disturb(adapter)
    adapter.save(tmp_path / "mine")
    shapes = {k: tuple(t.shape) for k, t in load_file(tmp_path / "mine" / "adapter_model.safetensors").items()}
    assert shapes["base_model.model.conv.lora_A.weight"] == (2, 4, 3, 3)
    assert shapes["base_model.model.conv.lora_B.weight"] == (6, 2, 1, 1)
    assert shapes["base_model.model.embed.lora_embedding_A"] == (2, 9)
    given = (torch.randn(2, 4, 5, 5), torch.randint(0, 9, (2, 7)))
    theirs = PeftModel.from_pretrained(twin, str(tmp_path / "mine"))
    assert torch.allclose(theirs(*given), model(*given), atol=1e-4)
    deltatune.load(fresh, tmp_path / "mine")
    assert torch.equal(fresh(*given), model(*given))
    adapter.merge()
    assert torch.allclose(theirs(*given), model(*given), atol=1e-4)


def test_stacked_experts_have_pefts_layout(tmp_path):
    model = model_of("qwen3-moe")
    twin, fresh = copy.deepcopy(model), copy.deepcopy(model)
    names = ("*.experts.gate_up_proj", "*.experts.down_proj")
    adapter = deltatune.attach(model, deltatune.LoRA(r=2, target_modules=names))
    disturb(adapter)
    adapter.save(tmp_path / "mine")
    theirs = PeftModel.from_pretrained(twin, str(tmp_path / "mine")).eval()
    assert distance(outputs(theirs), outputs(model)) < 1e-5
    deltatune.load(fresh, tmp_path / "mine")
    assert torch.equal(outputs(fresh), outputs(model))


@pytest.mark.filterwarnings("ignore:.*LoRA tensor.*have invalid shape")
def test_a_variant_of_lora_that_we_lack_is_refused_by_name(tmp_path):
    theirs = get_peft_model(model_of("bert"), LoraConfig(target_modules=["query"], lora_bias=True))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(deltatune.DeltatuneError, match="lora_bias"):
        deltatune.load(model_of("bert"), tmp_path / "theirs")


def test_a_pattern_that_is_a_program_is_refused(tmp_path):
    adapter = deltatune.attach(model_of("bert"), deltatune.LoRA())
    adapter.save(tmp_path / "mine")
    path = tmp_path / "mine" / "adapter_model.safetensors"
    tensors = load_file(path)
    from safetensors.torch import save_file

    save_file(tensors, path)  # without our metadata: the config decides
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    config["target_modules"] = "([a-z0-9_.]+)+!"
    (tmp_path / "mine" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(deltatune.DeltatuneError, match="regular expression"):
        deltatune.load(model_of("bert"), tmp_path / "mine")


def test_the_config_file_is_the_same_for_the_same_adapter(tmp_path):
    texts = []
    for name in ("one", "two"):
        adapter = deltatune.attach(model_of("bert"), deltatune.LoRA(target_modules=("value", "query")))
        adapter.save(tmp_path / name)
        texts.append((tmp_path / name / "adapter_config.json").read_bytes())
    assert texts[0] == texts[1]
