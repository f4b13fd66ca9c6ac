"""A tiny pretrained-looking model folder and a data set that can be learnt, made on the spot."""

import csv
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

GOOD = ["superb", "moving", "warm", "brilliant", "funny", "tender", "honest"]
BAD = ["dull", "clumsy", "hollow", "tired", "noisy", "stale", "lifeless"]
PLAIN = [
    "the",
    "a",
    "film",
    "plot",
    "actor",
    "scene",
    "story",
    "music",
    "camera",
    "ending",
    "was",
    "is",
    "with",
    "and",
    "very",
    "quite",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def model_folder(folder: Path, width: int = 32, spread: float = 0.02) -> Path:
    """A random BERT with its tokenizer, saved as transformers saves them."""
    torch.manual_seed(0)
    words = {word: index for index, word in enumerate([*SPECIAL, *GOOD, *BAD, *PLAIN])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            initializer_range=spread,
        )
    ).save_pretrained(folder)
    return folder


def reviews(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Sentences whose label is told by one word; no two are equal."""
    chance = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        label = chance.choice(["good", "bad"])
        words = [*chance.choices(PLAIN, k=chance.randint(3, 9)), chance.choice(GOOD if label == "good" else BAD)]
        chance.shuffle(words)
        found[" ".join(words)] = label
    return [{"text": text, "label": label} for text, label in found.items()]


def csv_file(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def work_place(folder: Path, count: int = 120) -> Path:
    """A folder with the model (`model`) and so many of the sentences (`reviews.csv`)."""
    model_folder(folder / "model")
    csv_file(folder / "reviews.csv", reviews(count))
    return folder


def work(place: Path, **training: Any) -> dict[str, Any]:
    """What a run on such a folder is given besides its method: 16 rows a step, in float32."""
    return {
        "task": "text-classification",
        "model": str(place / "model"),
        "data": {"train": str(place / "reviews.csv")},
        "training": {"per_device_train_batch_size": 16, "bf16": False, **training},
    }
