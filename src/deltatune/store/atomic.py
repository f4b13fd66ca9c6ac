"""Folders and files that are either whole or not there.

A folder is written beside its place, every file synced, a manifest with sizes and hashes last, then renamed. A
killed process leaves a `.staging-*` folder, which the next one sweeps away.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltatune.core.errors import DeltatuneError

logger = logging.getLogger("deltatune")

MANIFEST = "manifest.json"
STALE_AFTER_S = 3600.0
"""Age at which a staging folder of no known process is left over."""


@contextmanager
def folder(final: Path, *, manifest: bool = True) -> Iterator[Path]:
    """A staging folder that becomes `final` when the block ends well; what stood at `final` is replaced.

    After an exception `final` is as it was and the staging folder is gone.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = final.parent / f".staging-{final.name}-{os.getpid()}-{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        yield staging
        if manifest:
            write_text(staging / MANIFEST, json.dumps(_manifest(staging), indent=2, sort_keys=True) + "\n")
        for path in staging.iterdir():
            _sync(path)
        _sync(staging)
        _replace(staging, final)
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one, never a part."""
    staging = path.parent / f".staging-{path.name}-{os.getpid()}-{secrets.token_hex(4)}"
    with staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
    _sync(path.parent)


def problem(path: Path) -> str | None:
    """What is wrong with a folder by its manifest: a missing, extra, cut or changed file; None when all is well."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no readable {MANIFEST} ({type(error).__name__})"
    present = {file.name for file in path.iterdir()} - {MANIFEST}
    if present != files.keys():
        return f"files differ from the manifest: {', '.join(sorted(present ^ files.keys()))}"
    for name, (size, digest) in files.items():
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
        if _sha256(path / name) != digest:
            return f"{name} has changed since it was written"
    return None


def newest_valid(parent: Path, prefix: str) -> Path | None:
    """The folder `<prefix><number>` with the highest number whose manifest holds; refused ones are reported."""
    numbered = [(_number(path, prefix), path) for path in parent.glob(f"{prefix}*")]
    for number, path in sorted(numbered, reverse=True):
        if number < 0:
            continue
        wrong = problem(path)
        if wrong is None:
            return path
        logger.warning("%s is not usable: %s", path, wrong)
    return None


def prune(parent: Path, prefix: str, keep: int) -> None:
    """Deletes all but the newest `keep` folders `<prefix><number>`; each disappears at once, by a rename."""
    numbered = sorted((_number(path, prefix), path) for path in parent.glob(f"{prefix}*") if _number(path, prefix) >= 0)
    for _, path in numbered[:-keep]:
        trash = parent / f".trash-{path.name}-{os.getpid()}-{secrets.token_hex(4)}"
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Removes staging and trash that no living process owns."""
    for path in (*parent.glob(".staging-*"), *parent.glob(".trash-*")):
        owner = path.name.rsplit("-", 2)[-2]
        old = time.time() - path.stat().st_mtime > STALE_AFTER_S
        if owner.isdigit() and (not _alive(int(owner)) or old):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _manifest(path: Path) -> dict[str, dict[str, object]]:
    return {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(path.iterdir())}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(staging: Path, final: Path) -> None:
    """Puts the staging folder in place; an existing folder steps aside first, and back if that fails."""
    if not final.exists():
        staging.rename(final)
        return
    if not final.is_dir():
        raise DeltatuneError(f"{final} is a file where a folder is to be written", hint="choose another output_dir")
    trash = final.parent / f".trash-{final.name}-{os.getpid()}-{secrets.token_hex(4)}"
    final.rename(trash)
    try:
        staging.rename(final)
    except OSError:
        trash.rename(final)
        raise
    shutil.rmtree(trash, ignore_errors=True)


def _number(path: Path, prefix: str) -> int:
    tail = path.name.removeprefix(prefix)
    return int(tail) if tail.isdigit() else -1


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
