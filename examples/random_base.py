"""A model folder again with random weights: what the same adapter learns on it shows what pretraining is worth.

    python examples/random_base.py .cache/models/NAME

writes .cache/models/NAME-random; everything but the weights stays.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoConfig

from deltatune.engine.meta import from_config

SEED = 0


def main() -> None:
    """Makes the folder that stands beside the one that is named."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "config.json").is_file():
        raise SystemExit(__doc__)
    print(make(Path(sys.argv[1])))


def make(source: Path) -> Path:
    """The folder with random weights."""
    folder = source.with_name(f"{source.name}-random")
    kind = type(from_config(str(source)))
    torch.manual_seed(SEED)
    model = kind(AutoConfig.from_pretrained(source))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*", "pretraining.json"))
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
