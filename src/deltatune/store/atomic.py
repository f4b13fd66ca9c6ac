"""Folders and files that are either whole or not there.

A folder is written beside its place: every file synced, a manifest with sizes and hashes last, then one rename. A
killed process leaves a hidden folder behind, whose name says which process it belonged to; `sweep` tidies up.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deltatune.core.errors import DeltatuneError
from deltatune.store.owner import alive, this_process

logger = logging.getLogger("deltatune")

MANIFEST = "manifest.json"
STAGING, REPLACED, TRASH = ".staging", ".replaced", ".trash"
"""What hidden names begin with: being written, stepped aside for a new one, being deleted."""


@contextmanager
def folder(final: Path, *, manifest: bool = True, own: Collection[str] | None = None) -> Iterator[Path]:
    """A staging folder that becomes `final` when the block ends well; what stood at `final` is replaced.

    With `own` only what has one of these names is: everything else there stays. With a manifest it holds files only, no
    folders. After an exception `final` is as it was and nothing else is left.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = _hidden(STAGING, final)
    staging.mkdir()
    try:
        yield staging
        for path in sorted(staging.rglob("*")):
            _sync(path)
        if manifest:
            write_text(staging / MANIFEST, json.dumps(_manifest(staging), indent=2, sort_keys=True) + "\n")
        _sync(staging)
        _put(staging, final, own)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one, never a part."""
    staging = _hidden(STAGING, path)
    try:
        with staging.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def problem(path: Path) -> str | None:
    """What is wrong with a folder by its manifest: a missing, extra, cut or changed file; None when all is well."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no readable {MANIFEST} ({type(error).__name__})"
    try:
        return _difference(path, files)
    except OSError as error:
        return f"cannot be read ({error})"


def _difference(path: Path, files: Mapping[str, tuple[int, str]]) -> str | None:
    """What is otherwise than a manifest says; raises `OSError` when the disk does not give it back."""
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    if present != files.keys():
        return f"files differ from the manifest: {', '.join(sorted(present ^ files.keys()))}"
    for name, (size, digest) in files.items():
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
        if _sha256(path / name) != digest:
            return f"{name} has changed since it was written"
    return None


def numbered(parent: Path, prefix: str) -> list[tuple[int, Path]]:
    """The folders `<prefix><number>`, lowest number first."""
    found = ((path.name.removeprefix(prefix), path) for path in parent.glob(f"{prefix}*"))
    return sorted((int(tail), path) for tail, path in found if tail.isascii() and tail.isdigit())


def newest_valid(parent: Path, prefix: str) -> Path | None:
    """The folder `<prefix><number>` with the highest number whose manifest holds; refused ones are reported."""
    for _, path in reversed(numbered(parent, prefix)):
        wrong = problem(path)
        if wrong is None:
            return path
        logger.warning("%s is not usable: %s", path, wrong)
    return None


def prune(parent: Path, prefix: str, keep: int) -> None:
    """Deletes all but the newest `keep` folders `<prefix><number>`; at least one stays."""
    assert keep >= 1
    for _, path in numbered(parent, prefix)[:-keep]:
        discard(path)


def discard(path: Path) -> None:
    """Deletes a folder so that it disappears at once, by a rename; nobody sees half of it."""
    trash = _hidden(TRASH, path)
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Tidies up after processes that were killed: unfinished and half-deleted folders go, a replaced one returns.

    What belongs to a living process stays.
    """
    for path in sorted(parent.glob(".*")):
        kind, _, rest = path.name.partition("-")
        if kind not in (STAGING, REPLACED, TRASH) or rest.count("-") < 2:
            continue
        name, owner, _ = rest.rsplit("-", 2)
        if alive(owner):
            continue
        if kind == REPLACED and not (parent / name).exists():  # killed between the two renames of a replacement
            path.rename(parent / name)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _hidden(kind: str, path: Path) -> Path:
    """A name beside a path that says what it is for and which process made it."""
    return path.parent / f"{kind}-{path.name}-{this_process()}-{secrets.token_hex(4)}"


def _put(staging: Path, final: Path, own: Collection[str] | None) -> None:
    """Puts the staging folder in place; an existing folder steps aside first, and back if that fails."""
    if not final.exists():
        staging.rename(final)
        return
    if not final.is_dir():
        raise DeltatuneError(f"{final} is a file where a folder is to be written", hint="choose another output_dir")
    aside = _hidden(REPLACED, final)
    final.rename(aside)
    try:
        staging.rename(final)
    except BaseException:
        aside.rename(final)
        raise
    for path in () if own is None else [path for path in aside.iterdir() if path.name not in own]:
        path.rename(final / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def _manifest(path: Path) -> dict[str, dict[str, object]]:
    return {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(path.iterdir())}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
