"""The shape of the project, over its syntax trees: arrows, cycles, what is never called, what must exist."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "deltatune"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

GROUPS = [
    {"ops"},
    {"core"},
    {"models"},
    {"methods", "tasks"},
    {"engine", "store", "data"},
    {"train", "evaluate", "advise", "report"},
    {"deploy", "serve"},
    {"adapters"},
    {"ground"},
    {"finetuning", "advising"},
    {"many"},
    {"rehearsal", "comparison"},
    {"api"},
    {"cli", "web"},
]
"""Arrows point to an earlier group."""
EXCEPTIONS = {("evaluate", "data")}
ROOT_FILES = {"__init__", "adapters", "ground", "advising", "finetuning", "many", "api"}


def place(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def module(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of ours and others that a file imports, lazily or not, with the line."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def rank(name: str) -> int:
    return next(index for index, group in enumerate(GROUPS) if name in group)


def test_arrows_point_left_only():
    wrong = []
    for path in FILES:
        own = place(path)
        if own == "__init__":
            continue
        for name, line in imports(path):
            parts = name.split(".")
            if parts[0] != "deltatune" or len(parts) < 2 or parts[1] == own or parts[1] == "__version__":
                continue
            allowed = rank(parts[1]) < rank(own) or (own, parts[1]) in EXCEPTIONS
            if not allowed:
                wrong.append(f"{where(path, line)} imports {name}")
    assert not wrong


def test_methods_import_core_ops_torch_and_nothing_else():
    allowed = {"deltatune.core", "deltatune.ops", "torch", "pydantic"} | set(sys.stdlib_module_names)
    wrong = [
        f"{where(path, line)} imports {name}"
        for path in FILES
        if place(path) == "methods"
        for name, line in imports(path)
        if not any(name == known or name.startswith(f"{known}.") for known in allowed)
    ]
    assert not wrong


def test_there_are_no_cycles():
    known = {module(path): path for path in FILES}
    arrows = {name: {found for found, _ in imports(path) if found in known} for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in arrows[name] - {name}:
                if other != "deltatune":  # the root is a table of names, it imports nothing of ours when loaded
                    visit(other, (*trail, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


@pytest.mark.parametrize("folder", ["methods", "tasks"])
def test_every_method_and_task_has_its_test_and_its_page(folder):
    for path in sorted((SOURCE / folder).glob("[!_]*.py")):
        assert (ROOT / "tests" / folder / f"test_{path.stem}.py").is_file(), f"{path.stem} has no test"
        page = ROOT / "docs" / folder / f"{path.stem.replace('_', '-')}.md"
        assert page.is_file(), f"{path.stem} has no page {page.relative_to(ROOT)}"


def test_the_engine_knows_no_method_by_name():
    names = {path.stem for path in (SOURCE / "methods").glob("[!_]*.py")} - {
        "full",
        "adapter",
    }  # the house says these words too
    wrong = []
    for path in FILES:
        if place(path) in ("engine", "train", "evaluate"):
            for node in ast.walk(TREES[path]):
                if isinstance(node, ast.Constant) and node.value in names | {n.replace("_", "-") for n in names}:
                    wrong.append(f"{where(path, node.lineno)} says {node.value!r}")
    assert not wrong


FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "os.system", "__import__"}


def test_nothing_is_unpickled_evaluated_or_handed_to_a_shell():
    wrong = []
    for path in FILES:
        wrong += [
            f"{where(path, line)} imports {name}"
            for name, line in imports(path)
            if name.split(".")[0] in FORBIDDEN_MODULES
        ]
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Call):
                if ast.unparse(node.func) in FORBIDDEN_CALLS:
                    wrong.append(f"{where(path, node.lineno)} calls {ast.unparse(node.func)}")
                wrong += [
                    f"{where(path, node.lineno)} passes {word.arg}={ast.unparse(word.value)}"
                    for word in node.keywords
                    if word.arg in ("shell", "allow_pickle", "trust_remote_code") and ast.unparse(word.value) != "False"
                ]
    assert not wrong


def test_code_of_a_model_repository_is_declined_wherever_one_is_loaded():
    """Unsaid, transformers asks at the terminal whether to run it."""
    auto = {"from_pretrained", "from_config"}
    wrong = [
        where(path, node.lineno)
        for path in FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in auto
        if not {"trust_remote_code", None} & {word.arg for word in node.keywords}
    ]
    assert not wrong


def test_names_say_what_a_file_is_for():
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "mixin", "base_classes"}
    assert not [path.name for path in FILES if empty & set(path.stem.split("_"))]


def test_files_and_functions_stay_small():
    wrong = [f"{path.name}: {n} lines" for path in FILES if (n := path.read_text().count("\n")) > 400]
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 60:
                    wrong.append(f"{where(path, node.lineno)} {node.name}: {lines} lines")
    assert not wrong


def test_public_names_are_documented():
    wrong = []
    for path, tree in TREES.items():
        if not ast.get_docstring(tree):
            wrong.append(f"{path.relative_to(ROOT)} has no docstring")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                members = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            elif isinstance(node, ast.Module):
                members = [m for m in node.body if isinstance(m, ast.FunctionDef | ast.ClassDef)]
            else:
                continue
            wrong += [
                f"{where(path, m.lineno)} {m.name}"
                for m in members
                if not m.name.startswith("_") and not ast.get_docstring(m)
            ]
    assert not wrong


def test_our_own_objects_are_not_probed():
    wrong = [
        where(path, node.lineno)
        for path in FILES
        if place(path) in ("core", "methods", "ops", "tasks")
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr"
    ]
    assert not wrong


def loaded(code: str) -> set[str]:
    """Modules that a fresh interpreter has after running some code."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_and_import_load_no_torch():
    heavy = {"torch", "transformers", "datasets", "numpy", "sklearn", "accelerate"}
    assert not heavy & loaded("import deltatune")
    assert not heavy & loaded("sys.argv = ['deltatune', '--help']; from deltatune.cli.main import main; main()")
    assert not heavy & loaded(
        "sys.argv = ['deltatune', 'train', '--help']; from deltatune.cli.main import main; main()"
    )


def test_every_command_is_a_file_and_every_file_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "deltatune.cli.main", "--help"], capture_output=True, text=True, check=True
    )
    for path in (SOURCE / "cli").glob("[!_]*.py"):
        if path.stem not in ("main", "show"):
            assert path.stem in done.stdout
