"""Mutation testing: one operator, constant, condition or result is changed, and the tests of the file must fail.

    python benchmarks/mutants.py [--share 0.05] [--seed 0] [--only store/atomic ...]

Of the possible changes of each file the same share is drawn, rounded up (the same ones for a seed; a larger share has
those of a smaller one), and the tests that belong to the file run on each in a forked process, which has torch loaded
already and finds the changed module in place of the file; nothing is written into the tree. A change that no test
notices has survived. Annotations, texts, error messages and what a class says of itself (`ClassVar`) are left alone.
Results go to docs/results/mutants.json, and as a page to docs/mutants.md; why a survivor is harmless is written into
the JSON by hand and kept while the line stays as it is.
"""

import argparse
import ast
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import random
import resource
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "deltatune"
RESULTS, PAGE = ROOT / "docs" / "results" / "mutants.json", ROOT / "docs" / "mutants.md"
FAMILIES = ("albert", "bert", "gpt2", "llama", "t5", "vit", "whisper", "xlnet")
PRELOADED = ("torch._dynamo", "safetensors.torch", "accelerate", "peft", "scipy.stats", "sklearn.metrics")
PRELOADED += tuple(f"transformers.models.{family}.modeling_{family}" for family in FAMILIES)
GOLDEN = ("tests/golden/test_golden_adapters.py", "tests/golden/test_golden_runs.py")
DEFAULTS = "tests/golden/test_golden_defaults.py::test_a_default_is_what_it_was"
HOSTILE = "tests/attacks/test_foreign_adapters.py"
TESTS: dict[str, tuple[str, ...]] = {
    "core/low_rank": ("tests/interop/test_peft.py", "tests/engine/test_together.py"),
    "store/adapter": (GOLDEN[0], "tests/interop/test_peft.py"),
    "store/adapterhub": ("tests/interop/test_layouts.py", "tests/interop/test_adapterhub.py"),
    "store/atomic": ("tests/store/test_atomic.py", "tests/store/test_faults.py"),
    "store/peft_keys": (GOLDEN[0], "tests/interop/test_peft.py"),
    "store/record": (GOLDEN[0],),
    "store/run": ("tests/store/test_run.py", GOLDEN[1]),
    "store/state": ("tests/store/test_state.py", GOLDEN[1]),
    "ops/boxes": ("tests/core/test_set_loss.py",),
    "ops/hadamard": ("tests/methods/test_loha.py", "tests/interop/test_peft_loha.py"),
    "ops/hypercomplex": ("tests/methods/test_compacter.py",),
    "ops/kept": ("tests/ops/test_remade.py", "tests/engine/test_kept.py"),
    "ops/kronecker": ("tests/methods/test_lokr.py", "tests/interop/test_peft_lokr.py"),
    "ops/low_rank": ("tests/methods/test_dora.py",),
    "ops/orthogonal": ("tests/methods/test_oft.py", "tests/methods/test_boft.py"),
    "ops/rescaled": ("tests/methods/test_dora.py",),
}
"""Tests of a file besides those that have its name; a method has its golden folders, contract on BERT and defaults."""
SHARED: dict[str, tuple[str, ...]] = {
    "core/bottleneck": ("adapter", "compacter", "conditional_adapter", "adapter_fusion"),
    "core/low_rank": ("lora", "dora", "adalora", "pissa"),
    "core/prefix": ("prefix", "p_tuning_v2"),
    "core/products": ("loha", "lokr"),
    "core/prompt": ("prompt", "p_tuning"),
    "core/ranked": ("lora", "adalora"),
    "core/sparse": ("sparse", "fish", "diff_pruning", "spiel"),
    "core/targeted": ("lora", "sparse"),
}
"""What several methods have in common, and the methods whose tests must notice a change there."""
PAIRS = ((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot))
PAIRS += ((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitOr, ast.BitAnd))
ONE_WAY = {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
FLIPPED: dict[type, type] = {**dict(PAIRS), **{other: one for one, other in PAIRS}, **ONE_WAY}
Change = tuple[str, Callable[[], None]]


def changes(node: ast.AST) -> Iterator[Change]:
    """What can be changed at a node, as text, and what does it in place."""
    match node:
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in FLIPPED:
            new = FLIPPED[type(op)]()
            yield f"{type(op).__name__} -> {type(new).__name__}", lambda: replace_operator(node, new)
        case ast.Constant(value=bool() as value):
            yield f"{value} -> {not value}", lambda: setattr(node, "value", not value)
        case ast.Constant(value=int() | float() as number):
            other = number + 1 if isinstance(number, int) else number * 2 + 1
            yield f"{number} -> {other}", lambda: setattr(node, "value", other)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=inner):
            word = type(node.op).__name__
            yield f"without {word}", lambda: become(node, inner)
        case ast.If(test=test) | ast.IfExp(test=test):
            yield "condition negated", lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=[first, *rest]):
            yield "filter negated", lambda: setattr(node, "ifs", [ast.UnaryOp(ast.Not(), first), *rest])
        case ast.Return(value=ast.AST() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "returns None", lambda: setattr(node, "value", ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield "call left out", lambda: setattr(node, "value", ast.Constant(None))


def replace_operator(node: Any, new: ast.AST) -> None:
    """Another operator at a node."""
    if isinstance(node, ast.Compare):
        node.ops = [new]
    else:
        node.op = new


def become(node: ast.AST, other: ast.AST) -> None:
    """The node is the other one from here on."""
    node.__class__ = other.__class__
    vars(node).clear()
    vars(node).update(vars(other))


def places(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may be changed, in order."""
    yield node
    left_out: set[Any] = set(getattr(node, "decorator_list", ()))
    left_out |= {getattr(node, name, None) for name in ("annotation", "returns", "exc", "cause")}
    if isinstance(node, ast.AnnAssign) and "ClassVar" in ast.unparse(node.annotation):
        return
    for child in ast.iter_child_nodes(node):
        if child in left_out or isinstance(child, ast.JoinedStr | ast.expr_context):
            continue
        if isinstance(child, ast.keyword) and child.arg in ("strict", "hint"):
            continue
        yield from places(child)


def mutants(path: Path) -> list[tuple[int, str, ast.Module]]:
    """Line, change and tree of every mutant of a file."""
    text, found = path.read_text(encoding="utf-8"), []
    kinds = [[what for what, _ in changes(node)] for node in places(ast.parse(text))]
    for index, whats in enumerate(kinds):
        for number, what in enumerate(whats):
            tree = ast.parse(text)
            node = list(places(tree))[index]
            line = getattr(node, "lineno", getattr(getattr(node, "target", None), "lineno", 0))
            list(changes(node))[number][1]()
            found.append((line, what, ast.fix_missing_locations(tree)))
    return found


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module from a tree in place of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.code = name, path, compile(tree, str(path), "exec")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """The changed module, and no other."""
        found = importlib.util.spec_from_file_location(fullname, self.path, loader=self)
        return found if fullname == self.name else None

    def exec_module(self, module: Any) -> None:
        """Runs the changed code."""
        exec(self.code, vars(module))


def tests_of(name: str) -> list[list[str]]:
    """Arguments of pytest for a file; each further ones are for what those before do not notice."""
    folder, stem = name.split("/")
    own = [f"tests/{folder}/test_{stem}.py"]
    if name in SHARED:
        suites = [tests_of(f"methods/{method}") for method in SHARED[name]]
        found = [own] * (ROOT / own[0]).exists() + [suite for turn in zip(*suites, strict=True) for suite in turn]
        return [*found, list(TESTS[name])] if name in TESTS else found
    word = stem.replace("_", "-")
    if folder == "methods":
        own += [f"tests/interop/test_peft_{stem}.py", GOLDEN[0]]
        own = [each for each in own if (ROOT / each).exists()]
        first = [*own, "-k", f"test_{stem}.py or _{stem}.py or 0.1.0-{word}"]
        return [first, ["tests/contract/test_methods.py", "-k", f"[{word}-bert"], [f"{DEFAULTS}[method {word}]"]]
    parent = next((key for key in sorted(TESTS, reverse=True) if name.startswith(key)), "")
    first = [each for each in dict.fromkeys((*own, *TESTS.get(parent, ()))) if (ROOT / each).exists()]
    hostile = name in ("store/adapter", "store/files", "store/record")
    return [each for each in (first, [HOSTILE] if hostile else []) if each]


def tried(name: str, tree: ast.Module, tests: list[str], seconds: int) -> tuple[str, float]:
    """Whether tests notice a tree in place of a file, within so much processor time; and what they took."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.meta_path.insert(0, Changed(f"deltatune.{name.replace('/', '.')}", SOURCE / f"{name}.py", tree))
        import doctest

        import pytest

        if doctest.testmod(importlib.import_module(f"deltatune.{name.replace('/', '.')}")).failed:
            os._exit(1)
        words = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--timeout", "0"]
        words += ["-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]
        os._exit(int(pytest.main(words)))
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    outcome = {0: "survived", 5: "without tests"}.get(code, "killed")
    return outcome, used.ru_utime + used.ru_stime


class Suite:
    """Tests of a file, and how long they may take: three times what they take on the file as it is."""

    def __init__(self, name: str, tests: list[str]) -> None:
        self.name, self.tests = name, tests

    @cached_property
    def seconds(self) -> int:
        """Processor time a mutant may use; 0 when there is nothing to run. Tried when it is first asked for."""
        whole = ast.parse((SOURCE / f"{self.name}.py").read_text(encoding="utf-8"))
        outcome, seconds = tried(self.name, whole, self.tests, 600)
        if outcome == "killed":
            raise SystemExit(f"{self.name}: the tests fail on the file as it is; {self.tests}")
        return int(3 * seconds) + 10 if outcome == "survived" else 0

    def notice(self, tree: ast.Module) -> bool:
        """Whether a test fails on a tree in place of the file."""
        return bool(self.seconds) and tried(self.name, tree, self.tests, self.seconds)[0] == "killed"


def measured(name: str, share: float, seed: int) -> dict[str, Any]:
    """A share of the mutants of a file, each killed or not."""
    path = SOURCE / f"{name}.py"
    suites, every = [Suite(name, tests) for tests in tests_of(name)], mutants(path)
    if not suites:
        raise SystemExit(f"{name}: no tests belong to it; name some in TESTS")
    random.Random(f"{seed} {name}").shuffle(every)
    drawn = every[: math.ceil(share * len(every))]
    lines, survivors = path.read_text(encoding="utf-8").splitlines(), []
    for line, what, tree in sorted(drawn, key=lambda each: each[0]):
        if not any(suite.notice(tree) for suite in suites):
            survivors.append({"line": line, "code": lines[line - 1].strip(), "change": what})
            print(f"    {name}:{line} {what}: {lines[line - 1].strip()}", flush=True)
    print(f"{name}: {len(drawn) - len(survivors)} of {len(drawn)} killed ({len(every)} possible)", flush=True)
    return {"possible": len(every), "tried": len(drawn), "survivors": survivors}


def with_reasons(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The reasons that were given for the same change of the same line."""
    known = {(each["code"], each["change"]): each["why"] for each in old.get("survivors", ()) if "why" in each}
    for each in new["survivors"]:
        if (each["code"], each["change"]) in known:
            each["why"] = known[each["code"], each["change"]]
    return new


def counts(results: list[dict[str, Any]]) -> tuple[int, int, int]:
    """How many changes were possible, tried and not noticed."""
    possible, number = (sum(each[what] for each in results) for what in ("possible", "tried"))
    return possible, number, sum(len(each["survivors"]) for each in results)


def row(name: str, results: list[dict[str, Any]]) -> str:
    """A line of a table."""
    possible, number, left = counts(results)
    return f"| {name} | {possible} | {number} | {number - left} | {left} |"


def interval(results: list[dict[str, Any]]) -> str:
    """Share of the killed ones and its 95 % interval (Wilson), in percent, as a cell."""
    _, number, left = counts(results)
    z2, share = 1.96**2, 1 - left / number
    middle, half = share + z2 / (2 * number), math.sqrt(z2 * (share * (1 - share) + z2 / (4 * number)) / number)
    low, high = ((middle + sign * half) / (1 + z2 / number) for sign in (-1, 1))
    return f" {100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f}) |"


def page(draws: dict[str, Any]) -> str:
    """The results of every draw as a page."""
    text = """# Mutants: whether the tests notice a change of the code

Written by `python benchmarks/mutants.py`: operators, constants, conditions, calls and results are changed one at a
time, and the tests that belong to the file must fail. Not every change was tried: of each file a share, rounded up,
drawn by a seed; the interval is what that says of all of them. Tests were written for what went unnoticed in the first
draw (seed 0), which is shown as it is with them; a later draw says how many of the other changes are noticed.
"""
    return text + "".join(section(seed, draws[seed]) for seed in sorted(draws, reverse=True))


def section(seed: str, draw: dict[str, Any]) -> str:
    """One draw: tables and survivors."""
    files = dict(sorted(draw["files"].items()))
    folders = dict.fromkeys(name.split("/")[0] for name in files)
    parts = {f"`{folder}/`": [each for name, each in files.items() if name.startswith(folder)] for folder in folders}
    parts["all"] = list(files.values())
    head = "changes possible | tried | killed | survivors |"
    text = f"\n## Seed {seed}, a share of {draw['share']:g}\n"
    text += f"\n| folder | {head} killed, 95 % interval |\n|---|---|---|---|---|---|\n"
    text += "".join(f"{row(name, each)}{interval(each)}\n" for name, each in parts.items())
    text += f"\n| file | {head}\n|---|---|---|---|---|\n"
    text += "".join(f"{row(f'`{name}.py`', [each])}\n" for name, each in files.items())
    text += f"\n### Survivors of seed {seed}\n\n| place | change | code | why |\n|---|---|---|---|\n"
    for name, each in files.items():
        for s in each["survivors"]:
            code = s["code"].replace("|", "\\|")
            text += f"| `{name}.py:{s['line']}` | {s['change']} | `{code}` | {s.get('why', 'not looked at yet')} |\n"
    return text


def main() -> None:
    """Tries the mutants of the asked files and writes results and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    for module in PRELOADED:
        importlib.import_module(module)
    files = [path for folder in ("store", "ops", "methods") for path in SOURCE.glob(f"{folder}/[!_]*.py")]
    for name in sorted(given.only or [*(f"{path.parent.name}/{path.stem}" for path in files), *SHARED]):
        new = measured(name, given.share, given.seed)
        draws = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        draw = draws.setdefault(str(given.seed), {"share": given.share, "files": {}})
        draw["files"][name] = with_reasons(new, draw["files"].get(name, {}))
        RESULTS.write_text(json.dumps(draws, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PAGE.write_text(page(draws), encoding="utf-8")


if __name__ == "__main__":
    main()
