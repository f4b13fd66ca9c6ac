"""A small sound set of rows, a random model and settings for every task, for tests that spoil one of them."""

import csv
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

import sounds
import talk
from cuts import pieces
from deltatune.models.feature_tokens import FeatureTokensConfig, FeatureTokensModel
from deltatune.models.point_transformer import PointTransformerConfig, PointTransformerModel
from detectors import detector

COUNT = 48
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VIT = {**SIZES, "image_size": 32, "patch_size": 8}
SHAPES = {"num_points": 32, "num_groups": 6, "group_size": 8}
ITEMS = [f"film{n}" for n in range(20)]


@dataclass
class Ground:
    """What a task is trained on; rows are JSON objects whose paths lie in the folder."""

    type: str
    model: str
    rows: list[dict[str, Any]]
    asked: str
    """The word that holds the input."""
    label: str | None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> dict[str, Any]:
        """The settings of the task."""
        return {"type": self.type, **self.fields}

    def config(self, folder: Path, train: str, **data: Any) -> dict[str, Any]:
        """A run of two steps."""
        return {
            "task": self.task,
            "model": self.model,
            "data": {"train": str(folder / train), **data},
            "method": {"type": "lora", "r": 2, "target_modules": "all-linear"},
            "training": {"max_steps": 2, "per_device_train_batch_size": 4, "bf16": False},
            "output_dir": str(folder / "run"),
        }


def lines(path: Path, rows: list[Any]) -> str:
    """A file of rows; a text stands as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path.name


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path.name


def _bert(folder: Path) -> str:
    tokenizer = pieces()
    tokenizer.save_pretrained(folder)
    tf.BertModel(tf.BertConfig(vocab_size=len(tokenizer), **SIZES, max_position_embeddings=64)).save_pretrained(folder)
    return str(folder)


NAMES = ["anna", "boris", "clara", "dmitri", "smith", "jones", "weber"]
WORDS = ["saw", "went", "quietly", "near", "from", "with", "again", "to"]


def _sentences(count: int) -> list[list[str]]:
    chance = random.Random(0)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        words = [*chance.choices(WORDS, k=chance.randint(3, 7)), chance.choice(NAMES)]
        chance.shuffle(words)
        found[tuple(words)] = None
    return [list(words) for words in found]


def _text(folder: Path) -> Ground:
    rows = [{"text": " ".join(words), "label": "ab"[n % 2]} for n, words in enumerate(_sentences(COUNT))]
    return Ground("text-classification", _bert(folder / "model"), rows, "text", "label")


def _tokens(folder: Path) -> Ground:
    rows = [
        {"tokens": words, "tags": ["B-PER" if word in NAMES else "O" for word in words]} for words in _sentences(COUNT)
    ]
    return Ground("token-classification", _bert(folder / "model"), rows, "tokens", "tags")


def _translation(folder: Path) -> Ground:
    tokenizer = pieces()
    tokenizer.save_pretrained(folder / "model")
    config = tf.T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
    )
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder / "model")
    tf.T5ForConditionalGeneration(config).save_pretrained(folder / "model")
    rows = [{"source": " ".join(words), "target": " ".join(reversed(words))} for words in _sentences(COUNT)]
    fields = {"max_new_tokens": 6, "max_source_length": 32, "max_target_length": 32}
    return Ground("translation", str(folder / "model"), rows, "source", "target", fields)


def _chat(folder: Path) -> Ground:
    rows = [
        {"messages": [{"role": "user", "content": " ".join(w)}, {"role": "assistant", "content": w[0]}]}
        for w in _sentences(COUNT)
    ]
    fields = {"max_length": 100, "max_new_tokens": 4, "generate_rows": 2}
    return Ground("chat", talk.folder(folder / "model", "llama"), rows, "messages", None, fields)


def _images(folder: Path) -> Ground:
    (folder / "images").mkdir()
    rows = []
    for n in range(COUNT):
        pixels = np.random.default_rng(n).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        pixels[:, :, n % 2] //= 4
        Image.fromarray(pixels).save(folder / f"images/{n}.png")
        rows.append({"path": f"images/{n}.png", "label": "ab"[n % 2]})
    tf.ViTModel(tf.ViTConfig(**VIT)).save_pretrained(folder / "model")
    tf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "model")
    return Ground("image-classification", str(folder / "model"), rows, "path", "label")


def _boxes(folder: Path) -> Ground:
    (folder / "images").mkdir()
    rows = []
    for n in range(24):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{n}.png")
        rows.append({"path": f"images/{n}.png", "boxes": [{"label": "ab"[n % 2], "box": [4, 5, 20, 30]}]})
    detector("yolos").save_pretrained(folder / "model")
    return Ground("object-detection", str(folder / "model"), rows, "path", "boxes", {"image_size": 64})


def _speech(folder: Path) -> Ground:
    path = sounds.recordings(folder, 24, name="clips.csv")
    with path.open() as file:
        rows = [{"path": row["path"], "text": row["text"]} for row in csv.DictReader(file)]
    return Ground("speech-recognition", str(sounds.ctc(folder / "model")), rows, "path", "text")


def _items(folder: Path) -> Ground:
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*names.values(), *ITEMS])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    cut = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)
    cut.save_pretrained(folder / "model")
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    config = tf.GPT2Config(vocab_size=len(ITEMS) + 2, n_embd=16, n_layer=2, n_head=2, n_positions=16, **ids)
    tf.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    rows = [
        {"user": f"u{user}", "item": ITEMS[(3 * user + step) % 20], "time": step}
        for user in range(12)
        for step in range(4 + user % 5)
    ]
    return Ground("recommendation", str(folder / "model"), rows, "item", None)


def _cells(folder: Path) -> Ground:
    chance = random.Random(0)
    rows = [
        {"amount": round(chance.lognormvariate(3, 1), 2), "card": chance.choice(["blue", "gold"]), "label": "ab"[n % 2]}
        for n in range(COUNT)
    ]
    FeatureTokensModel(FeatureTokensConfig(**SIZES)).save_pretrained(folder / "model")
    return Ground("tabular-classification", str(folder / "model"), rows, "amount", "label")


def _series(folder: Path) -> Ground:
    config = tf.PatchTSTConfig(
        context_length=16,
        patch_length=4,
        patch_stride=4,
        prediction_length=12,
        d_model=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
    )
    tf.PatchTSTForPrediction(config).save_pretrained(folder / "model")
    rows = [{"time": n, "value": float(np.sin(n / 3) + n / 50)} for n in range(140)]
    fields = {"context_length": 16, "prediction_length": 4}
    return Ground("forecasting", str(folder / "model"), rows, "value", None, fields)


def _molecules(folder: Path) -> Ground:
    rings = [
        "C1CC1",
        "C1CCC1",
        "C1CCCC1",
        "C1CCCCC1",
        "c1ccccc1",
        "c1ccncc1",
        "c1ccco1",
        "c1cccs1",
        "C1CCNC1",
        "C1CCOC1",
    ]
    found = [f"{'C' * length}{ring}" for ring in rings for length in range(1, 5)]
    rows = [{"smiles": text, "label": "ab"[n % 2]} for n, text in enumerate(found)]
    return Ground("molecule-property", _bert(folder / "model"), rows, "smiles", "label")


def _points(folder: Path) -> Ground:
    (folder / "shapes").mkdir()
    rows = []
    for n in range(32):
        points = np.random.default_rng(n).normal(size=(40, 3)) * ([1, 1, 1] if n % 2 else [1, 0.1, 0.1])
        np.save(folder / f"shapes/{n}.npy", points.astype(np.float32))
        rows.append({"path": f"shapes/{n}.npy", "label": "ab"[n % 2]})
    PointTransformerModel(PointTransformerConfig(**SIZES, **SHAPES)).save_pretrained(folder / "model")
    return Ground("point-cloud-classification", str(folder / "model"), rows, "path", "label")


MAKERS = {
    "text-classification": _text,
    "token-classification": _tokens,
    "translation": _translation,
    "chat": _chat,
    "image-classification": _images,
    "object-detection": _boxes,
    "speech-recognition": _speech,
    "recommendation": _items,
    "tabular-classification": _cells,
    "forecasting": _series,
    "molecule-property": _molecules,
    "point-cloud-classification": _points,
}


def ground(name: str, folder: Path) -> Ground:
    """The ground of a task, its model and its files in a folder."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    return MAKERS[name](folder)
