"""Virtual tokens in AdapterHub folders (`adapters` 1.3.0), and ours.

    <backbone>.prompt_tuning.prompt_tunings.<name>.prompt_embedding.weight      [P, D], behind the embeddings
    <backbone>.prefix_tuning.prefix_tunings.<name>.self_prefix.control_trans    [P, L, 2, H, K] in a row

A prefix is saved again under every attention module, and unless it is flat as the perceptron that computes it: it is
folded here. Real tokens keep their positions behind it. A head that pools the first position sees the first virtual
token of a prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltatune.core.bottleneck import NON_LINEARITIES
from deltatune.core.errors import AdapterError
from deltatune.core.method import Method
from deltatune.core.prefix import PrefixMethod
from deltatune.core.prompt import PROMPT, PromptMethod
from deltatune.core.site import AttentionSite, InputSite, Site
from deltatune.store.adapterhub_keys import KEY, backbone

PROMPT_CONFIG: Mapping[str, Any] = {
    "architecture": "prompt_tuning",
    "combine": "prefix",
    "init_weights_seed": None,
    "prompt_init": "random_uniform",
    "prompt_init_text": None,
    "prompt_length": 10,
}
"""Every key of `PromptTuningConfig`."""
PREFIX_CONFIG: Mapping[str, Any] = {
    "architecture": "prefix_tuning",
    "bottleneck_size": 512,
    "cross_prefix": True,
    "dropout": 0.0,
    "encoder_prefix": True,
    "flat": False,
    "init_weights_seed": None,
    "leave_out": [],
    "non_linearity": "tanh",
    "prefix_length": 30,
    "shared_gating": True,
    "use_gating": False,
}
"""Every key of `PrefixTuningConfig`."""
WEIGHT, FLAT = "prompt_embedding.weight", "control_trans"


# -- settings


def prompt_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of prompt tuning; raises `AdapterError` for a prompt behind the first token."""
    if values["combine"] != "prefix":
        raise AdapterError(f"adapter_config.json: combine={values['combine']!r} is not supported, only 'prefix'")
    return {
        "num_virtual_tokens": values["prompt_length"],
        "prompt_site": "post_embedding",
        "pool_index": "first",
        "prompt_tuning_init": "random",
    }


def check_family(model_type: str) -> None:
    """Raises `AdapterError` for prefixes of a model with relative positions."""
    if model_type in ("t5", "mt5"):
        raise AdapterError(
            f"`adapters` moves the relative positions of {model_type} by the length of a prefix; here it has none"
        )


def prefix_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of prefix tuning; raises `AdapterError` for gates, and for blocks without a prefix."""
    for key in ("use_gating", "leave_out"):
        if values[key]:
            raise AdapterError(f"adapter_config.json: {key}={values[key]!r} is not supported in a prefix")
    kinds = {"encoder": values["encoder_prefix"], "decoder": True, "cross": values["cross_prefix"]}
    return {
        "num_virtual_tokens": values["prefix_length"],
        "attentions": tuple(kind for kind, on in kinds.items() if on),
        "prefix_dropout": values["dropout"],
        "position_offset": 0,
    }


def prompt_config(method: PromptMethod) -> dict[str, Any]:
    """The config of AdapterHub; raises `AdapterError` where its prompts are not ours."""
    if method.prompt_site != "post_embedding" or method.pool_index != "first":
        raise AdapterError("AdapterHub's prompts need prompt_site=post_embedding and pool_index=first")
    return {**PROMPT_CONFIG, "prompt_length": method.num_virtual_tokens}


def prefix_config(method: PrefixMethod) -> dict[str, Any]:
    """The config of AdapterHub; raises `AdapterError` where its prefixes are not ours."""
    if method.use_gating or method.position_offset != 0 or "decoder" not in method.attentions:
        raise AdapterError("AdapterHub's prefixes need use_gating=false, position_offset=0 and `decoder` in attentions")
    return {
        **PREFIX_CONFIG,
        "encoder_prefix": "encoder" in method.attentions,
        "cross_prefix": "cross" in method.attentions,
        "dropout": method.prefix_dropout,
        "flat": True,
        "prefix_length": method.num_virtual_tokens,
    }


# -- tensors


def flat(tensors: Mapping[str, Tensor], non_linearity: str) -> dict[str, Tensor]:
    """The prefixes of a file, each once and computed: `<anything>.<group>.control_trans`."""
    found = {}
    matches = {key: match for key in tensors if (match := KEY.fullmatch(key))}
    first = {match["tensor"]: tensors[key] for key, match in matches.items() if not match["place"].endswith(".pool")}
    for key, tensor in tensors.items():
        match = matches.get(key)
        if match and match["place"].endswith(".pool"):
            if match["tensor"] not in first or not torch.equal(first[match["tensor"]], tensor):
                raise AdapterError(f"adapter tensor {key} differs in shape or values from its other copy")
            continue
        if match and match["tensor"].endswith(".wte.weight"):
            found[key.replace("wte.weight", FLAT)] = _computed(tensors, key.removesuffix("wte.weight"), non_linearity)
        elif not match or f".{FLAT}." not in key:
            found[key] = tensor
    return found


def file_to_ours(tensors: Mapping[str, Tensor], method: Method, sites: Sequence[Site]) -> dict[str, Tensor]:
    """The virtual tokens under our names; raises `AdapterError` for anything else."""
    found: dict[str, Tensor] = {}
    attentions = _by_group([site for site in sites if isinstance(site, AttentionSite)])
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        name = match["tensor"] if match else ""
        if name == WEIGHT and isinstance(method, PromptMethod):
            if tensor.dim() != 2:
                raise AdapterError(f"adapter tensor {key} has another shape: {list(tensor.shape)}")
            found |= method.of_peft_file(sites, {PROMPT: tensor}) or {}
        elif name.endswith(f".{FLAT}") and name.partition(".")[0].removesuffix("_prefix") in attentions:
            assert isinstance(method, PrefixMethod)
            own = attentions[name.partition(".")[0].removesuffix("_prefix")]
            found |= _split(key, tensor, own, method.num_virtual_tokens)
        else:
            raise AdapterError(f"adapter tensor {key} has no place in this model")
    return found


def ours_to_file(
    tensors: Mapping[str, Tensor], method: Method, sites: Sequence[Site], name: str, model_type: str
) -> dict[str, Tensor]:
    """The virtual tokens under AdapterHub's names, each once."""
    site = sites[0]
    if isinstance(site, InputSite):
        place = f"{site.backbone}.prompt_tuning" if site.backbone else "prompt_tuning"
        return {f"{place}.prompt_tunings.{name}.{WEIGHT}": (method.to_peft_file(sites, tensors) or {})[PROMPT]}
    found = {}
    for group, own in _by_group([site for site in sites if isinstance(site, AttentionSite)]).items():
        word = group if model_type == "distilbert" else f"{group}_prefix"
        place = f"{backbone(own[0].path)}prefix_tuning.prefix_tunings.{name}.{word}.{FLAT}"
        found[place] = torch.stack([tensors[f"{each.path}.prefix"].permute(2, 0, 1, 3) for each in own], 1).flatten()
    return found


def _computed(tensors: Mapping[str, Tensor], prefix: str, non_linearity: str) -> Tensor:
    """W_2 f(W_1 E + b_1) + b_2 in a row."""
    names = ("wte.weight", f"{FLAT}.0.weight", f"{FLAT}.0.bias", f"{FLAT}.2.weight", f"{FLAT}.2.bias")
    if missing := [name for name in names if prefix + name not in tensors]:
        raise AdapterError(f"adapter tensor {prefix}{missing[0]} is missing")
    activation = {str(name): function for name, function in NON_LINEARITIES.items()}.get(non_linearity.lower())
    if activation is None:
        raise AdapterError(f"adapter_config.json: non_linearity={non_linearity[:40]!r} is not supported in a prefix")
    words, inner, inner_bias, outer, outer_bias = (tensors[prefix + name].float() for name in names)
    try:
        return F.linear(activation(F.linear(words, inner, inner_bias)), outer, outer_bias).flatten()
    except RuntimeError:
        raise AdapterError(f"the tensors {prefix}* have shapes that do not fit together") from None


def _split(key: str, tensor: Tensor, sites: Sequence[AttentionSite], tokens: int) -> dict[str, Tensor]:
    shape = (tokens, len(sites), 2, sites[0].key_value_heads, sites[0].head_width)
    if tensor.numel() != torch.Size(shape).numel() or len({(s.key_value_heads, s.head_width) for s in sites}) > 1:
        raise AdapterError(f"adapter tensor {key} has another shape: {list(tensor.shape)} instead of {shape} in a row")
    whole = tensor.view(shape)
    return {f"{site.path}.prefix": whole[:, index].permute(1, 2, 0, 3) for index, site in enumerate(sites)}


def _by_group(sites: Sequence[AttentionSite]) -> dict[str, list[AttentionSite]]:
    """The attentions that share a tensor: those of the encoder, of the decoder, and across; or all of one stack."""
    single = len({site.stack for site in sites}) == 1
    found: dict[str, list[AttentionSite]] = {}
    for site in sites:
        inside = "encoder" if site.stack == "encoder" and not single else "self"
        found.setdefault("cross" if site.role == "cross" else inside, []).append(site)
    return found
