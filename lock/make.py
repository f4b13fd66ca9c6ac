"""Writes the lock: what pip takes for `constraints.txt` on this platform, each file with its sha256 (`make lock`).

wheels.txt   everything but what follows
source.txt   what has no wheel: built without a network, with the tools in wheels.txt
torch.txt    torch alone, with a hash for every build that this version has been locked from: an index may offer
             one with CUDA, a folder of wheels one without
"""

import json
import re
import subprocess
import sys
from typing import Any

from install import EXTRAS, ROOT

LOCK = ROOT / "lock"
TOOLS = ("pip", "hatchling", "editables", "setuptools", "setuptools-scm")
"""What installs and builds, ourselves and what has no wheel."""


def chosen() -> list[dict[str, Any]]:
    """What pip would install into an empty environment, without the libraries of a torch with CUDA."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["-c", "constraints.txt", f".[{EXTRAS}]", *TOOLS]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    left_out = ("deltatune", "nvidia-", "cuda-", "triton")
    return [each for each in found if not each["metadata"]["name"].startswith(left_out)]


def line(name: str, version: str, hashes: list[str]) -> str:
    """A requirement with its hashes."""
    return " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{each}" for each in hashes)]) + "\n"


def main() -> None:
    """Writes the three files."""
    lines: dict[str, list[str]] = {"wheels.txt": [], "source.txt": [], "torch.txt": []}
    for each in sorted(chosen(), key=lambda each: each["metadata"]["name"].lower()):
        name, version = each["metadata"]["name"], each["metadata"]["version"].split("+")[0]
        info = each["download_info"]
        hashes = [info["archive_info"]["hashes"]["sha256"]]
        place = "torch.txt" if name == "torch" else "wheels.txt" if info["url"].endswith(".whl") else "source.txt"
        if name == "torch":
            before = (LOCK / place).read_text(encoding="utf-8") if (LOCK / place).exists() else ""
            known = re.findall(r"sha256:(\w+)", before) if f"torch=={version} " in before else []
            hashes = sorted({*known, *hashes})
        lines[place].append(line(name, version, hashes))
    for place, found in lines.items():
        (LOCK / place).write_text("".join(found), encoding="utf-8")


if __name__ == "__main__":
    main()
