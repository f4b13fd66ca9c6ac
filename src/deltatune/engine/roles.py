"""Roles: what each linear map of a block does, from shapes and places; words tell only what structure cannot.

D is the model width. In an attention module the last map back to D that is no query, key or value is the output.
Outside attention a map from D is up (or gate) when a map back to D, which is down, reads what it writes.
"""

from collections.abc import Iterator, Sequence

from torch import nn

from deltatune.engine.blocks import walk
from deltatune.engine.matrices import Matrix, matrices, width_of

Role = tuple[str, tuple[str, ...]]
"""A role and the parts packed side by side in the matrix."""

PARTS = {"query": {"q", "query", "wq"}, "key": {"k", "key", "wk"}, "value": {"v", "value", "wv"}}
"""Words for projections that have the same shape."""
POSITION = {"pos", "position", "rel", "relative", "r"}
"""Words for projections of positions, which are no part of query, key or value."""
OUTPUT = {"o", "out", "output"}
"""Words for the output projection, where it stands beside the feed-forward."""
CROSS = ("cross", "encoder_attn", "encdec", "enc_dec", "multihead_attn")
"""Fragments of the path of an attention module that reads another stack."""
GATE = ("gate", "wi_0", "w1")
"""Fragments that tell the gate from the linear branch of a gated feed-forward."""


def roles(block: nn.Module, prefix: str) -> list[tuple[Matrix, Role]]:
    """Every matrix of a block with its role, in the order of the modules."""
    width = width_of(block)
    found = matrices(block, prefix, width)
    known: dict[str, Role] = {}
    for place, inside in _attentions(found, prefix):
        cross = any(word in place.removeprefix(prefix).lower() for word in CROSS)
        known |= _attention(inside, "cross_attention" if cross else "attention", width)
    mixers = {path for path, module in walk(block, prefix) if _mixes_tokens(module)}
    rest = [m for m in found if m.path not in known and _holder(m) not in mixers]
    known |= _feed_forward(rest, width)
    return [(matrix, known.get(matrix.path, ("other", ()))) for matrix in found]


def _mixes_tokens(module: nn.Module) -> bool:
    """Whether a module convolves over time (Mamba): its maps are neither attention nor feed-forward."""
    return any(isinstance(child, nn.Conv1d) for child in module.children())


# -- attention


def _attentions(found: Sequence[Matrix], prefix: str) -> Iterator[tuple[str, list[Matrix]]]:
    """Attention modules: those called so, and those that hold a query or a fused projection under any name."""
    places: dict[str, list[Matrix]] = {}
    for matrix in found:
        place = _called_attention(matrix.module, prefix)
        if place is not None:
            places.setdefault(place, []).append(matrix)
    yield from places.items()
    named = {m.path for inside in places.values() for m in inside}
    for place in dict.fromkeys(_holder(m) for m in found if m.path not in named and "query" in parts(m)):
        beside = [m for m in found if _holder(m) == place]
        yield place, [m for m in beside if parts(m) or OUTPUT & set(m.words)]


def _holder(matrix: Matrix) -> str:
    return matrix.path.rpartition(".")[0]


def _called_attention(path: str, prefix: str) -> str | None:
    """The outermost module inside the block whose name says attention."""
    steps = path.removeprefix(f"{prefix}.").split(".")
    for count, step in enumerate(steps, start=1):
        if "att" in step.lower():
            return ".".join([prefix, *steps[:count]])
    return None


def parts(matrix: Matrix) -> tuple[str, ...]:
    """Which of query, key and value a projection's name says it is."""
    words = set(matrix.words)
    if words & POSITION:
        return ()
    if any("qkv" in word for word in words):
        return ("query", "key", "value")
    if "kv" in words:
        return ("key", "value")
    return tuple(part for part, names in PARTS.items() if words & names)


def _attention(inside: Sequence[Matrix], kind: str, width: int) -> dict[str, Role]:
    named = {m.path: parts(m) for m in inside if parts(m)}
    unnamed = [m for m in inside if m.path not in named and not POSITION & set(m.words)]
    output = next((m for m in reversed(unnamed) if m.out_features == width), None)
    separate = {part for found in named.values() for part in found}
    result: dict[str, Role] = {}
    for matrix in inside:
        packed = named.get(matrix.path, ())
        if matrix is output:
            result[matrix.path] = (f"{kind}.output", ())
            continue
        if not packed and matrix in unnamed and matrix.in_features == width and separate <= {"query"}:
            packed = ("key", "value") if separate else ("query", "key", "value")  # GPT-2's c_attn
        result[matrix.path] = (f"{kind}.{packed[0]}", packed if len(packed) > 1 else ()) if packed else ("other", ())
    return result


# -- feed-forward


def _feed_forward(rest: Sequence[Matrix], width: int) -> dict[str, Role]:
    result: dict[str, Role] = {}
    routed = any(m.copies or "expert" in m.path for m in rest)
    ups: dict[str, list[Matrix]] = {}
    waiting = False  # an up has been seen whose down has not: tells the two apart where both are D x D
    for matrix in rest:
        upward = any(word in matrix.last for word in ("up", *GATE))
        if matrix.out_features == width and not upward and (matrix.in_features != width or waiting):
            result[matrix.path] = ("mlp.down", ())
            waiting = False
        elif matrix.in_features == width and _feeds(matrix, _readers(matrix, rest, width)):
            ups.setdefault(_holder(matrix), []).append(matrix)
            waiting = True
        else:
            router = routed and matrix.in_features == width
            result[matrix.path] = ("router" if router else "other", ())
    for group in ups.values():
        for matrix in group:
            result[matrix.path] = _upward(matrix, group, _readers(matrix, rest, width))
    return result


def _readers(matrix: Matrix, rest: Sequence[Matrix], width: int) -> set[int]:
    """What the maps back to D read: those in the same module, or else all."""
    back = [m for m in rest if m.out_features == width and m is not matrix]
    near = {m.in_features for m in back if _holder(m) == _holder(matrix)}
    return near or {m.in_features for m in back}


def _feeds(matrix: Matrix, readers: set[int]) -> bool:
    return matrix.out_features in readers or matrix.out_features / 2 in readers


def _upward(matrix: Matrix, group: Sequence[Matrix], readers: set[int]) -> Role:
    """Up, or gate and up, of one feed-forward; one matrix twice as wide as down reads holds both."""
    if matrix.out_features not in readers:
        return "mlp.gate", ("gate", "up")
    gate = len(group) > 1 and any(word in matrix.last for word in GATE)
    return "mlp.gate" if gate else "mlp.up", ()
