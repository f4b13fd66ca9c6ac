"""The map of 43 model families, against names written down by hand."""

import copy

import pytest
import torch
from torch import nn

import deltatune
from deltatune.core.errors import SettingsError
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.describe import describe
from deltatune.engine.roster import keep_map
from models import LAYERS, NAMES, tiny

QKV = ("query", "key", "value")


def parts(prefix, query, key, value, output, *feed_forward):
    """Expected roles of a block: attention under a prefix, then `role=path` words."""
    found = {
        f"{prefix}{n}": f"attention.{r}" for n, r in zip((query, key, value, output), (*QKV, "output"), strict=True)
    }
    return found | dict(reversed(word.split("=")) for word in feed_forward)


BERT = parts(
    "attention.",
    "self.query",
    "self.key",
    "self.value",
    "output.dense",
    "mlp.up=intermediate.dense",
    "mlp.down=output.dense",
)
LLAMA = parts(
    "self_attn.",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "mlp.gate=mlp.gate_proj",
    "mlp.up=mlp.up_proj",
    "mlp.down=mlp.down_proj",
)
VIT = parts("attention.", "q_proj", "k_proj", "v_proj", "o_proj", "mlp.up=mlp.fc1", "mlp.down=mlp.fc2")
BART = parts("self_attn.", "q_proj", "k_proj", "v_proj", "out_proj", "mlp.up=fc1", "mlp.down=fc2")
CROSS = {
    f"encoder_attn.{n}": f"cross_attention.{r}"
    for n, r in zip(("q_proj", "k_proj", "v_proj", "out_proj"), (*QKV, "output"), strict=True)
}
DETR = parts("self_attn.", "q_proj", "k_proj", "v_proj", "o_proj", "mlp.up=mlp.fc1", "mlp.down=mlp.fc2")
SPEECH = parts(
    "attention.",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "mlp.up=feed_forward.intermediate_dense",
    "mlp.down=feed_forward.output_dense",
)

EXPECTED = {
    "bert": {"encoder": BERT},
    "roberta": {"encoder": BERT},
    "camembert": {"encoder": BERT},
    "electra": {"encoder": BERT},
    "esm": {"encoder": BERT},
    "albert": {"encoder": parts("attention.", *QKV, "dense", "mlp.up=ffn", "mlp.down=ffn_output")},
    "xlnet": {
        "model": parts("rel_attn.", "q", "k", "v", "o", "mlp.up=ff.layer_1", "mlp.down=ff.layer_2")
        | {"rel_attn.r": "other"}
    },
    "distilbert": {
        "model": parts("attention.", "q_lin", "k_lin", "v_lin", "out_lin", "mlp.up=ffn.lin1", "mlp.down=ffn.lin2")
    },
    "deberta-v2": {
        "encoder": parts(
            "attention.",
            "self.query_proj",
            "self.key_proj",
            "self.value_proj",
            "output.dense",
            "mlp.up=intermediate.dense",
            "mlp.down=output.dense",
        )
        | {"attention.self.pos_key_proj": "other", "attention.self.pos_query_proj": "other"}
    },
    "mpnet": {
        "encoder": parts("attention.attn.", "q", "k", "v", "o", "mlp.up=intermediate.dense", "mlp.down=output.dense")
    },
    "modernbert": {
        "model": {
            "attn.Wqkv": "attention.query",
            "attn.Wo": "attention.output",
            "mlp.Wi": "mlp.gate",
            "mlp.Wo": "mlp.down",
        }
    },
    "gpt2": {
        "model": {
            "attn.c_attn": "attention.query",
            "attn.c_proj": "attention.output",
            "mlp.c_fc": "mlp.up",
            "mlp.c_proj": "mlp.down",
        }
    },
    "gpt-neox": {
        "model": {
            "attention.query_key_value": "attention.query",
            "attention.dense": "attention.output",
            "mlp.dense_h_to_4h": "mlp.up",
            "mlp.dense_4h_to_h": "mlp.down",
        }
    },
    **{
        name: {
            "model": {
                "self_attention.query_key_value": "attention.query",
                "self_attention.dense": "attention.output",
                "mlp.dense_h_to_4h": "mlp.up",
                "mlp.dense_4h_to_h": "mlp.down",
            }
        }
        for name in ("bloom", "falcon")
    },
    "opt": {"decoder": BART},
    "phi3": {
        "model": {
            "self_attn.qkv_proj": "attention.query",
            "self_attn.o_proj": "attention.output",
            "mlp.gate_up_proj": "mlp.gate",
            "mlp.down_proj": "mlp.down",
        }
    },
    "llama": {"model": LLAMA},
    "mistral": {"model": LLAMA},
    "qwen3": {"model": LLAMA},
    "gemma3": {"model": LLAMA},
    "qwen3-moe": {
        "model": {
            **{k: r for k, r in LLAMA.items() if "mlp" not in k},
            "mlp.experts.gate_up_proj": "mlp.gate",
            "mlp.experts.down_proj": "mlp.down",
        }
    },
    "mamba": {"model": {f"mixer.{n}": "other" for n in ("in_proj", "x_proj", "dt_proj", "out_proj", "conv1d")}},
    "t5": {
        "encoder": parts(
            "layer.0.SelfAttention.",
            "q",
            "k",
            "v",
            "o",
            "mlp.up=layer.1.DenseReluDense.wi",
            "mlp.down=layer.1.DenseReluDense.wo",
        ),
        "decoder": parts(
            "layer.0.SelfAttention.",
            "q",
            "k",
            "v",
            "o",
            "mlp.up=layer.2.DenseReluDense.wi",
            "mlp.down=layer.2.DenseReluDense.wo",
        )
        | {
            f"layer.1.EncDecAttention.{n}": f"cross_attention.{r}"
            for n, r in zip("qkvo", (*QKV, "output"), strict=True)
        },
    },
    **{
        name: {"encoder": BART, "decoder": BART | CROSS}
        for name in ("bart", "mbart", "marian", "whisper", "time-series-transformer")
    },
    "vit": {"model": VIT},
    "dinov2": {"encoder": VIT},
    "beit": {"model": VIT},
    "ast": {"model": VIT},
    "swin": {"encoder": VIT},
    "segformer": {"model": VIT},
    "clip": {
        f"{n}_model.encoder.layers": parts(
            "self_attn.", "q_proj", "k_proj", "v_proj", "out_proj", "mlp.up=mlp.fc1", "mlp.down=mlp.fc2"
        )
        for n in ("text", "vision")
    },
    "detr": {"encoder": DETR, "decoder": DETR | {k.replace("out_proj", "o_proj"): r for k, r in CROSS.items()}},
    "rt-detr": {
        "encoder": DETR,
        "decoder": DETR
        | {
            "encoder_attn.value_proj": "cross_attention.value",
            "encoder_attn.output_proj": "cross_attention.output",
            "encoder_attn.sampling_offsets": "other",
            "encoder_attn.attention_weights": "other",
        },
    },
    "yolos": {
        "encoder": parts(
            "attention.",
            "attention.query",
            "attention.key",
            "attention.value",
            "output.dense",
            "mlp.up=intermediate.dense",
            "mlp.down=output.dense",
        )
    },
    "wav2vec2": {"encoder": SPEECH},
    "hubert": {"encoder": SPEECH},
    "patchtst": {
        "encoder": parts("self_attn.", "q_proj", "k_proj", "v_proj", "out_proj", "mlp.up=ff.0", "mlp.down=ff.3")
    },
    "torch": {
        "encoder": {
            "self_attn.in_proj_weight": "attention.query",
            "self_attn.out_proj": "attention.output",
            "linear1": "mlp.up",
            "linear2": "mlp.down",
        }
    },
}
BLOCKS = {"albert": 1, "swin": 4, ("rt-detr", "encoder"): 1}
PACKED = {
    "gpt2": "attn.c_attn",
    "gpt-neox": "attention.query_key_value",
    "bloom": "self_attention.query_key_value",
    "falcon": "self_attention.query_key_value",
    "phi3": "self_attn.qkv_proj",
    "modernbert": "attn.Wqkv",
    "torch": "self_attn.in_proj_weight",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_map_of_a_block_has_its_role(name):
    anatomy = Anatomy.of(tiny(name))
    found = {}
    for stack in anatomy.stacks:
        inside = [layer for layer in anatomy.every_layer if (layer.stack, layer.block) == (stack.name, 0)]
        found[stack.name] = {
            layer.path.removeprefix(f"{stack.blocks[0]}."): layer.role
            for layer in inside
            if layer.kind not in ("conv", "embedding") or name == "mamba"
        }
        assert len(stack.blocks) == BLOCKS.get((name, stack.name), BLOCKS.get(name, LAYERS))
    expected = {stack: {p: r for p, r in roles.items() if r} for stack, roles in EXPECTED[name].items()}
    assert found == expected


@pytest.mark.parametrize("name", PACKED)
def test_packed_projections_know_their_parts(name):
    anatomy = Anatomy.of(tiny(name))
    for part in QKV:
        (first, *_) = anatomy.layers(f"attention.{part}")
        assert first.path.endswith(PACKED[name])
        assert first.packed == QKV


def test_a_fused_gate_knows_its_parts():
    for name in ("phi3", "modernbert", "qwen3-moe"):
        assert Anatomy.of(tiny(name)).layers("mlp.up")[0].packed == ("gate", "up")


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_weights(name):
    model = tiny(name)
    anatomy = Anatomy.of(model)
    for layer in anatomy.every_layer:
        module_path, _, last = layer.path.rpartition(".")
        owner = model.get_submodule(module_path if layer.kind == "tensor" else layer.path)
        weight = owner._parameters[last if layer.kind == "tensor" else "weight"]
        size = layer.in_features * layer.out_features * max(1, layer.copies)
        assert weight.numel() == size * int(torch.tensor(layer.kernel).prod() if layer.kernel else 1)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_listed_once_and_all(name):
    model = tiny(name)
    sites = Anatomy.of(model).parameters()
    assert [site.path for site in sites] == [path for path, _ in model.named_parameters()]
    for site in sites:
        for other in site.tied:
            module, _, last = other.rpartition(".")
            assert model.get_submodule(module)._parameters[last] is dict(model.named_parameters())[site.path]


def test_tied_weights_are_seen():
    (embedding,) = [s for s in Anatomy.of(tiny("gpt2")).parameters() if s.path == "transformer.wte.weight"]
    assert embedding.tied == ("lm_head.weight",) and embedding.in_head
    (head,) = Anatomy.of(tiny("gpt2")).layers("lm_head")
    assert head.tied == ("transformer.wte.weight",)


def test_a_copied_map_knows_the_tensors_of_the_copied_model():
    anatomy = Anatomy.of(tiny("gpt2"))
    layers = anatomy.layers("all-linear")
    twin = copy.deepcopy(anatomy)
    assert twin.layers("all-linear") == layers and twin.parameters() == anatomy.parameters()


def test_a_kept_map_serves_the_next_adapter():
    model = tiny("bert")
    keep_map(model)
    places = []
    for _ in range(2):
        adapter = deltatune.attach(model, deltatune.method("adapter"))
        places.append(adapter.roster.anatomy)
        sites = list(adapter.attached.sites)
        adapter.detach()
    assert places[0] is places[1]
    assert sites == list(deltatune.attach(tiny("bert"), deltatune.method("adapter")).attached.sites)


def test_heads_are_what_stands_outside_the_backbone():
    expected = {
        "bert": ("classifier",),
        "gpt2": ("lm_head",),
        "t5": ("lm_head",),
        "distilbert": ("pre_classifier", "classifier"),
        "vit": ("classifier",),
        "wav2vec2": ("lm_head",),
        "clip": (),
        "torch": ("classifier",),
        "detr": ("class_labels_classifier", "bbox_predictor"),
    }
    assert {name: Anatomy.of(tiny(name)).heads for name in expected} == expected


def test_stacked_experts_are_layers_with_copies():
    layers = Anatomy.of(tiny("qwen3-moe")).layers("*.experts.*")
    assert [(l.kind, l.copies, l.out_features, l.in_features) for l in layers[:2]] == [
        ("tensor", 4, 32, 32),
        ("tensor", 4, 32, 16),
    ]


def test_experts_stored_the_other_way_round_are_transposed():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.zeros(4, 8, 24))
            self.down_proj = nn.Parameter(torch.zeros(4, 12, 8))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.experts = nn.LayerNorm(8), Experts()

    layers = Anatomy.of(nn.ModuleList([Block(), Block()])).layers("all-linear")
    assert [(l.in_features, l.out_features, l.transposed) for l in layers[:2]] == [(8, 24, True), (12, 8, True)]


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 14),
        ("attention", 8),
        ("attention.query", 2),
        ("mlp", 6),
        ("q_proj", 2),
        ("*.0.*", 7),
        (("q_proj", "mlp.down"), 4),
        ("model.layers.1.mlp.up_proj", 1),
        ("head", 1),
        ("embeddings", 1),
    ],
)
def test_targets_are_roles_names_globs_and_paths(targets, count):
    assert len(Anatomy.of(tiny("llama")).layers(targets)) == count


def test_excluded_layers_are_left_out():
    anatomy = Anatomy.of(tiny("llama"))
    assert len(anatomy.layers("all-linear", "mlp")) == 8


@pytest.mark.parametrize(
    ("name", "target", "hint"),
    [
        ("llama", "q_prj", "q_proj"),
        ("bert", "q_proj", "query|value|known"),
        ("mamba", "attention", "known|in_proj"),
        ("gpt2", "query", "attention.query"),
        ("llama", "atention", "attention"),
    ],
)
def test_a_target_that_matches_nothing_lists_near_names(name, target, hint):
    with pytest.raises(SettingsError, match=rf"'{target}' matches nothing.*({hint})"):
        Anatomy.of(tiny(name)).layers(target)


def test_all_linear_works_without_attention():
    assert len(Anatomy.of(tiny("mamba")).layers("all-linear")) == 4 * LAYERS


def test_the_description_counts_every_parameter():
    for name in ("bert", "t5", "qwen3-moe", "swin"):
        model = tiny(name)
        found = describe(Anatomy.of(model))
        assert found["parameters"] == sum(p.numel() for p in model.parameters())
        assert all(row["parameters"] > 0 for stack in found["stacks"] for row in stack["layers"])
