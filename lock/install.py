"""Installs deltatune and what its make targets need into the environment of the Python that runs this.

Where the lock is for (CPython 3.11 on Linux x86-64, glibc 2.28 or newer), every file is compared with its sha256 and
nothing else is fetched. A build of torch with CUDA wants libraries of its own, which are not in the lock: pip adds
them. Elsewhere the versions are those of `constraints.txt`, without hashes.
"""

import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "dev,report,text,vision,audio,chem,hpo"


def pip(*words: str) -> None:
    """Runs pip of this environment; raises `CalledProcessError` when it fails."""
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=ROOT, check=True)


def locked() -> bool:
    """Whether the lock is for this platform."""
    here = (platform.python_implementation(), sys.version_info[:2], platform.system(), platform.machine())
    kind, version = platform.libc_ver()
    new = kind == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 28)
    return here == ("CPython", (3, 11), "Linux", "x86_64") and new


def main() -> None:
    """Installs, and checks that nothing is missing."""
    if locked():
        exact = ("install", "--quiet", "--require-hashes", "--no-deps")
        pip(*exact, "--only-binary", ":all:", "-r", "lock/wheels.txt")
        pip(*exact, "--no-build-isolation", "-r", "lock/source.txt")
        with TemporaryDirectory() as place:  # of builds with equal rights pip would take that of the index
            pip("download", "--quiet", "--no-deps", "--dest", place, "-c", "constraints.txt", "torch")
            pip(*exact, "--no-index", "--find-links", place, "-r", "lock/torch.txt")
        pip("install", "--quiet", "-c", "constraints.txt", "torch")  # the libraries of a build with CUDA
        pip("install", "--quiet", "--no-deps", "--no-build-isolation", "-e", ".")
    else:
        print("the lock is for CPython 3.11 on Linux x86-64: versions of constraints.txt, without hashes")
        pip("install", "--quiet", "--upgrade", "pip")
        pip("install", "--quiet", "-c", "constraints.txt", "torch")
        pip("install", "--quiet", "-c", "constraints.txt", "-e", f".[{EXTRAS}]")
    pip("check")


if __name__ == "__main__":
    main()
