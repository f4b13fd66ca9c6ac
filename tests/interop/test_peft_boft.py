"""BOFT folders go to peft and come from peft with equal outputs.

More than one butterfly factor runs in peft on a GPU with a compiled extension only; there its own permutations and
transform, called by hand, stand in for it.
"""

import copy

import pytest
import torch
from peft import BOFTConfig, PeftModel, get_peft_model
from peft.tuners.boft import layer as boft
from safetensors.torch import load_file, save_file

import deltatune
from contract.cases import distance, disturb, model_of, outputs
from interop.targets import HEADS, NAMES

FAMILIES = ("bert", "roberta", "llama", "t5", "vit", "whisper")
SETTINGS = {"size": {"boft_block_size": 4}, "number": {"boft_block_num": 4}}


@pytest.fixture(autouse=True)
def without_the_extension(monkeypatch):
    monkeypatch.setattr(boft, "_FBD_CUDA", False)  # else peft tries to compile it for every layer


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_we_save(family, fields, tmp_path):
    base = model_of(family)
    model = copy.deepcopy(base)
    head = ("head",) if family in HEADS else None
    settings = deltatune.BOFT(boft_n_butterfly_factor=1, modules_to_save=head, **fields)
    adapter = deltatune.attach(model, settings, name="mine")
    disturb(adapter)
    adapter.save(tmp_path / "mine", task_type=HEADS.get(family))
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "mine")).eval()
    assert distance(outputs(theirs), outputs(model)) < 1e-5


@pytest.mark.parametrize("factors", [1, 2])  # peft makes one factor of two without its extension
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_we_load_what_peft_saves(family, factors, tmp_path):
    model = model_of(family)
    head, names = HEADS.get(family), NAMES[family]
    config = BOFTConfig(
        target_modules=names, boft_block_size=4, boft_n_butterfly_factor=factors, init_weights=False, task_type=head
    )
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    adapter = deltatune.load(model, tmp_path / "theirs", name="theirs")
    assert adapter.method.type == "boft"
    assert distance(outputs(model), outputs(theirs)) < 1e-5


@pytest.mark.parametrize("factors", [2, 3])
def test_butterflies_are_wired_as_in_peft(factors):
    size, inputs = 4, 32
    net = torch.nn.Sequential(torch.nn.Linear(inputs, 5))
    given = {"boft_block_size": size, "boft_n_butterfly_factor": factors}
    adapter = deltatune.attach(copy.deepcopy(net), deltatune.BOFT(target_modules="0", **given))
    disturb(adapter, size=0.3)
    (site,) = adapter.attached.sites
    (module,) = adapter.attached.placed.modules()
    tensors = adapter.method.to_peft(site, {name: p.detach() for name, p in module.named_parameters()})
    theirs = get_peft_model(copy.deepcopy(net), BOFTConfig(target_modules=["0"], boft_block_size=size))
    own = theirs.base_model.model[0]
    rotation = torch.eye(inputs)
    for level, blocks in enumerate(tensors["boft_R"]):
        order = own.block_butterfly_perm(inputs, inputs // size // 2**level, size // 2, factors - 1)
        p = own.perm2mat(order)
        rotation = p @ torch.block_diag(*own.cayley_batch(blocks)) @ p.T @ rotation
    x, layer = torch.randn(3, inputs), net[0]
    expected = (x @ rotation @ layer.weight.T) * tensors["boft_s"].squeeze(1) + layer.bias
    assert torch.allclose(adapter.model(x), expected, atol=1e-5)
    again = adapter.method.of_peft(site, tensors)
    assert all(torch.equal(again[name], p) for name, p in module.named_parameters())


def test_trained_biases_are_refused(tmp_path):
    theirs = get_peft_model(model_of("bert"), BOFTConfig(target_modules=["query"], bias="all"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(deltatune.DeltatuneError, match="bias='all' is a variant of BOFT"):
        deltatune.load(model_of("bert"), tmp_path / "theirs")


def test_a_file_with_more_factors_than_its_settings_is_refused(tmp_path):
    adapter = deltatune.attach(model_of("bert"), deltatune.BOFT(boft_n_butterfly_factor=2))
    adapter.save(tmp_path / "mine")
    weights = tmp_path / "mine" / "adapter_model.safetensors"
    save_file(load_file(weights), weights)  # without our own settings, as from elsewhere
    config = tmp_path / "mine" / "adapter_config.json"
    text = config.read_text()
    assert '"boft_n_butterfly_factor": 2' in text
    config.write_text(text.replace('"boft_n_butterfly_factor": 2', '"boft_n_butterfly_factor": 1'))
    with pytest.raises(deltatune.DeltatuneError, match="shape"):
        deltatune.load(model_of("bert"), tmp_path / "mine")
