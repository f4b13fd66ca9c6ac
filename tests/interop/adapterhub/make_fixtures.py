"""Makes the AdapterHub folders and reference logits beside this file with the library `adapters` itself.

`adapters` pins an older transformers, so it needs an environment of its own:

    python3.11 -m venv /tmp/adapters-env
    /tmp/adapters-env/bin/pip install torch==2.13.0 "transformers==4.57.6" "adapters==1.3.0" safetensors
    /tmp/adapters-env/bin/python tests/interop/adapterhub/make_fixtures.py

Every value, norms and biases included, is random from a seed made of its place; base weights are kept in half
precision and computed with in float32. Written per family:

    <family>/base/                 config.json, model.safetensors
    <family>/<case>/               adapter_config.json, adapter.safetensors, as `save_adapter` writes them
    <family>/fusion/               adapter_setup.json, a/ b/ c/ a,b,c/, as `save_adapter_setup` writes them
    <family>/expected.safetensors  input.<name> and logits.<case>
"""

import shutil
import tempfile
import zlib
from pathlib import Path

import adapters
import torch
import transformers as tf
from adapters import (
    CompacterConfig,
    CompacterPlusPlusConfig,
    ConfigUnion,
    DoubleSeqBnConfig,
    IA3Config,
    LoRAConfig,
    MAMConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
)
from adapters.composition import Fuse
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).parent
ROWS, TOKENS = 3, 6
NAME = "task"

BERT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "num_labels": 3,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 24, "bos_token_id": 1}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 99,
    "d_model": 32,
    **{f"{stack}_layers": 2 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 48 for stack in ("encoder", "decoder")},
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
DISTILBERT = {"vocab_size": 99, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 24}
LLAMA = {**{k: v for k, v in BERT.items() if k != "num_labels"}, "num_key_value_heads": 2}
VIT = {**{k: BERT[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}}

FAMILIES = {
    "bert": (tf.BertForSequenceClassification, tf.BertConfig(**BERT)),
    "roberta": (tf.RobertaForSequenceClassification, tf.RobertaConfig(**BERT)),
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config(**T5, decoder_start_token_id=0)),
    "bart": (tf.BartForConditionalGeneration, tf.BartConfig(**BART)),
    "distilbert": (
        tf.DistilBertForSequenceClassification,
        tf.DistilBertConfig(**DISTILBERT, num_labels=3, pad_token_id=0),
    ),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config(**GPT2, eos_token_id=2)),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**LLAMA)),
    "vit": (tf.ViTForImageClassification, tf.ViTConfig(**VIT, image_size=16, patch_size=8, num_labels=3)),
}

SEQ, DOUBLE = SeqBnConfig(reduction_factor=4), DoubleSeqBnConfig(reduction_factor=8)
PREFIX = PrefixTuningConfig(flat=True, prefix_length=3)
CASES = {
    "seq_bn": SEQ,
    "double_seq_bn": DOUBLE,
    "lora": LoRAConfig(r=2, alpha=6),
    "ia3": IA3Config(),
    "prefix_tuning_flat": PREFIX,
}
POST_NORM = {
    "par_bn": ParBnConfig(),
    "scaled_par_bn": ParBnConfig(scaling="learned", reduction_factor=8, non_linearity="gelu_new"),
    "compacter": CompacterConfig(reduction_factor=4),
}
MORE = {
    "bert": {
        **POST_NORM,
        "prompt_tuning": PromptTuningConfig(prompt_length=3),
        "leave_out": DoubleSeqBnConfig(reduction_factor=4, non_linearity="leakyrelu", scaling=2.5, leave_out=[0]),
        "ln_after": SeqBnConfig(reduction_factor=4, non_linearity="tanh", ln_after=True),
        "compacter_plus_plus": CompacterPlusPlusConfig(reduction_factor=4, phm_rank=2),
        "lora_everywhere": LoRAConfig(
            r=2, alpha=1, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True, leave_out=[0]
        ),
        "prefix_tuning": PrefixTuningConfig(prefix_length=3, bottleneck_size=8),
        "union": ConfigUnion(LoRAConfig(r=2), SEQ),
        "mam": MAMConfig(PREFIX, ParBnConfig(reduction_factor=8)),
    },
    "roberta": {**POST_NORM, "prompt_tuning": PromptTuningConfig(prompt_length=3)},
    "t5": {
        "cross": DoubleSeqBnConfig(reduction_factor=4, cross_adapter=True, leave_out=[1, 2]),
        "compacter": CompacterConfig(reduction_factor=4),
        "par_bn": ParBnConfig(reduction_factor=8),
    },
    "bart": {
        "cross": DoubleSeqBnConfig(reduction_factor=8, cross_adapter=True),
        "par_bn": ParBnConfig(reduction_factor=8),
    },
    "distilbert": {"par_bn": ParBnConfig(reduction_factor=8)},
    "gpt2": {},
    "llama": {},
    "vit": {"prompt_tuning": PromptTuningConfig(prompt_length=3)},
}
FUSED = ("a", "b", "c")
FUSION = ("bert", "t5")


def main() -> None:
    """Writes everything anew."""
    for family, (cls, config) in FAMILIES.items():
        folder = HERE / family
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "base").mkdir(parents=True)
        write_base(cls(config), folder / "base")
        given = inputs(family)
        logits = {"base": answer(loaded(cls, folder / "base"), given)}
        for case, settings in {**CASES, **MORE[family]}.items():
            logits[case] = one_adapter(loaded(cls, folder / "base"), settings, folder / case, given)
        if family == "bert":
            logits["with_head"] = one_adapter(loaded(cls, folder / "base"), SEQ, folder / "with_head", given, head=True)
        if family in FUSION:
            logits["fusion"] = fused(loaded(cls, folder / "base"), folder / "fusion", given)
        tensors = {f"input.{k}": v for k, v in given.items()} | {f"logits.{k}": v for k, v in logits.items()}
        save_file(tensors, folder / "expected.safetensors")


def write_base(model: nn.Module, folder: Path) -> None:
    """A random model in half precision."""
    randomise(model.named_parameters())
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def loaded(cls: type, folder: Path) -> nn.Module:
    """The model of a folder in float32.

    Eager, because with the boolean masks of SDPA `adapters` 1.3.0 masks the prefixes of Llama and GPT-2 out.
    """
    model = cls.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager").eval()
    model.config.name_or_path = model.name_or_path = ""  # it is written into every folder
    return model


def randomise(named) -> None:
    """Random values by name: norms and scales around 1, biases around 0, matrices that keep sizes."""
    for name, tensor in named:
        rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(tensor.shape, generator=rng)
        is_scale = tensor.dim() == 1 and name.endswith(("weight", "scaling"))
        spread = 0.1 if tensor.dim() == 1 else 0.5 if tensor.dim() == 3 else tensor.shape[-1] ** -0.5
        with torch.no_grad():
            tensor.copy_(noise * (0.5 if name.endswith("control_trans") else spread) + is_scale)


def inputs(family: str) -> dict[str, torch.Tensor]:
    """Tokens with padding, or pictures."""
    rng = torch.Generator().manual_seed(7)
    if family == "vit":
        return {"pixel_values": torch.randn(ROWS, 3, 16, 16, generator=rng)}
    given = {"input_ids": torch.randint(3, 99, (ROWS, TOKENS), generator=rng)}
    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[1, 4:] = 0
    mask[2, 3:] = 0
    given |= {"attention_mask": mask}
    given["input_ids"] = given["input_ids"] * mask + 0 * (1 - mask)
    if family in ("t5", "bart"):
        given["decoder_input_ids"] = torch.randint(3, 99, (ROWS, 4), generator=rng)
    return given


def answer(model: nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of a batch."""
    with torch.no_grad():
        return model(**given).logits.clone()


def one_adapter(
    model: nn.Module, settings, folder: Path, given: dict[str, torch.Tensor], head: bool = False
) -> torch.Tensor:
    """Saves a random adapter, perhaps with a new head, and returns its logits."""
    adapters.init(model)
    model.add_adapter(NAME, config=settings)
    randomise(own(model, NAME))
    model.set_active_adapters(NAME)
    if head:
        randomise((f"new {key}", tensor) for key, tensor in model.classifier.named_parameters())
    save(model, NAME, folder, head)
    return answer(model.eval(), given)


def fused(model: nn.Module, folder: Path, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Saves three random adapters and their random fusion, and returns its logits."""
    adapters.init(model)
    for name in FUSED:
        model.add_adapter(name, config=SEQ)
        randomise(own(model, name))
    setup = Fuse(*FUSED)
    model.add_adapter_fusion(setup)
    randomise((key, tensor) for key, tensor in model.named_parameters() if "adapter_fusion_layer" in key)
    model.set_active_adapters(setup)
    model.save_adapter_setup(str(folder), setup, use_safetensors=True)
    for head in folder.rglob("*head*"):
        head.unlink()
    return answer(model.eval(), given)


def own(model: nn.Module, name: str):
    """Parameters of one adapter; `adapters` puts its name somewhere in their paths."""
    return [(key, tensor) for key, tensor in model.named_parameters() if f".{name}." in key]


def save(model: nn.Module, name: str, folder: Path, head: bool = False) -> None:
    """`save_adapter`; it cannot write prefixes as safetensors (the pool is in every layer): by a pickle then."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model.save_adapter(str(folder), name, use_safetensors=True, with_head=head)
    except RuntimeError as error:
        assert "share memory" in str(error), error
        with tempfile.TemporaryDirectory() as spare:
            model.save_adapter(spare, name, with_head=False)
            tensors = torch.load(Path(spare) / "pytorch_adapter.bin", weights_only=True)
            shutil.copy(Path(spare) / "adapter_config.json", folder)
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "adapter.safetensors")
    assert load_file(folder / "adapter.safetensors")


if __name__ == "__main__":
    main()
