"""A RoBERTa for SMILES, 0.9 M parameters, by masked language modelling on the 41 k molecules of the HIV screen (MIT).

Needs `python examples/data.py molecules --from DIR`. One token per atom or bond, by the expression of Schwaller et al.
2019 (arXiv:1811.02633), in an ordinary tokenizer folder. A share of the tokens is chosen; of these 80 % are masked,
10 % replaced, 10 % kept, as in BERT. Molecules of BBBP and ESOL are not in the data.
"""

import csv
from collections import Counter
from pathlib import Path

import torch
from pretraining import pretrain
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

DATA = Path(".cache/data/molecules/pretraining.csv")
ATOMS = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>|\*|\$|\%[0-9]{2}|[0-9])"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
RAREST = 5
"""A token that stands in fewer molecules is unknown."""
LONGEST = 256
"""Tokens the model has positions for."""
TRAINED = 96
"""Longer molecules (one in forty) are not trained on."""

BATCH = 48
CHOSEN = 0.25
STEPS = 1_600
IGNORED = -100


def make(folder: Path) -> None:
    """Tokenizer and model."""
    if not DATA.is_file():
        raise SystemExit("make the data first: python examples/data.py molecules --from DIR")
    with DATA.open(newline="", encoding="utf-8") as file:
        molecules = [row["smiles"] for row in csv.DictReader(file)]
    tokenizer = _tokenizer(molecules)
    tokenizer.save_pretrained(folder)
    encoded = tokenizer(molecules, return_token_type_ids=False, verbose=False)["input_ids"]
    rows = sorted((ids for ids in encoded if len(ids) <= TRAINED), key=len)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=LONGEST + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    model = RobertaForMaskedLM(config)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(rows)} molecules")

    def loss(step: int, generator: torch.Generator) -> Tensor:
        ids_BT, labels_BT = _masked(_drawn(rows, generator), len(tokenizer), generator)
        hidden_BTD = model.roberta(ids_BT, attention_mask=ids_BT != 1).last_hidden_state
        asked = labels_BT != IGNORED  # the head runs where something is asked only
        return torch.nn.functional.cross_entropy(model.lm_head(hidden_BTD[asked]), labels_BT[asked])

    pretrain(model, loss, folder, steps=STEPS, rate=1e-3, seed=0)


def _tokenizer(molecules: list[str]) -> PreTrainedTokenizerFast:
    """Atoms and bonds as words."""
    split = pre_tokenizers.Split(Regex(ATOMS), behavior="isolated")
    counts = Counter(token for smiles in molecules for token in {word for word, _ in split.pre_tokenize_str(smiles)})
    words = [*SPECIAL, *(token for token, count in counts.most_common() if count >= RAREST)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=LONGEST,
    )


def _drawn(rows: list[list[int]], generator: torch.Generator) -> Tensor:
    """A batch of molecules of similar length: neighbours in the list sorted by length."""
    start = int(torch.randint(len(rows) - BATCH + 1, (), generator=generator))
    part = rows[start : start + BATCH]
    longest = max(map(len, part))
    return torch.tensor([ids + [1] * (longest - len(ids)) for ids in part])


def _masked(ids_BT: Tensor, words: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ids as the model sees them, and the labels: the chosen tokens, everything else ignored."""
    chance_BT = torch.rand(ids_BT.shape, generator=generator)
    chosen_BT = (chance_BT < CHOSEN) & (ids_BT >= len(SPECIAL))
    labels_BT = ids_BT.masked_fill(~chosen_BT, IGNORED)
    share_BT = chance_BT / CHOSEN
    other_BT = torch.randint(len(SPECIAL), words, ids_BT.shape, generator=generator)
    seen_BT = torch.where(chosen_BT & (share_BT < 0.8), torch.tensor(4), ids_BT)
    return torch.where(chosen_BT & (share_BT >= 0.9), other_BT, seen_BT), labels_BT
