"""Template rules: what a chat template in the settings may do.

Settings travel in adapter files, and an adapter is data: whoever loads one must not run a program of its author, not
even in Jinja's sandbox, where a few loops or doubled texts take all the time and memory there is. So a template of the
settings may print and compare what the messages hold, and what it prints is bounded by them: loops run over messages
and over what a message holds, nothing is called but a few methods of texts, nothing is multiplied or formatted, and
what was put together is printed, not put together again.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes

METHODS = ("strip", "lstrip", "rstrip", "startswith", "endswith", "get")
FILTERS = ("trim", "upper", "lower", "capitalize", "title", "tojson", "length", "first", "last")
LONGEST = 20_000
"""Characters of a template."""
DEEPEST = 3
"""Filters on top of each other: each may lengthen a text."""
PLAIN = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Add, nodes.Sub, nodes.Concat,
    nodes.CondExpr, nodes.Test, nodes.Slice, nodes.List, nodes.Tuple, nodes.Break, nodes.Continue,
)  # fmt: skip
"""What reads, compares and prints."""


def forbidden(source: str) -> str | None:
    """What a template does that it may not do, or None.

    >>> forbidden("{% for m in messages %}{{ m.role + ': ' + m.content | trim }}{% endfor %}")
    >>> forbidden("{% for i in range(9) %}x{% endfor %}")
    'it calls range (line 1)'
    """
    if len(source) > LONGEST:
        return f"it has more than {LONGEST:,} characters"
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
        found = next(_wrong(tree, None, 0), None) or next(_grown(tree), None)
    except jinja2.TemplateSyntaxError as error:
        return f"it is not valid Jinja ({error.message}, line {error.lineno})"
    except RecursionError:
        return "it is nested too deeply"
    return None if found is None else f"{found[0]} (line {found[1].lineno})"


Found = Iterator[tuple[str, nodes.Node]]


def _wrong(node: nodes.Node, loop: str | None, filters: int) -> Found:
    """Everything that is not allowed below a node; `loop` is the variable of the loop around it."""
    check = CHECKS.get(type(node))
    if check is not None:
        yield from ((what, node) for what in check(node, loop, filters))
    elif not isinstance(node, PLAIN):
        yield f"it uses {type(node).__name__}", node
    if isinstance(node, nodes.For):
        loop = node.target.name if isinstance(node.target, nodes.Name) else ""
    for child in node.iter_child_nodes():
        yield from _wrong(child, loop, filters + isinstance(node, nodes.Filter))


def _grown(tree: nodes.Template) -> Found:
    """Assignments that read what another one put together, a text that doubles with every line, or that move a loop."""
    loops = {name for loop in tree.find_all(nodes.For) for name in _names(loop.target)}
    assigned = list(tree.find_all(nodes.Assign))
    together = [node for node in assigned if any(isinstance(n, nodes.Add | nodes.Concat) for n in _all(node.node))]
    grown = {name for node in together for name in _names(node.target)}
    for node in assigned:
        if grown & _names(node.node):
            yield "it assigns what it put together before", node
        if loops & _names(node.target):
            yield "it assigns to the variable of a loop", node


def _all(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    yield from node.find_all(nodes.Node)


def _names(node: nodes.Node) -> set[str]:
    return {name.name for name in _all(node) if isinstance(name, nodes.Name)}


def _loop(node: nodes.For, around: str | None, filters: int) -> Iterator[str]:
    """A loop inside another one may only run over what the outer one stands at."""
    if node.recursive:
        yield "its loop is recursive"
    if around is not None and (around == "" or _root(node.iter) != around):
        yield "its inner loop runs over something else than a part of what the outer one stands at"


def _call(node: nodes.Call, around: str | None, filters: int) -> Iterator[str]:
    called: Any = node.node
    method = isinstance(called, nodes.Getattr) and called.attr in METHODS
    refuses = isinstance(called, nodes.Name) and called.name == "raise_exception"
    if not (method or refuses):
        yield f"it calls {getattr(called, 'attr', None) or getattr(called, 'name', None) or 'something'}"


def _filter(node: nodes.Filter, around: str | None, filters: int) -> Iterator[str]:
    if node.name not in FILTERS or filters >= DEEPEST:
        yield f"it filters with {node.name}"


def _assign(node: nodes.Assign, around: str | None, filters: int) -> Iterator[str]:
    if not isinstance(node.target, nodes.Name):
        yield "it assigns to something else than a name"


def _remainder(node: nodes.Mod, around: str | None, filters: int) -> Iterator[str]:
    """Of numbers only: of texts it is a format."""
    if not (isinstance(node.left, nodes.Getattr) and _root(node.left) == "loop"):
        yield "it takes a remainder of something else than loop.index"


def _root(node: Any) -> str | None:
    """The variable an expression begins with."""
    while isinstance(node, nodes.Getattr | nodes.Getitem | nodes.Filter):
        node = node.node
    return node.name if isinstance(node, nodes.Name) else None


CHECKS: Mapping[type[nodes.Node], Callable[[Any, str | None, int], Iterator[str]]] = {
    nodes.For: _loop,
    nodes.Call: _call,
    nodes.Filter: _filter,
    nodes.Assign: _assign,
    nodes.Mod: _remainder,
}
