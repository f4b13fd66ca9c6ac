"""Real data sets for the examples, as the files that the example configs name; nothing is made twice.

    python examples/data.py [NAME [--from DIR]]

Every file of examples/prepare/ makes one data set; its first lines say where it comes from and under which licence.
The folders are .cache/data/NAME. `--from` names the folder of a public data set that no package brings.
Without a name, the known ones are listed.
"""

import argparse
import importlib
import shutil
from pathlib import Path

FOLDER = Path(__file__).parent / "prepare"
DATA = Path(".cache/data")


def main() -> None:
    """Makes the data set that is named."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("name", nargs="?")
    options.add_argument("--from", dest="source", type=Path)
    given = options.parse_args()
    known = sorted(path.stem for path in FOLDER.glob("*.py"))
    if given.name is None:
        for name in known:
            print(f"{name:20} {(importlib.import_module(f'prepare.{name}').__doc__ or '').splitlines()[0]}")
        return
    name = given.name.replace("-", "_")
    if name not in known:
        raise SystemExit(f"{given.name} is unknown; known: {', '.join(known)}")
    make(name, given.source)


def make(name: str, source: Path | None = None) -> None:
    """One folder of data, whole or not at all."""
    folder = DATA / name.replace("_", "-")
    if not folder.is_dir():
        staging = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        importlib.import_module(f"prepare.{name}").make(staging, source)
        staging.rename(folder)
    print(folder)


if __name__ == "__main__":
    main()
