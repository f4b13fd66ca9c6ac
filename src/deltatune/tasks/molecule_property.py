"""Molecule properties: does it pass, bind, dissolve; one class, several measured properties, or a number per molecule.

row        {smiles, label}: a molecule as SMILES, or the letters of a protein; label as in text classification
model      any `transformers` sequence classifier whose tokenizer knows them; its head is new if the checkpoint has none
loss       cross entropy, binary cross entropy per known property, or squared error of the standardised number
metrics    AUC, average precision, accuracy, calibration; RMSE, MAE, R2, Pearson, Spearman

A molecule is one thing however it is written: the model reads its canonical SMILES, repeats are found by it, and test
molecules have scaffolds that no training molecule has.
"""

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import AutoModelForSequenceClassification

from deltatune.core import fingerprint_baselines, molecules, proteins, tokens
from deltatune.core.classification import Classification
from deltatune.core.config import Settings
from deltatune.core.division import by_size
from deltatune.core.errors import DataError
from deltatune.core.labels import marks, names, number, problem_of
from deltatune.core.pretrained import pretrained
from deltatune.core.task import Batch, Column, Example, Loaded, Row

logger = logging.getLogger("deltatune")

SMILES_TOO = ("mol", "molecule", "structure", "drug", "ligand")
PROTEINS = ("sequence", "protein", "protein_sequence", "aa_sequence")


class Notation(Protocol):
    """What is asked of the texts of a notation; its functions are a module of `core`."""

    def problem(self, text: str) -> str | None:
        """Why a text cannot be read, or None."""

    def canonical(self, text: str) -> str:
        """The one way to write what was written."""

    def sketch(self, text: str) -> Collection[Hashable]:
        """Features that near-duplicates share."""

    def vectors(self, texts: Sequence[str]) -> Any:
        """Features for simple models: an array [rows, N]."""


NOTATIONS: Mapping[str, Notation] = {"smiles": molecules, "protein": proteins}


class MoleculeAugmentation(Settings):
    """How training molecules are varied."""

    random_order: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the molecules that are written from another atom on, in another order, drawn anew at every step."""


class MoleculeProperty(Classification):
    """Settings of molecule properties."""

    type: ClassVar[str] = "molecule-property"
    title: ClassVar[str] = "Properties of molecules and proteins"
    columns: ClassVar[Mapping[str, Column]] = {
        "smiles": Column(("smiles", "canonical_smiles", "isomeric_smiles", *SMILES_TOO, *PROTEINS)),
        "label": Column(("label", "labels", "class", "target", "activity", "active", "property", "value", "p_np", "y")),
    }
    key: ClassVar[tuple[str, ...]] = ("smiles",)
    peft_task: ClassVar[str | None] = "SEQ_CLS"
    resamples: ClassVar[int] = 300

    notation: Literal["smiles", "protein"] = "smiles"
    """How the rows are written: SMILES, or the letters of amino acids."""
    max_length: Annotated[int, Field(ge=2)] = 512
    """Longest molecule in tokens; what is cut off is counted."""
    augmentation: MoleculeAugmentation | None = None
    """Vary the training molecules: other SMILES of the same one."""

    @model_validator(mode="after")
    def _check_augmentation(self) -> Self:
        if self.augmentation is not None and self.notation != "smiles":
            raise ValueError("augmentation has no effect on proteins: they have one order; take it out")
        return self

    @property
    def metric(self) -> str:
        """AUC, or the root of the mean squared error, as MoleculeNet has them."""
        return "rmse" if self.problem == "regression" else "auc"

    # -- rows

    def check_input(self, row: Row) -> str | None:
        """What rdkit cannot read, or letters that no amino acid has."""
        value = row.get("smiles")
        if not isinstance(value, str):
            return f"{'sequence' if self.notation == 'protein' else 'smiles'} is not text ({type(value).__name__})"
        return self._notation.problem(value)

    @property
    def _notation(self) -> Notation:
        return NOTATIONS[self.notation]

    def identity(self, row: Row) -> Hashable:
        """The canonical form."""
        return self._notation.canonical(row["smiles"])

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Circular substructures, or runs of five amino acids."""
        return self._notation.sketch(row["smiles"])

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """Molecules by scaffold, the frequent ones in `train`; proteins are drawn one by one.

        Raises `DataError` where a part to be ranked would have one class only.
        """
        if self.notation != "smiles":
            return None
        parts = by_size([molecules.group(row["smiles"]) for row in rows], shares, seed)
        found = {name: [rows[index] for index in part] for name, part in parts.items()}
        ranked = problem_of([row["label"] for row in rows]) if self.problem == "auto" else self.problem
        for name in shares if ranked == "single" else ():
            held = {names(row["label"])[0] for row in found[name]}
            if len(held) == 1:
                raise DataError(
                    f"split by scaffold, the {len(found[name])} rows of {name} are all {held.pop()!r}: no AUC",
                    hint=f"take another data.split_seed, a larger data.{name}_fraction, or files of your own",
                )
        return found

    def picture(self, row: Row) -> Any:
        """The formula of a small molecule."""
        return molecules.picture(row["smiles"]) if self.notation == "smiles" else None

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The classifier and its tokenizer; modules the checkpoint lacks are reported as new."""
        network, new = pretrained(
            AutoModelForSequenceClassification, model, dtype, "a classifier of molecules", **self.config()
        )
        tokenizer = tokens.tokenizer_of(model)
        tokens.limit_to(tokenizer, network)
        return Loaded(network, tokenizer, new, tokenizer)

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Token ids of canonical forms, cut to the length limit; the label as the model's output index or vector."""
        texts = [self._notation.canonical(row["smiles"]) for row in rows]
        examples = self._tokens(texts, processor)
        _warn(examples, processor)
        found: list[Example] = []
        for row, text, example in zip(rows, texts, examples, strict=True):
            kept = {"smiles": text} if self.augmentation else {}
            found.append({**example, **kept, **({"label": self.target(row["label"])} if "label" in row else {})})
        return found

    def _tokens(self, texts: Sequence[str], tokenizer: Any) -> list[Example]:
        """Letters of proteins apart where the tokenizer knows them only so (ProtBERT)."""
        if self.notation == "protein" and _knows_words(tokenizer):
            texts = [" ".join(text) for text in texts]
        return tokens.encode(tokenizer, texts, [None] * len(texts), self.max_length)

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """The molecule written in another order, where that is asked for; `collate` encodes it."""
        if self.augmentation is None or generator.random() >= self.augmentation.random_order:
            return example
        return {**example, "written": molecules.rewritten(example["smiles"], int(generator.integers(1, 1 << 31)))}

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Padded to the longest molecule, rounded up to a multiple of 8 within the model's limit."""
        varied = [index for index, example in enumerate(examples) if "written" in example]
        encoded = iter(self._tokens([examples[index]["written"] for index in varied], processor) if varied else ())
        shown = [{**example, **next(encoded)} if "written" in example else example for example in examples]
        batch = tokens.padded(processor, shown)
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch

    # -- scores

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Linear models and random forests on Morgan fingerprints, or on the composition of proteins."""
        known, asked = (self._notation.vectors([row["smiles"] for row in part]) for part in (train, rows))
        labels = list(self.label_names)
        values = [row["label"] for row in train]
        if self.problem == "regression":
            found = fingerprint_baselines.numbers(known, [number(value) or 0.0 for value in values], asked)
        elif self.problem == "multi-label":
            found = fingerprint_baselines.several(known, np.array([marks(v, labels) for v in values]), asked, labels)
        else:
            found = fingerprint_baselines.classes(known, [names(value)[0] for value in values], asked, labels)
        seen = "fingerprint" if self.notation == "smiles" else "composition"
        return {f"{seen}, {name}": self.score(answers, rows) for name, answers in found.items()}


def _knows_words(tokenizer: Any) -> bool:
    """Whether a tokenizer knows amino acids only with spaces between them."""
    unknown = tokenizer.unk_token_id
    joined, apart = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("MKLV", "M K L V"))
    return unknown is not None and unknown in joined and len(apart) == 4 and unknown not in apart


def _warn(examples: Sequence[Example], tokenizer: Any) -> None:
    """Says how many molecules hold tokens that the model does not know."""
    unknown = tokenizer.unk_token_id
    count = sum(unknown in example["input_ids"] for example in examples) if unknown is not None else 0
    if count:
        share = sum(example["input_ids"].count(unknown) for example in examples)
        share /= sum(example["length"] for example in examples)
        logger.warning(
            "%d of %d molecules hold tokens the model does not know (%.1f%%)", count, len(examples), 100 * share
        )
