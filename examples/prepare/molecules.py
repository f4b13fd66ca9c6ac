"""Molecules: BBBP (blood-brain barrier), ESOL (solubility), and the HIV screen as plain SMILES for pretraining.

MoleculeNet (Wu et al. 2018, MIT). No package brings it: `python examples/data.py molecules --from DIR`, where DIR holds
BBBP.csv, ESOL_delaney-processed.csv and HIV.csv as published. Needs rdkit.

bbbp.csv and esol.csv keep every published row, the invalid and repeated ones too: they are for the checks to find.
pretraining.csv has the molecules of the HIV screen in canonical form, each once, without those of BBBP and ESOL; two
molecules that differ in stereochemistry only count as the same one. The screen has no stereochemistry and BBBP has:
every second molecule is one of its stereoisomers, drawn by a seed.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from random import Random

SETS = {
    "bbbp": ("BBBP.csv", "p_np"),
    "esol": ("ESOL_delaney-processed.csv", "measured log solubility in mols per litre"),
}
"""Data set -> published file and the column of its label."""
SCREEN = "HIV.csv"


def make(folder: Path, source: Path | None) -> None:
    """bbbp.csv and esol.csv with the columns smiles and label, pretraining.csv with smiles."""
    files = [*(file for file, _ in SETS.values()), SCREEN]
    if source is None or not all((source / file).is_file() for file in files):
        raise SystemExit(f"name the folder that holds {', '.join(files)}: python examples/data.py molecules --from DIR")
    seen: set[str] = set()
    for name, (file, label) in SETS.items():
        rows = [(row["smiles"].strip(), row[label]) for row in _read(source / file)]
        _write(folder / f"{name}.csv", ("smiles", "label"), rows)
        seen |= {flat for smiles, _ in rows for _, flat in _forms(smiles)}
        print(f"{name}: {len(rows)} rows")
    screen = _read(source / SCREEN)
    kept = {form: flat for row in screen for form, flat in _forms(row["smiles"])}
    unseen = [form for form, flat in kept.items() if flat not in seen]
    chance = Random(0)
    forms = [_isomer(form, chance) if number % 2 else form for number, form in enumerate(unseen)]
    _write(folder / "pretraining.csv", ("smiles",), [(form,) for form in forms])
    print(f"pretraining: {len(unseen)} of {len(screen)} molecules; {len(kept) - len(unseen)} are in BBBP or ESOL")


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _forms(smiles: str) -> list[tuple[str, str]]:
    """The canonical form with and without stereochemistry, or nothing for what rdkit cannot read."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return []
    return [(Chem.MolToSmiles(molecule), Chem.MolToSmiles(molecule, isomericSmiles=False))]


def _isomer(smiles: str, chance: Random) -> str:
    """One of the stereoisomers of a molecule."""
    from rdkit import Chem, rdBase
    from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, StereoEnumerationOptions

    with rdBase.BlockLogs():
        options = StereoEnumerationOptions(maxIsomers=1, rand=chance)
        return Chem.MolToSmiles(next(iter(EnumerateStereoisomers(Chem.MolFromSmiles(smiles), options))))


def _write(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
