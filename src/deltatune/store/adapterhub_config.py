"""Settings in AdapterHub folders (`adapters` 1.3.0), and ours.

A config says which algorithm runs by two dozen switches. Those that one of our methods has are translated; any other
value is an error that names it, never another algorithm.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltatune.core import registry
from deltatune.core.bottleneck import SUBLAYERS, BottleneckMethod
from deltatune.core.errors import AdapterError
from deltatune.core.method import Method
from deltatune.core.prefix import PrefixMethod
from deltatune.core.prompt import PromptMethod
from deltatune.core.site import LayerSite, Site
from deltatune.store import adapterhub_prompts as prompts

BOTTLENECK: Mapping[str, Any] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": False,
    "output_adapter": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "reduction_factor": 16,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
"""Every key of `BnConfig`, with the value it has where we say nothing else."""
LORA: Mapping[str, Any] = {
    "alpha": 8,
    "architecture": "lora",
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "dropout": 0.0,
    "dtype": None,
    "init_weights": "lora",
    "init_weights_seed": None,
    "intermediate_lora": False,
    "leave_out": [],
    "output_lora": False,
    "r": 8,
    "selfattn_lora": True,
    "use_dora": False,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}
"""Every key of `LoRAConfig`."""
FUSION: Mapping[str, Any] = {
    "dropout_prob": None,
    "key": True,
    "query": True,
    "query_before_ln": False,
    "regularization": True,
    "residual_before": False,
    "temperature": False,
    "value": True,
    "value_before_softmax": True,
    "value_initialized": True,
}
"""Every key of `AdapterFusionConfig`."""

IA3: Mapping[str, Any] = {**LORA, "alpha": 1, "composition_mode": "scale", "init_weights": "ia3", "r": 1}
"""`IA3Config` is a `LoRAConfig` that multiplies."""
IA3_ALONE = {key: value for key, value in IA3.items() if value != LORA[key]}

ONLY: Mapping[str, Sequence[str]] = {
    "adapter": (
        "inv_adapter",
        "ln_before",
        "original_ln_after",
        "stochastic_depth",
        "use_gating",
        "residual_before_ln",
        "adapter_residual_before_ln",
    ),
    "compacter": (
        "ln_after",
        "scaling",
        "phm_bias",
        "shared_W_phm",
        "shared_phm_rule",
        "factorized_phm_rule",
        "factorized_phm_W",
        "learn_phm",
    ),
    "lora": ("composition_mode", "use_dora", "use_gating", "vera_b", "vera_d"),
    "ia3": ("alpha", "r", "use_dora", "use_gating", "vera_b", "vera_d"),
    "adapter-fusion": ("key", "query", "query_before_ln", "residual_before", "temperature"),
}
"""Keys that select another algorithm unless they have the value of the tables above."""

PLACEMENTS: Mapping[str, Mapping[str, Any]] = {
    "houlsby": {"original_ln_before": False, "is_parallel": False},
    "pfeiffer": {"original_ln_before": True, "is_parallel": False},
    "parallel": {"original_ln_before": False, "is_parallel": True, "init_weights": "mam_adapter"},
}
FLAGS = {"attention": "mh_adapter", "cross_attention": "cross_adapter", "mlp": "output_adapter"}
FEED = {"intermediate_lora": "mlp.up", "output_lora": "mlp.down"}
CROSSED = ("llama", "mistral")
"""Where `adapters` means down by intermediate and up by output."""
MATRICES = {"q": "query", "k": "key", "v": "value"}


def bottleneck_of(config: Mapping[str, Any], width: int) -> Method:
    """Settings of bottleneck adapters or Compacter from a `BnConfig`; raises `AdapterError` for what we lack."""
    values = _complete(config, BOTTLENECK)
    kind = "compacter" if values["phm_layer"] else "adapter"
    if not values["original_ln_before"] or values["is_parallel"]:
        values["residual_before_ln"] = True  # says where in the block's norm the input is taken, and it is not
    if not values["ln_after"]:
        values["adapter_residual_before_ln"] = False
    _check(values, BOTTLENECK, (*ONLY["adapter"], *(ONLY["compacter"] if kind == "compacter" else ())))
    scaling = values["scaling"]
    if scaling not in (1.0, "learned") and (isinstance(scaling, str) or values["ln_after"]):
        raise AdapterError(
            f"adapter_config.json: scaling={scaling!r} is not supported" + " with ln_after" * values["ln_after"]
        )
    placement = "parallel" if values["is_parallel"] else "pfeiffer" if values["original_ln_before"] else "houlsby"
    fields = {
        "placement": placement,
        "sublayers": tuple(role for role, key in FLAGS.items() if values[key]),
        "non_linearity": str(values["non_linearity"]).lower(),
        "dropout": values["dropout"],
        "leave_out": tuple(values["leave_out"]),
        **_size(values["reduction_factor"], width),
    }
    if kind == "compacter":
        fields |= {key: values[key] for key in ("phm_dim", "phm_rank", "phm_init_range")}
    else:
        fields |= {"scaling": scaling, "ln_after": values["ln_after"]}
    return _parsed(kind, fields)


def lora_of(config: Mapping[str, Any], globs: Sequence[str], packed: Sequence[str], version: str) -> Method:
    """Settings of LoRA on these layers from a `LoRAConfig`; raises `AdapterError` for what we lack.

    At `packed` layers several of them are one of a larger rank.
    """
    values = _complete(config, LORA)
    _check(values, LORA, ONLY["lora"])
    rank = values["r"]
    alpha = rank if _scaled_wrongly(version) else values["alpha"]
    times = len(set(values["attn_matrices"]) & MATRICES.keys())
    fields = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": values["dropout"],
        "target_modules": tuple(globs),
        "rank_pattern": dict.fromkeys(packed, rank * times),
        "alpha_pattern": dict.fromkeys(packed, alpha * times),
    }
    return _parsed("lora", fields)


def ia3_of(config: Mapping[str, Any], globs: Sequence[str]) -> Method:
    """Settings of (IA)3 on the outputs of these layers; raises `AdapterError` for what we lack."""
    _check(_complete(config, IA3), IA3, ONLY["ia3"])
    return _parsed("ia3", {"target_modules": tuple(globs), "feedforward_modules": ()})


def virtual_of(config: Mapping[str, Any], model_type: str) -> Method:
    """Settings of prompt or prefix tuning; raises `AdapterError` for what we lack."""
    if config["architecture"] == "prompt_tuning":
        return _parsed("prompt", prompts.prompt_fields(_complete(config, prompts.PROMPT_CONFIG)))
    prompts.check_family(model_type)
    return _parsed("prefix", prompts.prefix_fields(_complete(config, prompts.PREFIX_CONFIG)))


def fusion_of(config: Mapping[str, Any], names: Sequence[str], sublayers: Sequence[str]) -> Method:
    """Settings of AdapterFusion from an `AdapterFusionConfig`; raises `AdapterError` for what we lack."""
    values = _complete(config, FUSION)
    _check(values, FUSION, ONLY["adapter-fusion"])
    return _parsed(
        "adapter-fusion",
        {
            "adapters": tuple(names),
            "sublayers": tuple(sublayers),
            "value": values["value"],
            "dropout": values["dropout_prob"] or 0.0,
            "regularization": 0.01 if values["regularization"] else 0.0,
        },
    )


def union_of(methods: Sequence[Method]) -> Method:
    """Settings of a mix of these methods."""
    return _parsed("mix", {"methods": tuple(methods)})


def config_of(method: Method, width: int, model_type: str, sites: Sequence[Site]) -> dict[str, Any]:
    """The config of AdapterHub for our settings; raises `AdapterError` when it has no word for one of them."""
    if isinstance(method, BottleneckMethod):
        return _bottleneck_config(method, width)
    if method.type == "prompt" and isinstance(method, PromptMethod):
        return prompts.prompt_config(method)
    if method.type == "prefix" and isinstance(method, PrefixMethod):
        prompts.check_family(model_type)
        return prompts.prefix_config(method)
    layers = [site for site in sites if isinstance(site, LayerSite)]
    if method.type == "lora":
        return {**_places(layers, model_type), **_lora_config(method)}
    if method.type == "ia3" and not method.model_dump()["feedforward_modules"]:
        return {**_places(layers, model_type), **IA3_ALONE}
    raise AdapterError(
        f"AdapterHub folders are not written for {method.type}"
        + (", unless it scales outputs alone (feedforward_modules=[])" if method.type == "ia3" else "")
    )


def _bottleneck_config(method: BottleneckMethod, width: int) -> dict[str, Any]:
    ours = method.model_dump()
    for key in ("train_layernorm", "use_gating"):
        if ours.get(key):
            raise AdapterError(f"{key}={ours[key]} of {method.type} has no equal in AdapterHub's format")
    if ours.get("ln_after") and ours["scaling"] != 1.0:
        raise AdapterError("AdapterHub's format scales before the norm of ln_after: use scaling=1.0 with it")
    sublayers = method.sublayers or SUBLAYERS[method.placement]
    size, factor = method.bottleneck_size, method.reduction_factor
    taken = ("non_linearity", "dropout", "phm_dim", "phm_rank", "phm_init_range", "scaling", "ln_after")
    return {
        **BOTTLENECK,
        **dict(PLACEMENTS[method.placement]),
        **{key: role in sublayers for role, key in FLAGS.items()},
        **{key: ours[key] for key in taken if key in ours},
        "leave_out": list(method.leave_out),
        "phm_layer": method.type == "compacter",
        "reduction_factor": _whole(width / size if size else factor),
    }


def _lora_config(method: Method) -> dict[str, Any]:
    ours = method.model_dump()
    if ours["rank_pattern"] or ours["alpha_pattern"] or ours["use_rslora"]:
        raise AdapterError("AdapterHub's format has one rank and alpha / r for all layers: no patterns, no use_rslora")
    return {"r": ours["r"], "alpha": _whole(ours["lora_alpha"]), "dropout": ours["lora_dropout"]}


def _places(sites: Sequence[LayerSite], model_type: str) -> dict[str, Any]:
    """The switches that choose exactly these layers."""
    matrices = [key for key, word in MATRICES.items() if any(site.role == f"attention.{word}" for site in sites)]
    feed = [flag for flag, role in FEED.items() if any(site.role == role for site in sites)]
    chosen = {f"attention.{MATRICES[key]}" for key in matrices} | {FEED[flag] for flag in feed}
    blocks: dict[tuple[str, int | None], set[str]] = {}
    for site in sites:
        blocks.setdefault((site.stack, site.block), set()).add(site.role)
    cross = {f"cross_{role}" for role in chosen if role.startswith("attention.")}
    full = all(
        roles == chosen | (cross if stack == "decoder" and cross & roles else set())
        for (stack, _), roles in blocks.items()
    )
    if not full or any(site.packed for site in sites):
        raise AdapterError(
            "AdapterHub's format changes query, key, value, up and down, the same in all blocks",
            hint='try target_modules=["attention.query", "attention.value"]',
        )
    if model_type in CROSSED and len(feed) == 1:
        feed = [flag for flag in FEED if flag not in feed]
    return {
        **LORA,
        **{flag: flag in feed for flag in FEED},
        "selfattn_lora": bool(matrices),
        "attn_matrices": matrices,
        "leave_out": _left_out(blocks),
    }


def _left_out(blocks: Iterable[tuple[str, int | None]]) -> list[int]:
    """Blocks that have no LoRA, the decoder's behind the encoder's.

    Those behind the last one are not counted: without tensors `adapters` starts them at zero, which changes nothing.
    """
    found: list[int] = []
    start = 0
    for stack in sorted({stack for stack, _ in blocks}, key=lambda name: name == "decoder"):
        kept = {block for name, block in blocks if name == stack and block is not None}
        found += [start + block for block in range(max(kept)) if block not in kept]
        start += max(kept) + 1
    return found


def fusion_config_of(method: Method) -> dict[str, Any]:
    """The fusion config of AdapterHub for our settings."""
    ours = method.model_dump()
    return {
        **FUSION,
        "dropout_prob": ours["dropout"] or None,
        "value": ours["value"],
        "regularization": bool(ours["regularization"]),
    }


def _complete(config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults of keys that older versions did not have; raises for keys we do not know."""
    if unknown := sorted(config.keys() - known.keys() - {"architecture"}):
        raise AdapterError(f"adapter_config.json: {unknown[0][:80]} is no setting of adapters 1.3.0 that we know")
    for key, value in config.items():
        if not _is_like(value, known.get(key), key):
            raise AdapterError(f"adapter_config.json: {key}={str(value)[:80]} is no value of this setting")
    return {**known, **config}


def _is_like(value: Any, default: Any, key: str) -> bool:
    """Whether a value from a file is of the kind its key has in `adapters`."""
    if default is None or isinstance(default, bool):
        return value is None or isinstance(value, bool | str | int | float)
    if isinstance(default, list):
        kind = type(default[0]) if default else int
        return isinstance(value, list) and all(type(item) is kind for item in value)
    if isinstance(default, str):
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return (key == "scaling" and isinstance(value, str)) or (key == "reduction_factor" and isinstance(value, dict))
    return math.isfinite(value) and (value > 0 or key != "reduction_factor")


def _check(values: Mapping[str, Any], known: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if values[key] != known[key] and not (not values[key] and not known[key]):
            raise AdapterError(f"adapter_config.json: {key}={values[key]!r} is not supported, only {known[key]!r}")


def _size(factor: Any, width: int) -> dict[str, Any]:
    """The bottleneck as `adapters` computes it: at least 1, rounded down as floats are."""
    if isinstance(factor, Mapping):
        raise AdapterError("adapter_config.json: a reduction_factor for each block is not supported")
    size = max(1, int(width // factor))
    return {"reduction_factor": factor} if int(width / factor) == size else {"bottleneck_size": size}


def _scaled_wrongly(version: str) -> bool:
    """Before 1.1.0 `adapters` scaled LoRA by 1, whatever alpha was, and so do its later versions with such files."""
    name, _, number = version.partition(".")
    steps = [int(step) for step in number.split(".")[:2] if step.isdigit()]
    return name == "adapters" and len(steps) == 2 and steps < [1, 1]


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _parsed(kind: str, fields: Mapping[str, Any]) -> Method:
    if kind not in registry.methods():
        raise AdapterError(f"there is no method {kind} for this folder")
    return registry.methods()[kind].parse(fields, "adapter_config.json")
