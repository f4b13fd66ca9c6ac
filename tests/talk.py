"""A byte-level tokenizer with roles, chat templates of every usual kind, and tiny language models that read them."""

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import deltatune

BEGIN, END, OPEN, CLOSE, ENDOFTEXT = "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATE = (  # as Llama 2: roles alternate, the system message stands in the first question, answers end with </s>
    "{% if messages[0].role == 'system' %}"
    "{% set system = '<<' + messages[0].content + '>> ' %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINKS = (  # as Qwen3: the last answer has a thought, those before it have lost theirs
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (  # tools in front, calls and results as JSON
    "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ (call.function | tojson) }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OTHERWISE = (  # asks for an answer with a thought that answers do not begin with
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"
)
ENDLESS = (  # nothing ends an answer
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def tokenizer(template=CHATML, *, end=CLOSE, pad=None, begins=False):
    """Bytes, a few merged ones, and special tokens; `begins` puts <s> in front of plain texts."""
    cut = Tokenizer(models.BPE(unk_token=None))
    cut.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut.decoder = decoders.ByteLevel()
    special = [ENDOFTEXT, BEGIN, END, OPEN, CLOSE]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    cut.train_from_iterator(["user assistant system what is the answer to this question"] * 3, trainer)
    if begins:
        cut.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=cut,
        bos_token=BEGIN,
        eos_token=end,
        pad_token=pad or end,
        additional_special_tokens=special,
        chat_template=template,
        model_max_length=256,
    )


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 4,
}
FAMILIES = {
    "llama": lambda: tf.LlamaConfig(**SIZES, attention_bias=True),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=4, pad_token_id=4
    ),
    "qwen3": lambda: tf.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True, attention_bias=True),
}
"""With biases, so that BitFit has something to train."""
METHODS = {
    "lora": {"target_modules": "all-linear"},
    "ia3": {},
    "adapter": {},
    "bitfit": {},
    "prefix": {"num_virtual_tokens": 3},
    "prompt": {"num_virtual_tokens": 3},
}


def model(family, scale=4.0):
    """A random language model whose weights are large enough for answers to differ."""
    torch.manual_seed(0)
    network = tf.AutoModelForCausalLM.from_config(FAMILIES[family]())
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    network.config.use_cache = False
    return network.eval()


def adapted(family, method):
    """A model whose adapter has been moved from its start, or no adapter."""
    network = model(family)
    if method is not None:
        adapter = deltatune.attach(network, deltatune.method(method, **METHODS[method]), seed=0)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def folder(path, family, **cut):
    """A model folder as transformers saves it."""
    tokenizer(**cut).save_pretrained(path)
    model(family).save_pretrained(path)
    return str(path)
