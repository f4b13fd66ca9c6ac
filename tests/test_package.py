"""What is handed out: the files of the wheel, what it depends on, and that importing it reaches for no network."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "deltatune"
PAGES = SOURCE / "report" / "templates"
DATA = [*PAGES.iterdir(), SOURCE / "advise" / "evidence.json", SOURCE / "py.typed"]
"""What the package holds besides its source."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MOST = 16
"""Libraries that the package asks for itself; each is one more way in."""


def named(requirements):
    """Names of libraries in lines such as `torch>=2.10`."""
    return {line.split(">=")[0].split("[")[0].lower() for line in requirements}


def imported():
    """Top-level modules that the source imports, lazily or not, ours and Python's own left out."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "extra":
                found.add(ast.literal_eval(node.args[0]))
    return {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {"deltatune"}


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(built).namelist()
    code = {name for name in names if ".dist-info/" not in name}
    own = [*SOURCE.rglob("*.py"), *DATA]
    assert code == {f"deltatune/{path.relative_to(SOURCE)}" for path in own}
    about = {name.split(".dist-info/")[1] for name in names if ".dist-info/" in name}
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert not [name for name in names if name.startswith(("/", "..")) or "__pycache__" in name]


def test_two_builds_of_the_wheel_are_equal(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    built = [
        next(wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path / str(n)), versions=["standard"]))
        for n in (1, 2)
    ]
    assert Path(built[0]).read_bytes() == Path(built[1]).read_bytes()


def test_the_package_holds_source_templates_of_pages_evidence_and_the_mark_of_its_types_only():
    others = {path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == set(DATA)
    assert {path.suffix for path in PAGES.iterdir()} == {".j2", ".css"}
    assert not list(SOURCE.rglob("test_*")) + list(SOURCE.rglob("*conftest*"))


def test_dependencies_are_few_and_each_has_a_lowest_version():
    assert len(PROJECT["dependencies"]) <= MOST
    lines = [line for group in PROJECT["optional-dependencies"].values() for line in group]
    assert not [line for line in PROJECT["dependencies"] if ">=" not in line or "://" in line]
    assert not [line for line in lines if "://" in line]


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    extras = named(line for group in PROJECT["optional-dependencies"].values() for line in group)
    of_module = {"pynvml": ["nvidia-ml-py"], **packages_distributions()}  # an extra that is installed beside a GPU only
    used = {of_module.get(name, [name])[0].lower().replace("_", "-") for name in imported()} - {"no-such-library"}
    assert used <= named(PROJECT["dependencies"]) | extras
    assert named(PROJECT["dependencies"]) <= used


def test_versions_with_known_holes_are_not_allowed():
    """torch below 2.10 unpickles with `weights_only` unsafely, transformers below 5.5 runs code from a config."""
    lowest = dict(line.split(">=") for line in PROJECT["dependencies"])
    at_least = {"torch": (2, 10), "transformers": (5, 5)}
    assert all(tuple(map(int, lowest[name].split("."))) >= version for name, version in at_least.items())


def test_importing_every_module_opens_no_socket_and_starts_no_process():
    script = """
import importlib, pkgutil, sys
def hear(event, args):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request", "os.system")):
        raise SystemExit(f"{event} {args!r}")
    if event == "subprocess.Popen":
        print("process", args[1])
sys.addaudithook(hear)
import deltatune
names = [info.name for info in pkgutil.walk_packages(deltatune.__path__, "deltatune.")]
for name in names:
    importlib.import_module(name)
print(len(names), "modules")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-2]) > 200
    assert "process" not in done.stdout


def test_the_lock_has_the_versions_of_the_constraints_and_a_hash_for_every_file():
    pinned = {name.lower().replace("_", "-"): version for name, version in pins("constraints.txt")}
    for file in ("wheels", "source", "torch"):
        text = (ROOT / "lock" / f"{file}.txt").read_text()
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}(?: \\)?$", text, re.MULTILINE)) == text.count("--hash")
        assert all("--hash" in entry for entry in re.split(r"\n(?=\w)", text)), file
    locked = {
        name.lower().replace("_", "-"): version
        for file in ("wheels", "source", "torch")
        for name, version in pins(f"lock/{file}.txt")
    }
    assert locked.items() >= pinned.items()
    assert {"pip", "setuptools", "hatchling", "editables"} <= locked.keys()


def test_the_oldest_versions_are_those_that_pyproject_allows():
    """The first release of every floor, but for the tools that look at the source."""
    pinned = {name.lower().replace("_", "-"): version for name, version in pins("constraints-oldest.txt")}
    extras = ("dev", "report", "text", "vision", "audio", "chem")
    asked = [*PROJECT["dependencies"], *(line for e in extras for line in PROJECT["optional-dependencies"][e])]
    for line in asked:
        name, _, floor = line.partition(">=")
        if name not in ("torch", "ruff", "mypy", "hatchling", "types-PyYAML"):
            found = pinned[name.lower()]
            assert found == floor or found.startswith(f"{floor}."), f"{line}: {found}"


def pins(path: str) -> list[tuple[str, str]]:
    """Names and versions of a requirements file."""
    return re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / path).read_text(), re.MULTILINE)
