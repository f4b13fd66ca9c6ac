"""Names of tensors in AdapterHub folders (`adapters` 1.3.0), and ours.

    <place>.adapters.<name>.adapter_down.0.weight            a bottleneck; a place belongs to one sublayer of one block
    <place>.adapter_fusion_layer.<a,b,c>.query.weight        a fusion
    <layer path>.loras.<name>.lora_A                         LoRA
    <backbone>.prompt_tuning.prompt_tunings.<name>.prompt_embedding.weight
    <backbone>.shared_parameters.<name>.phm_rule             the rule that all Compacter layers share

Families differ in what a place is called, and transformers has renamed modules since 4.57 (ViT), so a name is read by
what it means: whether it is in a decoder, which block, which sublayer.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltatune.core.errors import AdapterError
from deltatune.core.site import Site, SublayerSite

BERT = ("bert", "roberta", "xlm-roberta", "electra", "bert-generation", "deberta", "deberta-v2", "xmod")
PLACES: Mapping[str, Mapping[str, str]] = {
    **{
        kind: {"attention": "attention.output", "cross_attention": "crossattention.output", "mlp": "output"}
        for kind in BERT
    },
    "t5": {"attention": "layer.0", "cross_attention": "layer.1", "mlp": "layer.1"},
    "mt5": {"attention": "layer.0", "cross_attention": "layer.1", "mlp": "layer.1"},
    "vit": {"attention": "attention_adapters", "mlp": "output.output_adapters"},
}
"""Where in a block the adapters of a sublayer are, by model type."""
ELSEWHERE = {
    "attention": "attention_adapters",
    "cross_attention": "cross_attention_adapters",
    "mlp": "output_adapters",
}
"""The same for all other model types."""
T5_DECODER_MLP = "layer.2"
"""Behind the cross-attention."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "vit": {
        ".layers.": ".encoder.layer.",
        ".attention.q_proj": ".attention.attention.query",
        ".attention.k_proj": ".attention.attention.key",
        ".attention.v_proj": ".attention.attention.value",
        ".mlp.fc1": ".intermediate.dense",
        ".mlp.fc2": ".output.dense",
    },
}
"""Paths of today -> paths of transformers 4.57."""

BOTTLENECK = {
    "adapter_down.0.weight": "down_weight",
    "adapter_down.0.bias": "down_bias",
    "adapter_up.weight": "up_weight",
    "adapter_up.bias": "up_bias",
    "scaling": "scaling",
    "adapter_norm_after.weight": "norm.weight",
    "adapter_norm_after.bias": "norm.bias",
}
COMPACTER = {
    "adapter_down.0.W_left": "down_left",
    "adapter_down.0.W_right": "down_right",
    "adapter_down.0.b": "down_bias",
    "adapter_up.W_left": "up_left",
    "adapter_up.W_right": "up_right",
    "adapter_up.b": "up_bias",
}
FUSION = {
    "query.weight": "query_weight",
    "query.bias": "query_bias",
    "key.weight": "key_weight",
    "key.bias": "key_bias",
    "value.weight": "value_weight",
}
LORA = {"lora_A": "lora_A", "lora_B": "lora_B"}
IA3 = {"lora_B": "scale"}
TENSORS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "adapter": ("adapters", BOTTLENECK),
    "compacter": ("adapters", COMPACTER),
    "adapter-fusion": ("adapter_fusion_layer", FUSION),
    "lora": ("loras", LORA),
    "ia3": ("loras", IA3),
}
"""Method -> the container in a place, and their names of tensors -> ours."""

KEY = re.compile(
    r"(?P<place>.+?)\.(?P<kind>adapters|adapter_fusion_layer|loras|prompt_tunings|prefix_tunings"
    r"|(?:attention|layer)_text_(?:task|lang)_adapters)"
    r"\.(?P<name>[^.]+)\.(?P<tensor>.+)"
)
"""Before 2.0 the container had other names."""
RULE = re.compile(r"(?:.+\.)?shared_parameters\.(?P<name>[^.]+)\.phm_rule")
BLOCK = re.compile(r"(?P<stack>(?:.+?\.)?[A-Za-z_]+)\.(?P<block>\d+)\.(?P<rest>.+)")


class Address(NamedTuple):
    """What a path means, whatever stands in front of the blocks."""

    decoder: bool
    block: int
    rest: str


def address(path: str) -> Address | None:
    """The address of a path; None outside the blocks.

    >>> address("bert.encoder.layer.3.attention.output")
    Address(decoder=False, block=3, rest='attention.output')
    """
    found = BLOCK.fullmatch(path)
    if found is None:
        return None
    return Address("decoder" in found["stack"].split("."), int(found["block"]), found["rest"])


def role_of(place: Address) -> str | None:
    """The sublayer whose adapters are in a place; None when no family has this place."""
    if place.rest.startswith("layer."):  # T5 counts its sublayers
        return {"layer.0": "attention", "layer.1": "cross_attention" if place.decoder else "mlp"}.get(place.rest, "mlp")
    for places in (*PLACES.values(), ELSEWHERE):
        for role, rest in places.items():
            if rest == place.rest:
                return role
    return None


def older(path: str, model_type: str) -> str:
    """A module path as transformers 4.57 had it.

    >>> older("vit.layers.0.attention.q_proj", "vit")
    'vit.encoder.layer.0.attention.attention.query'
    """
    for new, old in RENAMED.get(model_type, {}).items():
        path = path.replace(new, old)
    return path


def newer(path: str, model_type: str) -> str:
    """The inverse of `older`."""
    for new, old in RENAMED.get(model_type, {}).items():
        path = path.replace(old, new)
    return path


def ours_to_file(
    tensors: Mapping[str, Tensor], sites: Sequence[Site], kind: str, name: str, model_type: str
) -> dict[str, Tensor]:
    """The tensors of an adapter of this method type, under the names of the file."""
    container, names = TENSORS[kind]
    found: dict[str, Tensor] = {}
    for site in sites:
        place = f"{place_of(site, model_type)}.{container}.{name}"
        for theirs, ours in names.items():
            if f"{site.path}.{ours}" in tensors:
                tensor = tensors[f"{site.path}.{ours}"]
                found[f"{place}.{theirs}"] = tensor.unsqueeze(1) if kind == "ia3" else tensor
    if "shared.phm_rule" in tensors:
        found[f"{backbone(sites[0].path)}shared_parameters.{name}.phm_rule"] = tensors["shared.phm_rule"]
    return found


def file_to_ours(tensors: Mapping[str, Tensor], sites: Sequence[Site], kind: str) -> dict[str, Tensor]:
    """The tensors of a file under our names; raises `AdapterError` for tensors that have no place in this model."""
    _, names = TENSORS[kind]
    paths = {meaning: site.path for site in sites for meaning in _meanings(site)}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if kind == "compacter" and RULE.fullmatch(key):
            ours = "shared.phm_rule"
        elif match and match["tensor"] in names and _meant(match["place"], kind) in paths:
            ours = f"{paths[_meant(match['place'], kind)]}.{names[match['tensor']]}"
        else:
            ours = None
        if ours is None or ours in found:
            raise AdapterError(
                f"adapter tensor {key} has no place in this model", hint="the adapter was made for another base"
            )
        found[ours] = tensor.flatten() if kind == "ia3" else tensor
    return found


def belongs(key: str, architecture: str | None) -> bool:
    """Whether a tensor is one of an architecture's."""
    match = KEY.fullmatch(key)
    kinds = {"lora": "loras", "prompt_tuning": "prompt_tunings", "prefix_tuning": "prefix_tunings"}
    if match is not None:
        return match["kind"] == kinds.get(architecture or "", "adapters")
    return architecture is None and RULE.fullmatch(key) is not None


def packed(tensors: Mapping[str, Tensor], rank: int) -> list[str]:
    """Places whose LoRA is several in one, for parts of a fused projection (GPT-2)."""
    found = ((KEY.fullmatch(key), tensor) for key, tensor in tensors.items())
    return [
        match["place"]
        for match, tensor in found
        if match and match["place"].endswith(".c_attn") and match["tensor"] == "lora_A" and tensor.shape[:1] != (rank,)
    ]


def unpacked(tensors: Mapping[str, Tensor], rank: int, matrices: Sequence[str]) -> dict[str, Tensor]:
    """The same tensors with one LoRA per fused projection: A stays, B [n O, R] becomes [3 O, n R] with zeros between.

    Its rank is n times as large; `matrices` are the parts it changes, of q, k, v.
    """
    found = dict(tensors)
    places, parts = packed(tensors, rank), [part for part in "qkv" if part in matrices]
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match and match["place"] in places and match["tensor"] == "lora_B":
            _check_parts(key, tensor, parts, columns=rank)
            whole = tensor.new_zeros(3, len(tensor) // len(parts), len(parts), rank)
            for index, (part, own) in enumerate(zip(parts, tensor.chunk(len(parts)), strict=True)):
                whole["qkv".index(part), :, index] = own
            found[key] = whole.flatten(2).flatten(0, 1)
    return found


def unpacked_scales(tensors: Mapping[str, Tensor], matrices: Sequence[str]) -> dict[str, Tensor]:
    """The same tensors with one scale per fused projection of GPT-2: 1 for the parts it leaves alone."""
    found = dict(tensors)
    parts = [part for part in "qkv" if part in matrices]
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match and match["place"].endswith(".c_attn"):
            _check_parts(key, tensor, parts, columns=1)
            own = dict(zip(parts, tensor.chunk(len(parts)), strict=True))
            found[key] = torch.cat([own.get(part, torch.ones_like(own[parts[0]])) for part in "qkv"])
    return found


def _check_parts(key: str, tensor: Tensor, parts: Sequence[str], columns: int) -> None:
    shape = list(tensor.shape)
    if not parts or len(shape) != 2 or shape[1] != columns or not shape[0] or shape[0] % len(parts):
        raise AdapterError(f"adapter tensor {key} has a shape {shape} that does not fit the parts {', '.join(parts)}")


def lora_places(keys: Iterable[str]) -> list[str]:
    """The layers that the LoRA tensors of a file belong to."""
    return sorted({match["place"] for key in keys if (match := KEY.fullmatch(key)) and match["kind"] == "loras"})


def glob_of(place: str, model_type: str) -> str:
    """A glob for the layer of a place, whatever the backbone is called.

    >>> glob_of("bert.encoder.layer.0.attention.self.query", "bert")
    '*encoder.layer.0.attention.self.query'
    """
    path = newer(place, model_type)
    found = BLOCK.fullmatch(path)
    if found is None:
        return path
    steps = found["stack"].split(".")
    tail = steps[-2:] if steps[-2:][0] in ("encoder", "decoder") else steps[-1:]
    return f"*{'.'.join(tail)}.{found['block']}.{found['rest']}"


def place_of(site: Site, model_type: str) -> str:
    """Where the tensors of a site are in a file; raises `AdapterError` when the family has no such place."""
    path = older(site.path, model_type)
    found = BLOCK.fullmatch(path)
    if not isinstance(site, SublayerSite):
        return path
    rest = PLACES.get(model_type, ELSEWHERE).get(site.role)
    if found is None or rest is None:
        raise AdapterError(f"AdapterHub folders have no place for the {site.role} output {site.path} of {model_type}")
    if rest == "layer.1" and site.role == "mlp" and site.stack == "decoder":
        rest = T5_DECODER_MLP
    return f"{found['stack']}.{found['block']}.{rest}"


def backbone(path: str) -> str:
    """What stands in front of the stacks, with its dot.

    >>> backbone("bert.encoder.layer.0.output.dropout"), backbone("encoder.block.0.layer.0.dropout")
    ('bert.', '')
    """
    found = BLOCK.fullmatch(path)
    steps = found["stack"].split(".")[:-1] if found else []
    if steps and (steps[-1] in ("encoder", "decoder") or steps[1:] == ["transformer"]):
        steps = steps[:-1]
    return "".join(f"{step}." for step in steps)


def _meanings(site: Site) -> list[Address | None]:
    """The addresses a site answers to, today's and those of 4.57."""
    own = address(site.path)
    if own and isinstance(site, SublayerSite):
        return [own._replace(rest=site.role)]
    return [address(older(site.path, model_type)) for model_type in ("", *RENAMED)]


def _meant(place: str, kind: str) -> Address | None:
    found = address(place)
    return found._replace(rest=role_of(found) or "") if found and kind not in ("lora", "ia3") else found
