"""A small GPT-2 over films: what 400 users of MovieLens rated, one after the other (GroupLens' terms: research use).

Needs `python examples/data.py movielens --from DIR` first. The words are the films that at least three of these users
rated; dropout as SASRec has it. Two thirds of the MovieLens users, none of those it is adapted to.
"""

import csv
from pathlib import Path

import torch
from pretraining import pretrain
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from deltatune.core.histories import histories

FILE = Path(".cache/data/movielens/pretraining.csv")
USERS = 3
"""Users that must have rated a film that the model shall know."""
LENGTH = 100
"""Films that the model reads."""
SPECIAL = ("[PAD]", "[UNK]")
IGNORED = -100
ROWS, STEPS, RATE, DROPOUT, SEED = 16, 1000, 2e-3, 0.2, 0


def make(folder: Path) -> None:
    """The model and its vocabulary of films."""
    if not FILE.is_file():
        raise SystemExit(f"{FILE} is missing: python examples/data.py movielens --from DIR")
    with FILE.open(newline="", encoding="utf-8") as lines:
        rated = list(histories(list(csv.DictReader(lines)), again=False, min_rating=None).values())
    words = vocabulary(rated)
    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(config(len(words)))
    ids = [torch.tensor([words.get(item, 1) for item in items]) for items in rated]
    pretrain(
        model, lambda _, generator: _loss(model, _batch(ids, generator)), folder, steps=STEPS, rate=RATE, seed=SEED
    )
    tokenizer_of(words).save_pretrained(folder)


def vocabulary(rated: list[list[str]]) -> dict[str, int]:
    """Padding, the unknown film, and all films that enough users rated, most often rated first."""
    counts: dict[str, int] = {}
    for items in rated:
        for item in items:
            counts[item] = counts.get(item, 0) + 1
    known = sorted((item for item, count in counts.items() if count >= USERS), key=lambda item: -counts[item])
    return {word: index for index, word in enumerate([*SPECIAL, *known])}


def config(words: int) -> GPT2Config:
    """Two blocks of width 64; input and output share the vectors of the films."""
    return GPT2Config(
        vocab_size=words,
        n_embd=64,
        n_layer=2,
        n_head=2,
        n_positions=LENGTH,
        embd_pdrop=DROPOUT,
        resid_pdrop=DROPOUT,
        attn_pdrop=DROPOUT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )


def tokenizer_of(words: dict[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the films."""
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LENGTH
    )


def _batch(ids: list[Tensor], generator: torch.Generator) -> Tensor:
    """Stretches of histories, users drawn by the number of their films [B, T]."""
    sizes = torch.tensor([float(len(own)) for own in ids])
    batch = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for row, user in enumerate(torch.multinomial(sizes, ROWS, replacement=True, generator=generator).tolist()):
        own = ids[user]
        shown = min(len(own), LENGTH)
        start = int(torch.randint(len(own) - shown + 1, (), generator=generator))
        batch[row, :shown] = own[start : start + shown]
    return batch


def _loss(model: GPT2LMHeadModel, batch: Tensor) -> Tensor:
    """Cross entropy of the next film, over all films."""
    logits = model(batch, attention_mask=(batch > 0).long()).logits[:, :-1]
    wanted = batch[:, 1:].masked_fill(batch[:, 1:] < len(SPECIAL), IGNORED)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
