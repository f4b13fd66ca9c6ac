"""Roles: what each linear map of a block does, from shapes and places; words only tell query from key from value.

D is the model width. In an attention module the map back to D that is not a query, key or value is the output. Outside
attention a map away from D is up (or gate), a map back to D is down.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from deltatune.engine.blocks import LINEAR, is_norm

WORDS = {
    "query": {"q", "query", "q_proj", "q_lin", "query_proj", "to_q"},
    "key": {"k", "key", "k_proj", "k_lin", "key_proj", "to_k"},
    "value": {"v", "value", "v_proj", "v_lin", "value_proj", "to_v"},
    "position": {"r", "pos_key_proj", "pos_query_proj", "linear_pos"},
    "fused": {"c_attn", "query_key_value", "qkv", "qkv_proj", "Wqkv", "in_proj_weight"},
}
"""Last names of projections; structure cannot tell query, key and value apart."""
CROSS = ("cross", "encoder_attn", "encdec", "enc_dec")
"""Fragments of the path of an attention module that reads another stack."""
GATE = ("gate", "wi_0", "w1")
"""Fragments that tell the gate from the linear branch of a gated feed-forward."""
ROUTER = ("gate", "router", "classifier")
"""Last names of the map that chooses experts."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One linear map of a block, as stored."""

    path: str
    """Path of the module, or of the parameter for a raw tensor."""
    kind: str
    in_features: int
    out_features: int
    copies: int = 0
    transposed: bool = False

    @property
    def last(self) -> str:
        """The last name of the path."""
        return self.path.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The path without the last name."""
        return self.path.rpartition(".")[0]


def matrices(block: nn.Module, prefix: str) -> list[Matrix]:
    """The linear maps of a block in the order of its modules, raw tensors included, convolutions left out."""
    width = width_of(block)
    found = []
    for name, module in block.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear):
            found.append(Matrix(name, "linear", module.in_features, module.out_features))
        elif isinstance(module, LINEAR):
            found.append(Matrix(name, "conv1d", module.weight.shape[0], module.weight.shape[1], transposed=True))
        elif not isinstance(module, nn.modules.conv._ConvNd | nn.Embedding):
            found += _raw(name, module, width)
    return found


def width_of(block: nn.Module) -> int:
    """D: the most frequent size of a block's norms; the larger of two (norms of single heads are smaller)."""
    sizes = [p.shape[0] for m in block.modules() if is_norm(m) for p in m.parameters(recurse=False) if p.dim() == 1]
    first = next((m for m in block.modules() if isinstance(m, nn.Linear)), None)
    return (
        max(sizes, key=lambda size: (sizes.count(size), size))
        if sizes
        else (first.in_features if first is not None else 0)
    )


def _raw(name: str, module: nn.Module, width: int) -> list[Matrix]:
    """Matrices that a module keeps as bare parameters: experts [E, ., .], XLNet's [D, H, K], torch's in_proj."""
    tensors = dict(module.named_parameters(recurse=False))
    if "in_proj_weight" in tensors:
        out, inner = tensors["in_proj_weight"].shape
        return [Matrix(f"{name}.in_proj_weight", "tensor", inner, out)]
    if {"q", "k", "v", "o"} <= tensors.keys():
        return [_xlnet(f"{name}.{key}", tensors[key], key) for key in ("q", "k", "v", "o", "r") if key in tensors]
    experts = {key: tensor for key, tensor in tensors.items() if tensor.dim() == 3 and "expert" in name}
    wide = next((tensor for key, tensor in experts.items() if "up" in key), None)
    flipped = wide is not None and wide.shape[2] != width  # [E, I, O] instead of [E, O, I]
    found = []
    for key, tensor in experts.items():
        copies, rows, columns = tensor.shape
        inner, out = (rows, columns) if flipped else (columns, rows)
        found.append(Matrix(f"{name}.{key}", "tensor", inner, out, copies, flipped))
    return found


def _xlnet(path: str, tensor: nn.Parameter, key: str) -> Matrix:
    width, heads, head_width = tensor.shape
    if key == "o":
        return Matrix(path, "tensor", heads * head_width, width)
    return Matrix(path, "tensor", width, heads * head_width, transposed=True)


def roles(block: nn.Module, prefix: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Role and packed parts of every matrix of a block, by path."""
    found = matrices(block, prefix)
    width = width_of(block)
    result: dict[str, tuple[str, tuple[str, ...]]] = {}
    for container in _containers(found, prefix, width):
        inside = [m for m in found if m.path.startswith(f"{container}.") and m.path not in result]
        kind = "cross_attention" if _is_cross(container, prefix, result) else "attention"
        result |= _attention(inside, kind, width)
    rest = [m for m in found if m.path not in result]
    mixers = {name for name, m in block.named_modules(prefix=prefix) if _is_mixer(m)}
    return (
        result
        | _feed_forward([m for m in rest if m.parent not in mixers], width)
        | {m.path: ("other", ()) for m in rest if m.parent in mixers}
    )


def _is_mixer(module: nn.Module) -> bool:
    """Whether a module mixes tokens by a convolution (Mamba): its maps are neither attention nor feed-forward."""
    return any(isinstance(child, nn.Conv1d) for child in module.children())


def _containers(found: Sequence[Matrix], prefix: str, width: int) -> list[str]:
    """The attention modules: from each query, fused projection, or value without a query (deformable attention), up to
    where an output projection is inside too.
    """
    containers: list[str] = []
    for matrix in found:
        if _part(matrix.last) not in ("query", "fused", "value") or any(
            matrix.path.startswith(f"{known}.") for known in containers
        ):
            continue
        place = matrix.parent
        while place != prefix and not any(_is_output(m, place, width) for m in found):
            place = place.rpartition(".")[0]
        if place == prefix:
            place = matrix.parent
        if place not in containers and place != prefix:
            containers.append(place)
    return containers


def _is_output(matrix: Matrix, place: str, width: int) -> bool:
    return matrix.path.startswith(f"{place}.") and _part(matrix.last) is None and matrix.out_features == width


def _is_cross(container: str, prefix: str, known: dict[str, tuple[str, tuple[str, ...]]]) -> bool:
    inside = container.removeprefix(prefix).lower()
    return any(word in inside for word in CROSS) or any(role.startswith("attention") for role, _ in known.values())


def _part(last: str) -> str | None:
    return next((part for part, words in WORDS.items() if last in words), None)


def _attention(inside: Sequence[Matrix], kind: str, width: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    result: dict[str, tuple[str, tuple[str, ...]]] = {}
    outputs = [m for m in inside if _part(m.last) is None and m.out_features == width]
    for matrix in inside:
        part = _part(matrix.last)
        if part == "fused":
            packed = (
                ("key", "value")
                if matrix.out_features == 2 * width and kind == "cross_attention"
                else ("query", "key", "value")
            )
            result[matrix.path] = (f"{kind}.{packed[0]}", packed)
        elif part == "position":
            result[matrix.path] = ("other", ())
        elif part is not None:
            result[matrix.path] = (f"{kind}.{part}", ())
        elif outputs and matrix is outputs[-1]:
            result[matrix.path] = (f"{kind}.output", ())
        else:
            result[matrix.path] = ("other", ())
    return result


def _feed_forward(rest: Sequence[Matrix], width: int) -> dict[str, tuple[str, tuple[str, ...]]]:
    result: dict[str, tuple[str, tuple[str, ...]]] = {}
    experts = any("expert" in m.path for m in rest)
    routers = [m for m in rest if experts and m.last in ROUTER and "expert" not in m.path.rpartition(".")[0]]
    away: dict[str, list[Matrix]] = {}
    for matrix in rest:
        if matrix in routers:
            result[matrix.path] = ("router", ())
        elif matrix.out_features == width and (matrix.in_features != width or away):
            result[matrix.path] = ("mlp.down", ())
        elif matrix.in_features == width:
            away.setdefault(matrix.parent, []).append(matrix)
        else:
            result[matrix.path] = ("other", ())
    for parent, group in away.items():
        result |= _upward(group, [m for m in rest if result.get(m.path, ("",))[0] == "mlp.down"], parent)
    return result


def _upward(group: Sequence[Matrix], downs: Sequence[Matrix], parent: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Up, or gate and up, of one feed-forward; one matrix twice as wide as down reads holds both."""
    near = next((m for m in downs if m.parent == parent), downs[0] if downs else None)
    if len(group) == 1:
        double = near is not None and group[0].out_features == 2 * near.in_features
        return {group[0].path: ("mlp.gate", ("gate", "up")) if double else ("mlp.up", ())}
    gates = [m for m in group if any(word in m.last for word in GATE)]
    return {m.path: ("mlp.gate" if m in gates else "mlp.up", ()) for m in group}
