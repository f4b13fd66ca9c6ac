"""Prefix tuning: counts, the closed form of attention, the perceptron and its fold, peft's folders both ways."""

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model

import deltatune
from contract.cases import disturb, forward, model_of, outputs
from deltatune.core.errors import AdapterError, SettingsError
from models import inputs
from shapes import count


def test_it_trains_the_values_of_the_paper():
    assert count(deltatune.PrefixTuning(num_virtual_tokens=30), "bert-base") == 552_960
    with_perceptron = deltatune.PrefixTuning(num_virtual_tokens=30, prefix_projection=True, encoder_hidden_size=512)
    assert count(with_perceptron, "bert-base") == 9_872_384
    assert count(deltatune.PrefixTuning(num_virtual_tokens=10), "t5-base") == 36 * 2 * 10 * 768


def test_values_are_drawn_around_zero_as_wide_as_they_should():
    adapter = deltatune.attach(model_of("bert"), deltatune.PrefixTuning(num_virtual_tokens=100))
    for prefix in adapter.parameters():
        assert abs(prefix.mean()) < 0.002 and torch.isclose(prefix.std(), torch.tensor(0.02), rtol=0.1)


def test_the_perceptron_is_drawn_so_that_prefixes_begin_as_wide_as_without_it():
    settings = {"num_virtual_tokens": 100, "prefix_projection": True, "encoder_hidden_size": 200}
    adapter = deltatune.attach(model_of("bert"), deltatune.PrefixTuning(**settings))
    shared = adapter.attached.placed.shared
    for tensor, width in (
        (shared.embeddings, 1),
        (shared.inner_weight, shared.inner_weight.shape[1] ** -0.5),
        (shared.outer_weight, 0.02 * 200**-0.5),
    ):
        assert abs(tensor.mean()) < 0.1 * width and torch.isclose(tensor.std(), torch.tensor(width).float(), rtol=0.1)


@pytest.mark.parametrize(("projection", "decays"), [(False, {0.0}), (True, {0.0, 0.1})])
def test_prefixes_do_not_decay_and_the_matrices_of_the_perceptron_do(projection, decays):
    adapter = deltatune.attach(model_of("bert"), deltatune.PrefixTuning(prefix_projection=projection))
    assert {group["weight_decay"] for group in adapter.parameter_groups(weight_decay=0.1)} == decays


def test_the_attention_is_the_closed_form():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.PrefixTuning(num_virtual_tokens=3))
    disturb(adapter, size=0.5)
    module = model.bert.encoder.layer[0].attention.self
    prefix = adapter.attached.placed.sites["bert.encoder.layer.0.attention.self"].prefix
    seen = {}

    def note(_, args, out):
        seen["x"], seen["y"] = args[0], out[0]

    module.register_forward_hook(note)
    batch = {key: value[:1] for key, value in inputs(model).items()}
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    forward(model, batch)
    x, heads = seen["x"], prefix.shape[1]
    q, k, v = (f(x).view(1, -1, heads, 32 // heads).transpose(1, 2) for f in (module.query, module.key, module.value))
    keys, values = torch.cat([prefix[:1], k], 2), torch.cat([prefix[1:], v], 2)
    scores = (q @ keys.mT / (32 // heads) ** 0.5).softmax(-1)
    assert torch.allclose((scores @ values).transpose(1, 2).flatten(2), seen["y"].flatten(2), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_the_perceptron_is_folded_away_when_saved_and_kept_to_resume(family, tmp_path):
    model = model_of(family)
    method = deltatune.PrefixTuning(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7, use_gating=True
    )
    adapter = deltatune.attach(model, method)
    disturb(adapter, size=0.3)
    assert adapter.trainable_parameters == method.count(adapter.attached.sites)
    saved = adapter.export().tensors
    assert not [name for name in saved if "weight" in name or "shared" in name]
    adapter.save(tmp_path / "saved")
    fresh = model_of(family)
    deltatune.load(fresh, tmp_path / "saved")
    assert torch.allclose(outputs(fresh), outputs(model), atol=1e-6)
    other = deltatune.attach(model_of(family), method, seed=4)
    other.load_state_dict(adapter.state_dict())
    assert torch.equal(outputs(other.model), outputs(model))


def test_the_perceptron_is_that_of_the_paper():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.PrefixTuning(num_virtual_tokens=3, prefix_projection=True))
    shared, (first, second) = adapter.attached.placed.shared, adapter.attached.placed.modules()
    inner = torch.tanh(shared.embeddings @ shared.inner_weight.T + shared.inner_bias)
    whole = inner @ shared.outer_weight.T + shared.outer_bias
    for module, part in ((first, whole[:, :64]), (second, whole[:, 64:])):
        expected = part.view(3, 2, 4, 8).permute(1, 2, 0, 3)
        assert torch.allclose(module.prefix(), expected, atol=1e-6)


def test_kinds_of_attention_are_chosen():
    model = model_of("t5")
    found = {}
    for kinds in (("encoder",), ("decoder",), ("cross",), ("encoder", "decoder", "cross")):
        adapter = deltatune.attach(model, deltatune.PrefixTuning(attentions=kinds))
        found[kinds] = {(site.stack, site.role) for site in adapter.attached.sites}
        adapter.detach()
    assert list(found.values())[:3] == [{("encoder", "self")}, {("decoder", "self")}, {("decoder", "cross")}]
    assert len(found["encoder", "decoder", "cross"]) == 3
    one = deltatune.attach(model_of("llama"), deltatune.PrefixTuning(attentions=("encoder",)))
    assert len(one.attached.sites) == 2


@pytest.mark.parametrize("family", ["xlnet", "deberta-v2", "bloom", "mpnet"])
def test_models_whose_attention_takes_nothing_from_outside_are_refused(family):
    with pytest.raises(SettingsError, match="does not take keys and values from outside"):
        deltatune.attach(model_of(family), deltatune.PrefixTuning())


TASKS = {"bert": "SEQ_CLS", "roberta": "SEQ_CLS", "gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM"}


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", TASKS)
def test_a_folder_of_peft_has_its_logits_here_and_ours_there(tmp_path, family, projection):
    config = PrefixTuningConfig(
        task_type=TASKS[family], num_virtual_tokens=3, prefix_projection=projection, encoder_hidden_size=16
    )
    theirs = get_peft_model(model_of(family), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_of(family)
    adapter = deltatune.load(ours, tmp_path / "theirs", trainable=True)
    assert torch.allclose(outputs(ours), outputs(theirs), atol=1e-5)
    disturb(adapter, size=0.3)
    adapter.save(tmp_path / "ours", task_type=TASKS[family])
    again = PeftModel.from_pretrained(model_of(family), tmp_path / "ours").eval()
    assert torch.allclose(outputs(again), outputs(ours), atol=1e-5)


def test_a_prefix_of_peft_for_an_encoder_decoder_is_refused_with_the_reason(tmp_path):
    theirs = get_peft_model(model_of("t5"), PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="relative positions of the decoder"):
        deltatune.load(model_of("t5"), tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_with_moved_positions_is_the_same_with_and_without_cache(family):
    model = model_of(family)
    disturb(deltatune.attach(model, deltatune.PrefixTuning(num_virtual_tokens=3, position_offset=None)), size=0.5)
    given = {key: value[:2, :5] for key, value in inputs(model).items()}
    texts = [model.generate(**given, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*texts)
