"""AdapterHub folders, written by `adapters` 1.3.0 itself, give its logits here and are written back equal.

How they were made stands in adapterhub/make_fixtures.py.
"""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import deltatune
from contract.cases import disturb
from deltatune.engine.anatomy import Anatomy
from deltatune.store import adapterhub

HERE = Path(__file__).parent / "adapterhub"
CLASSES = {
    "bert": tf.BertForSequenceClassification,
    "roberta": tf.RobertaForSequenceClassification,
    "t5": tf.T5ForConditionalGeneration,
    "bart": tf.BartForConditionalGeneration,
    "distilbert": tf.DistilBertForSequenceClassification,
    "gpt2": tf.GPT2LMHeadModel,
    "llama": tf.LlamaForCausalLM,
    "vit": tf.ViTForImageClassification,
}
ADAPTERS = (
    "seq_bn",
    "double_seq_bn",
    "par_bn",
    "scaled_par_bn",
    "leave_out",
    "ln_after",
    "cross",
    "with_head",
    "compacter",
    "compacter_plus_plus",
    "lora",
    "lora_everywhere",
    "union",
    "ia3",
    "prompt_tuning",
    "prefix_tuning_flat",
    "prefix_tuning",
    "mam",
    "fusion",
)
REFUSED = {("t5", "compacter"), ("t5", "par_bn"), ("t5", "prefix_tuning_flat")}
"""The first lacks a tensor, the others mean something else there."""
ONE_WAY = {("gpt2", "lora"), ("gpt2", "ia3"), ("bert", "prefix_tuning")}
"""Parts of a fused projection there, the whole here; a perceptron there, what it computes here."""


def folders():
    """(family, case) of every fixture that can be read."""
    found = [(folder.parent.name, folder.name) for name in ADAPTERS for folder in sorted(HERE.glob(f"*/{name}"))]
    assert found
    return [case for case in found if case not in REFUSED]


def model_of(family):
    model = CLASSES[family].from_pretrained(HERE / family / "base", dtype=torch.float32).eval()
    model.config.name_or_path = model.name_or_path = ""  # not a path of this machine
    return model


@cache
def expected(family):
    return load_file(HERE / family / "expected.safetensors")


@cache
def empty(family):
    """One model for tests that attach nothing to it."""
    return model_of(family)


@cache
def anatomy(family):
    return Anatomy.of(model_of(family))


def logits(model, family):
    given = {key.removeprefix("input."): t for key, t in expected(family).items() if key.startswith("input.")}
    with torch.no_grad():
        return model(**given).logits


def off(model, family, case):
    return float((logits(model, family) - expected(family)[f"logits.{case}"]).abs().max())


def written(adapter, family, folder):
    model = CLASSES[family].__name__
    return adapterhub.write(adapter.export(), folder, hidden_size=32, model_type=family, model_class=model)


def spoilt(tmp_path, source="bert/seq_bn", **changes):
    """A copy of a folder whose config says something else."""
    folder = tmp_path / "spoilt"
    shutil.copytree(HERE / source, folder)
    path = next(folder.glob("**/adapter*config.json"))
    about = json.loads(path.read_text())
    about["config"] |= changes
    path.write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("family", CLASSES)
def test_the_base_is_the_one_the_folders_were_made_on(family):
    assert off(model_of(family), family, "base") <= 5e-6


@pytest.mark.parametrize(("family", "case"), folders())
def test_a_folder_gives_the_logits_of_adapters(family, case):
    model = model_of(family)
    deltatune.load(model, HERE / family / case)
    assert off(model, family, "base") > 1e-2
    assert off(model, family, case) <= 5e-6


@pytest.mark.parametrize(("family", "case"), [case for case in folders() if case not in ONE_WAY])
def test_a_folder_is_written_back_equal_key_by_key_and_tensor_by_tensor(family, case, tmp_path):
    written(deltatune.load(model_of(family), HERE / family / case), family, tmp_path / case)
    theirs = sorted(path.relative_to(HERE / family / case) for path in (HERE / family / case).rglob("*.*"))
    assert sorted(path.relative_to(tmp_path / case) for path in (tmp_path / case).rglob("*.*")) == theirs
    for name in theirs:
        one, other = HERE / family / case / name, tmp_path / case / name
        if name.suffix == ".json":
            assert json.loads(other.read_text()) == json.loads(one.read_text())
        else:
            wanted = {key: tensor for key, tensor in load_file(one).items() if ".pool." not in key}  # said twice there
            tensors = load_file(other)
            assert tensors.keys() == wanted.keys()
            assert all(torch.equal(tensor, tensors[key]) for key, tensor in wanted.items())


def test_the_fused_projection_of_gpt2_is_read_as_one_lora_and_has_no_way_back(tmp_path):
    adapter = deltatune.load(model_of("gpt2"), HERE / "gpt2" / "lora")
    assert {tuple(t.shape) for t in adapter.named_parameters().values()} == {(4, 32), (96, 4)}
    with pytest.raises(deltatune.DeltatuneError, match="query, key, value, up and down"):
        written(adapter, "gpt2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("method", ["adapter", "compacter"])
def test_an_adapter_of_ours_survives_the_way_through_the_format(method, family, tmp_path):
    model = model_of(family)
    adapter = deltatune.attach(model, deltatune.method(method, reduction_factor=4), name="mine")
    disturb(adapter)
    fresh = model_of(family)
    back = deltatune.load(fresh, written(adapter, family, tmp_path / "out"))
    assert (back.name, back.method.size(back.attached.sites[0])) == ("mine", 8)
    assert torch.equal(logits(fresh, family), logits(model, family))


def test_a_union_is_a_mix():
    file = adapterhub.read(HERE / "bert" / "union")
    assert [part.method.type for part in file.parts] == ["lora", "adapter"]
    assert list(file.method.members()) == [part.method for part in file.parts]


def test_the_folder_of_a_backbone_with_another_name_in_front_fits():
    """`adapters` calls the backbone of its own model classes otherwise (T5AdapterModel: transformer.)."""
    model = model_of("t5")
    file = adapterhub.read(HERE / "t5" / "seq_bn")
    adapter = deltatune.load(model, HERE / "t5" / "seq_bn")
    renamed = {f"transformer.{key}": tensor for key, tensor in file.tensors.items()}
    ours = adapterhub.tensors_at(renamed, file.method, adapter.attached.sites)
    assert ours.keys() == adapter.export().tensors.keys()


def test_folders_from_before_version_two_have_other_names():
    file = adapterhub.read(HERE / "bert" / "seq_bn")
    adapter = deltatune.load(model_of("bert"), HERE / "bert" / "seq_bn")
    old = {key.replace(".adapters.", ".layer_text_task_adapters."): tensor for key, tensor in file.tensors.items()}
    ours = adapterhub.tensors_at(old, file.method, adapter.attached.sites)
    assert ours.keys() == adapter.export().tensors.keys()


def test_lora_from_before_1_1_was_scaled_by_one(tmp_path):
    folder = spoilt(tmp_path, "bert/lora")
    about = json.loads((folder / "adapter_config.json").read_text())
    assert adapterhub.read(folder).method.lora_alpha == 6
    (folder / "adapter_config.json").write_text(json.dumps(about | {"version": "adapters.1.0.1"}))
    assert adapterhub.read(folder).method.lora_alpha == 2


def test_names_that_are_not_allowed_here_are_changed(tmp_path, caplog):
    folder = spoilt(tmp_path)
    about = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(about | {"name": "SST-2@ukp"}))
    assert deltatune.load(model_of("bert"), folder).name == "sst-2-ukp"
    assert "SST-2@ukp" in caplog.text


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("bert/seq_bn", {"original_ln_before", "reduction_factor"}),
        (
            "bert/compacter",
            {"original_ln_before", "reduction_factor", "phm_layer", "phm_dim", "non_linearity", "mh_adapter"},
        ),
        ("bert/lora", {"alpha", "r"}),
        ("bert/ia3", {"alpha", "r", "composition_mode", "init_weights"}),
        ("bert/prefix_tuning_flat", {"prefix_length", "flat"}),
        ("bert/prompt_tuning", {"prompt_length"}),
        ("bert/fusion", set()),
    ],
)
def test_a_key_that_is_left_out_has_the_default_of_adapters(tmp_path, source, own):
    """Every key but those in which the folder differs from the defaults; older versions did not know them all."""
    whole = adapterhub.read(HERE / source).method
    folder = spoilt(tmp_path, source)
    path = next(folder.glob("**/adapter_fusion_config.json"), folder / "adapter_config.json")
    about = json.loads(path.read_text())
    for key in about["config"].keys() - own - {"architecture"}:
        rest = {word: value for word, value in about["config"].items() if word != key}
        path.write_text(json.dumps({**about, "config": rest}))
        assert adapterhub.read(folder).method == whole, key


def test_a_bottleneck_without_a_size_has_a_sixteenth_of_the_width(tmp_path):
    folder = spoilt(tmp_path)
    about = json.loads((folder / "adapter_config.json").read_text())
    del about["config"]["reduction_factor"]
    (folder / "adapter_config.json").write_text(json.dumps(about))
    assert adapterhub.read(folder).method.reduction_factor == 16


def test_a_size_that_floats_divide_downwards_is_the_one_of_adapters(tmp_path):
    method = adapterhub.read(spoilt(tmp_path, reduction_factor=0.1)).method
    assert int(32 / 0.1) == 320 and 32 // 0.1 == 319.0
    assert method.bottleneck_size == 319


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("bert/seq_bn", {"inv_adapter": "nice"}, "inv_adapter='nice'"),
        ("bert/seq_bn", {"ln_before": True}, "ln_before=True"),
        ("bert/seq_bn", {"use_gating": True}, "use_gating=True"),
        ("bert/seq_bn", {"original_ln_after": False}, "original_ln_after=False"),
        ("bert/seq_bn", {"residual_before_ln": "post_add"}, "residual_before_ln='post_add'"),
        ("bert/seq_bn", {"residual_before_ln": False}, "residual_before_ln=False"),
        ("bert/seq_bn", {"scaling": "channel"}, "scaling='channel'"),
        ("bert/ln_after", {"scaling": 2.0}, "scaling=2.0"),
        ("bert/ln_after", {"adapter_residual_before_ln": True}, "adapter_residual_before_ln=True"),
        ("bert/seq_bn", {"stochastic_depth": 0.1}, "stochastic_depth=0.1"),
        ("bert/seq_bn", {"reduction_factor": {"0": 2, "default": 4}}, "reduction_factor for each block"),
        ("bert/seq_bn", {"non_linearity": "mish"}, "non_linearity"),
        ("bert/seq_bn", {"new_switch": 1}, "new_switch"),
        ("bert/seq_bn", {"architecture": "reft"}, "'reft'"),
        ("bert/compacter", {"shared_phm_rule": False}, "shared_phm_rule=False"),
        ("bert/compacter", {"factorized_phm_W": False}, "factorized_phm_W=False"),
        ("bert/lora", {"use_gating": True}, "use_gating=True"),
        ("bert/lora", {"use_dora": True}, "use_dora=True"),
        ("bert/lora", {"composition_mode": "scale"}, "alpha=6"),
        ("bert/prefix_tuning_flat", {"use_gating": True}, "use_gating=True"),
        ("bert/prefix_tuning_flat", {"leave_out": [0]}, r"leave_out=\[0\]"),
        ("bert/prefix_tuning", {"non_linearity": "mish"}, "non_linearity='mish'"),
        ("bert/prompt_tuning", {"combine": "prefix_after_bos"}, "combine='prefix_after_bos'"),
    ],
)
def test_what_none_of_our_methods_does_is_refused_by_name(tmp_path, source, changes, message):
    model = model_of("bert")
    with pytest.raises(deltatune.DeltatuneError, match=message):
        deltatune.load(model, spoilt(tmp_path, source, **changes))
    assert off(model, "bert", "base") <= 5e-6


@pytest.mark.parametrize(
    "source", ["bert/seq_bn", "bert/compacter", "bert/lora", "gpt2/lora", "bert/ia3", "bert/union"]
)
def test_a_spoilt_config_is_refused_or_means_something(tmp_path, source):
    about = json.loads((HERE / source / "adapter_config.json").read_text())
    for index, odd in enumerate(
        (None, True, -1, 0, 0.0, 2.5, float("nan"), 10**30, "x", [], ["x"], [-1], {}, {"a": []})
    ):
        for place, keys in (("config", about["config"]), ("about", about)):
            for key in keys:
                folder = tmp_path / f"{index}-{place}-{key}"
                shutil.copytree(HERE / source, folder)
                changed = (
                    {**about, "config": {**about["config"], key: odd}} if place == "config" else {**about, key: odd}
                )
                (folder / "adapter_config.json").write_text(json.dumps(changed))
                try:
                    file = adapterhub.read(folder)
                    file.method.sites(anatomy(source.partition("/")[0]))
                except deltatune.DeltatuneError:
                    continue


@pytest.mark.parametrize(
    "source", ["gpt2/lora", "gpt2/ia3", "bert/compacter", "bert/fusion", "bert/prompt_tuning", "bert/mam"]
)
def test_tensors_of_odd_shapes_are_refused(tmp_path, source):
    family = source.partition("/")[0]
    weights = sorted((HERE / source).rglob("*.safetensors"))[-1].relative_to(HERE / source)
    tensors = load_file(HERE / source / weights)
    for key in sorted(tensors)[:6]:
        for shape in ((), (0,), (3,), (5, 7), (1, 1, 1, 1)):
            folder = tmp_path / f"{key}-{len(shape)}-{sum(shape)}"
            shutil.copytree(HERE / source, folder)
            save_file({**tensors, key: torch.zeros(shape)}, folder / weights)
            with pytest.raises(deltatune.DeltatuneError, match="shape"):
                deltatune.load(empty(family), folder)


@pytest.mark.parametrize(
    "changes", [{"temperature": True}, {"query_before_ln": True}, {"key": False}, {"residual_before": True}]
)
def test_a_fusion_that_computes_otherwise_is_refused(tmp_path, changes):
    folder = tmp_path / "setup"
    shutil.copytree(HERE / "bert" / "fusion", folder)
    path = folder / "a,b,c" / "adapter_fusion_config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"config": about["config"] | changes}))
    with pytest.raises(deltatune.DeltatuneError, match=next(iter(changes))):
        deltatune.load(model_of("bert"), folder)


def test_a_fusion_is_found_by_its_own_folder_and_takes_adapters_that_are_there():
    model = model_of("bert")
    for name in "abc":
        deltatune.load(model, HERE / "bert" / "fusion" / name)
    deltatune.load(model, HERE / "bert" / "fusion" / "a,b,c")
    assert off(model, "bert", "fusion") <= 5e-6


def test_an_error_in_one_part_leaves_no_other_part_attached(tmp_path):
    folder = tmp_path / "setup"
    shutil.copytree(HERE / "bert" / "fusion", folder)
    path = folder / "c" / "adapter_config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"config": about["config"] | {"leave_out": [7]}}))
    model = model_of("bert")
    with pytest.raises(deltatune.DeltatuneError, match="names block 7"):
        deltatune.load(model, folder)
    deltatune.load(model, HERE / "bert" / "seq_bn", name="a")  # the name is free


def test_a_fusion_without_one_of_its_adapters_says_which(tmp_path):
    shutil.copytree(HERE / "bert" / "fusion", tmp_path / "setup")
    shutil.rmtree(tmp_path / "setup" / "b")
    with pytest.raises(deltatune.DeltatuneError, match="fuses adapter 'b'"):
        deltatune.load(model_of("bert"), tmp_path / "setup" / "a,b,c")


def test_a_computed_prefix_is_folded_and_written_flat(tmp_path):
    adapter = deltatune.load(model_of("bert"), HERE / "bert" / "prefix_tuning")
    assert adapter.trainable_parameters == 2 * 2 * 3 * 32
    model = model_of("bert")
    deltatune.load(model, written(adapter, "bert", tmp_path / "out"))
    assert off(model, "bert", "prefix_tuning") <= 5e-6


def test_prefixes_of_t5_mean_something_else_and_are_refused_both_ways(tmp_path):
    """`adapters` counts the prefix into T5's relative positions: a token is P away from itself."""
    model = model_of("t5")
    with pytest.raises(deltatune.DeltatuneError, match="relative positions"):
        deltatune.load(model, HERE / "t5" / "prefix_tuning_flat")
    adapter = deltatune.attach(model, deltatune.method("prefix"))
    with pytest.raises(deltatune.DeltatuneError, match="relative positions"):
        written(adapter, "t5", tmp_path / "out")


def test_a_parallel_adapter_that_reads_before_the_norm_is_refused_both_ways(tmp_path):
    model = model_of("t5")
    with pytest.raises(deltatune.DeltatuneError, match="before the norm"):
        deltatune.load(model, HERE / "t5" / "par_bn")
    adapter = deltatune.attach(model, deltatune.method("adapter", placement="parallel"))
    with pytest.raises(deltatune.DeltatuneError, match="before the norm"):
        written(adapter, "t5", tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "adapter", "train_layernorm": True}, "train_layernorm"),
        ({"type": "adapter", "use_gating": True}, "use_gating"),
        ({"type": "adapter", "ln_after": True, "scaling": 2.0}, "ln_after"),
        ({"type": "lora", "target_modules": "attention"}, "query, key, value, up and down"),
        ({"type": "lora", "target_modules": "attention.query", "use_rslora": True}, "use_rslora"),
        ({"type": "ia3"}, "outputs alone"),
        ({"type": "prompt"}, "pool_index=first"),
        ({"type": "prefix", "use_gating": True}, "use_gating=false"),
        ({"type": "prefix", "position_offset": 3}, "position_offset=0"),
        ({"type": "bitfit"}, "not written for bitfit"),
    ],
)
def test_what_the_format_has_no_word_for_is_not_written(tmp_path, settings, message):
    adapter = deltatune.attach(model_of("bert"), deltatune.method(settings))
    with pytest.raises(deltatune.DeltatuneError, match=message):
        written(adapter, "bert", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_refused_and_the_way_out_is_named(tmp_path):
    folder = spoilt(tmp_path)
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    with pytest.raises(deltatune.DeltatuneError, match=r"pickle.*use_safetensors=True"):
        deltatune.load(model_of("bert"), folder)


def test_missing_foreign_and_misshapen_tensors_are_refused(tmp_path):
    tensors = load_file(HERE / "bert" / "seq_bn" / "adapter.safetensors")
    first = min(tensors)
    broken = {
        "is missing": {key: tensor for key, tensor in tensors.items() if key != first},
        "has no place in this model": {**tensors, first.replace(".0.", ".7.", 1): torch.zeros(8)},
        "another shape": {**tensors, first: torch.zeros(3)},
    }
    for message, changed in broken.items():
        folder = spoilt(tmp_path / message.replace(" ", "-"))
        save_file(changed, folder / "adapter.safetensors")
        with pytest.raises(deltatune.DeltatuneError, match=message):
            deltatune.load(model_of("bert"), folder)


def test_a_head_of_the_libraries_own_kind_is_left_out_with_a_word(tmp_path, caplog):
    folder = spoilt(tmp_path, "bert/with_head")
    save_file({"heads.task.1.weight": torch.zeros(3, 32)}, folder / "model_head.safetensors")
    assert deltatune.load(model_of("bert"), folder).method.modules_to_save is None
    assert "it is not loaded" in caplog.text


def test_folders_of_other_formats_are_not_taken_for_adapterhub(tmp_path):
    adapter = deltatune.attach(model_of("bert"), deltatune.method("lora"))
    assert not adapterhub.is_folder(adapter.save(tmp_path / "ours"))
    assert not adapterhub.is_folder(tmp_path / "nowhere")
