"""Keys and values: the attention modules that take them from outside, through the registry of `transformers`."""

import inspect
from collections.abc import Iterator, Sequence

from torch import nn

from deltatune.core.site import AttentionSite, LayerSite
from deltatune.engine.blocks import parent

HEAD_WIDTH = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_head", "head_size")
"""What modeling files call K."""
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
"""What they call the number of query heads, where they do not keep K."""


def attentions(model: nn.Module, layers: Sequence[LayerSite]) -> Iterator[AttentionSite]:
    """The attention modules that go through the registry, in the order of the blocks."""
    groups: dict[str, list[LayerSite]] = {}
    for layer in layers:
        if layer.block is not None and "attention." in layer.role:
            groups.setdefault(parent(layer.path), []).append(layer)
    for path, projections in groups.items():
        module = model.get_submodule(path)
        key = next((layer for layer in projections if "key" in _parts(layer)), None)
        if key is not None and _uses_registry(module) and not _compressed(key):
            output = next(layer for layer in layers if _ends(layer, key))
            yield _site(path, module, key, output)


def unreachable(sites: Sequence[AttentionSite], layers: Sequence[LayerSite], role: str) -> list[str]:
    """Output projections of attention of this role (`self`, `cross`) that belong to no site."""
    known = {(site.stack, site.block, site.role) for site in sites}
    wanted = {"self": "attention.output", "cross": "cross_attention.output"}[role]
    ends = (layer for layer in layers if layer.role == wanted)
    return [layer.path for layer in ends if (layer.stack, layer.block, role) not in known]


def _parts(layer: LayerSite) -> tuple[str, ...]:
    return layer.packed or (layer.role.rpartition(".")[2],)


def _ends(layer: LayerSite, key: LayerSite) -> bool:
    wanted = f"{key.role.partition('.')[0]}.output"
    return layer.role == wanted and (layer.stack, layer.block) == (key.stack, key.block)


def _compressed(key: LayerSite) -> bool:
    """Whether keys and values of a self-attention are made from one latent vector (DeepSeek): they differ in width."""
    return key.packed == ("key", "value") and key.role.startswith("attention")


def _uses_registry(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _site(path: str, module: nn.Module, key: LayerSite, output: LayerSite) -> AttentionSite:
    """Heads from shapes: the output projection reads H K, a fused one writes query, key and value side by side."""
    queries = output.in_features
    keys = {3: (key.out_features - queries) // 2, 2: key.out_features // 2}.get(len(key.packed), key.out_features)
    width = _number(module, HEAD_WIDTH)
    if width is None:
        width = queries // (_number(module, HEADS) or 1)
    assert key.block is not None
    return AttentionSite(
        path=path,
        role="cross" if key.role.startswith("cross") else "self",
        stack=key.stack,
        block=key.block,
        heads=queries // width,
        key_value_heads=keys // width,
        head_width=width,
        dtype=key.dtype,
        device=key.device,
    )


def _number(module: nn.Module, names: Sequence[str]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(module, name, None), int)), None)
