"""The words that name layers and parameters."""

import pytest

from deltatune.core.errors import SettingsError
from deltatune.engine.anatomy import Anatomy
from models import LAYERS, tiny


def paths(name, targets, exclude=None):
    return [layer.path for layer in Anatomy.of(tiny(name)).layers(targets, exclude)]


def test_a_last_name_matches_whole_steps_only():
    assert len(paths("llama", "q_proj")) == LAYERS
    assert len(paths("llama", "self_attn.q_proj")) == LAYERS
    with pytest.raises(SettingsError):
        paths("llama", "proj")


def test_a_glob_without_a_star_in_front_starts_at_the_root():
    assert paths("llama", "model.layers.*.self_attn.q_proj") == [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    with pytest.raises(SettingsError):
        paths("llama", "layers.*.q_proj")


def test_regular_expressions_are_no_targets():
    with pytest.raises(SettingsError, match="matches nothing"):
        paths("llama", r".*\.(q|v)_proj")


@pytest.mark.parametrize(("name", "words"), [("gpt2", "attention.key"), ("phi3", "mlp.up"), ("qwen3-moe", "mlp.up")])
def test_a_part_of_a_packed_layer_names_the_whole_layer(name, words):
    assert len(paths(name, words)) == LAYERS


def test_all_linear_leaves_out_heads_embeddings_convolutions_and_routers():
    for name in ("bert", "segformer", "mamba", "qwen3-moe"):
        for layer in Anatomy.of(tiny(name)).layers("all-linear"):
            assert layer.block is not None
            assert layer.kind in ("linear", "conv1d", "tensor")


def test_encoder_and_cross_attention_are_named_apart():
    assert len(paths("t5", "attention")) == 2 * LAYERS * 4
    assert len(paths("t5", "cross_attention")) == LAYERS * 4
    assert all("EncDecAttention" in path for path in paths("t5", "cross_attention"))
    assert len(paths("t5", "decoder.*.q")) == 2 * LAYERS


def test_layers_come_in_the_order_of_the_model_whatever_the_order_of_words():
    assert paths("llama", ["down_proj", "q_proj"]) == paths("llama", ["q_proj", "down_proj"])


def test_an_exclusion_that_leaves_nothing_is_an_error():
    with pytest.raises(SettingsError, match="leaves nothing"):
        paths("llama", "q_proj", "attention")


def test_an_exclusion_that_matches_nothing_is_an_error():
    with pytest.raises(SettingsError, match="exclude_modules 'vision'"):
        paths("llama", "all-linear", "vision")


@pytest.mark.parametrize("targets", [(), []])
def test_no_target_at_all_is_an_error(targets):
    with pytest.raises(SettingsError, match="empty"):
        paths("llama", targets)


# -- parameters


@pytest.mark.parametrize(
    ("name", "role", "count"),
    [
        ("bert", "norm", 2 + 4 * LAYERS),
        ("llama", "norm", 1 + 2 * LAYERS),
        ("bert", "head", 2),
        ("gpt2", "embedding", 2),
    ],
)
def test_parameters_by_role(name, role, count):
    assert len(Anatomy.of(tiny(name)).parameters([role])) == count


def test_parameters_inside_a_module_by_name_role_and_path():
    anatomy = Anatomy.of(tiny("bert"))
    assert {site.path for site in anatomy.parameters(targets="classifier")} == {"classifier.weight", "classifier.bias"}
    assert anatomy.parameters(targets="head") == anatomy.parameters(targets="classifier")
    assert len(anatomy.parameters(["bias"], "attention.query")) == LAYERS
    assert [site.path for site in anatomy.parameters(targets="classifier.bias")] == ["classifier.bias"]


def test_a_tied_head_is_found_under_the_name_of_its_twin():
    (site,) = Anatomy.of(tiny("gpt2")).parameters(targets="lm_head")
    assert (site.path, site.tied) == ("transformer.wte.weight", ("lm_head.weight",))


def test_parameters_of_an_unknown_module_list_near_names():
    with pytest.raises(SettingsError, match=r"'clasifier' names no module.*did you mean classifier"):
        Anatomy.of(tiny("bert")).parameters(targets="clasifier")
