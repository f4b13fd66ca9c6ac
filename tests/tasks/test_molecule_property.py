"""Molecules: what rdkit says, scaffolds, writing, scores, baselines, proteins, and tiny trainings on every family."""

import csv
import json
import sys
from itertools import product

import numpy as np
import pytest
import torch
import transformers as tf
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from sklearn import metrics
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeCV
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

import deltatune
from deltatune.core import fingerprint_baselines, molecules, proteins, registry
from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.registry import task
from deltatune.core.task import inputs_of
from deltatune.data.load import load

DRUGS = [
    "CC(=O)Oc1ccccc1C(=O)O",  # aspirin
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",  # caffeine
    "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",  # ibuprofen
    "CN1CCC[C@H]1c1cccnc1",  # nicotine
    "C[C@]12CC[C@H]3[C@H]([C@@H]1CC[C@@H]2O)CCC4=CC(=O)CC[C@]34C",  # testosterone
    "CN1c2ccc(Cl)cc2C(=NCC1=O)c1ccccc1",  # diazepam
    "OC(=O)/C=C/C(=O)O",  # fumaric acid
    "[Na+].CC(=O)[O-]",
    "O=S(=O)(N)c1ccc(cc1)n1nc(cc1-c1ccc(C)cc1)C(F)(F)F",  # celecoxib
    "CCO",
]
CORES = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCNCC1", "c1ccoc1", "C1CCOC1", "c1ccsc1", "c1ccc2ccccc2c1"]
CHAINS = ["C", "CC", "CCC", "CCCC", "CO", "CCO", "CN", "CCN", "CF", "CCl", "CCCl", "CCCF", "C=C", "C#N", "CC=O"]


LINKS = ["", "C", "CC", "CO", "CN", "CS"]


def rows(count, label=lambda text: int("N" in text.upper())):
    """Rings with a chain, two chains or another ring on them, labelled by their nitrogen; no two are equal."""
    texts = [f"C({chain}){core}" for chain, core in product(CHAINS, CORES)]
    texts += [f"C({core})({chain}){end}" for core, chain, end in product(CORES, CHAINS[:6], CHAINS[6:])]
    texts += [f"{core}{link}{other}" for core, link, other in product(CORES, LINKS, CORES)]
    unique = {molecules.canonical(text): text for text in texts}
    order = np.random.default_rng(0).permutation(len(unique))[:count]
    return [{"smiles": text, "label": label(text)} for text in (list(unique.values())[index] for index in order)]


def fitted(values, **fields):
    return task("molecule-property", **fields).fit([{"smiles": "C", "label": value} for value in values])


def words(pattern, letters):
    """A tokenizer of single words with begin, end and padding; a mask of nothing else."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *letters])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


ATOMS = r"(\[[^\]]+]|Br|Cl|[A-Za-z]|[0-9]|.)"
KNOWN = ["C", "c", "N", "n", "O", "o", "S", "s", "F", "Cl", "Br", "[nH]", "(", ")", "=", "#", "1", "2", "3", "4", "-"]


def by_atoms():
    return words(ATOMS, KNOWN)


def by_residues(folder):
    """ESM's own tokenizer: letters need no spaces."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *proteins.LETTERS, "X", "<mask>"]))
    return tf.EsmTokenizer(str(folder / "vocab.txt"), model_max_length=64)


def with_spaces():
    """As ProtBERT's: amino acids are words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*special, *proteins.LETTERS])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


# -- what rdkit says


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "smiles is empty"),
        ("  ", "smiles is empty"),
        ("CCO ethanol", "smiles holds a character that is none of SMILES (' ')"),
        ("Cé", "smiles holds a character that is none of SMILES ('é')"),
        ("C" * 4001, "smiles is too long (4001 characters, 4000 at most)"),
        ("C1CC", "smiles is not valid (unclosed ring)"),
        ("CC)C", "smiles is not valid (extra close parentheses around character 3)"),
        ("CX", "smiles is not valid (syntax error around character 2)"),
        ("cc", "smiles is not valid (non-ring atom 0 marked aromatic)"),
        ("c1cccc1", "smiles is not valid (Can't kekulize mol. Unkekulized atoms: 0 1 2 3 4)"),
        (
            "CC(C)(C)(C)C",
            "smiles is not valid (Explicit valence for atom # 1 C, 5, is greater than permitted)",
        ),
        (None, "smiles is not text (NoneType)"),
        (3.5, "smiles is not text (float)"),
    ],
)
def test_what_is_no_molecule_says_why_and_writes_nothing(text, message, capfd):
    assert task("molecule-property").check({"smiles": text, "label": 1}) == message
    assert capfd.readouterr() == ("", "")


def test_good_molecules_pass_and_the_label_is_looked_at_too():
    assert [molecules.problem(text) for text in DRUGS] == [None] * len(DRUGS)
    assert task("molecule-property").check({"smiles": " CCO ", "label": 1}) is None
    assert task("molecule-property").check({"smiles": "CCO", "label": ""}) == "label is missing"


def test_the_canonical_form_does_not_depend_on_the_writing():
    found = task("molecule-property")
    for text in DRUGS:
        written = {molecules.rewritten(text, seed) for seed in range(1, 30)}
        assert {found.identity({"smiles": other}) for other in written} == {Chem.CanonSmiles(text)}
        assert molecules.rewritten(text, 7) == molecules.rewritten(text, 7)
        assert len(written) > 1
    mirrored = DRUGS[3].replace("@", "@@")
    assert found.identity({"smiles": mirrored}) != found.identity({"smiles": DRUGS[3]})


def test_scaffolds_are_those_of_rdkit_without_stereochemistry():
    for text in DRUGS:
        expected = MurckoScaffold.MurckoScaffoldSmiles(smiles=text, includeChirality=False)
        assert molecules.group(text) == expected
    assert molecules.group(DRUGS[3]) == molecules.group(DRUGS[3].replace("@", "@@"))
    assert molecules.group("C/C=C/C") == molecules.group("CCO") == ""


def test_what_sketches_share_is_the_tanimoto_similarity_of_rdkit():
    made = rdFingerprintGenerator.GetMorganGenerator(radius=2)
    prints = [made.GetSparseFingerprint(Chem.MolFromSmiles(text)) for text in DRUGS]
    sketches = [task("molecule-property").sketch({"smiles": text}) for text in DRUGS]
    for (a, own), (b, other) in product(zip(prints, sketches), repeat=2):
        assert len(own & other) / len(own | other) == pytest.approx(DataStructs.TanimotoSimilarity(a, b))


def test_vectors_are_the_folded_fingerprints_of_rdkit():
    made = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    expected = [made.GetFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in DRUGS]
    assert (molecules.vectors(DRUGS) == np.stack(expected)).all()


def test_a_missing_rdkit_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit.rdBase", None)
    with pytest.raises(SettingsError, match=r"rdkit is not installed.*deltatune\[chem\]"):
        molecules.problem("CCCCCCCCCCCCCCCCCCCCCCCCO")


# -- splits


def test_no_scaffold_is_on_both_sides_and_what_is_wrong_has_its_line(tmp_path):
    good = rows(200)
    odd = [
        {"smiles": "C1CC", "label": 1},
        {"smiles": molecules.rewritten(good[0]["smiles"], 5), "label": good[0]["label"]},
        {"smiles": molecules.canonical(good[1]["smiles"]), "label": 1 - good[1]["label"]},
    ]
    path = tmp_path / "all.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["smiles", "label"])
        writer.writeheader()
        writer.writerows(good + odd)
    found = load(DataSettings(train=str(path), max_rejected=0.1), task("molecule-property"), tmp_path)
    assert [row.line for row in found.rejected] == [202, 203, 204]
    assert found.rejected[0].reason == "smiles is not valid (unclosed ring)"
    assert all("same input as line" in row.reason for row in found.rejected[1:])
    scaffolds = [{molecules.group(row["smiles"]) for row in part} for part in found.parts.values()]
    assert sum(map(len, found.parts.values())) == 200 and all(found.parts.values())
    assert not (scaffolds[0] & scaffolds[1] or scaffolds[0] & scaffolds[2] or scaffolds[1] & scaffolds[2])


def test_molecules_that_share_nearly_all_substructures_are_named(tmp_path):
    long = "CCCCCCCCCCCC(=O)NC(c1ccccc1)C(=O)O"
    train = [*rows(20), {"smiles": long, "label": 1}]
    other = [{"smiles": "C" + long, "label": 1}, {"smiles": "FC(F)(F)I", "label": 0}]
    for name, part in (("train", train), ("validation", rows(24)[20:]), ("test", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = DataSettings(**{name: f"{name}.jsonl" for name in ("train", "validation", "test")})
    found = load(data, task("molecule-property"), tmp_path)
    assert any("test.jsonl:1 ~ train" in line and "train.jsonl:21" in line for line in found.near)
    assert not any("test.jsonl:2" in line for line in found.near)


def test_a_part_with_one_class_only_is_an_error_with_a_way_out():
    split = [{"smiles": "C" * n + "c1ccccc1", "label": 1} for n in range(1, 40)]
    split += [{"smiles": f"{'C' * n}C1CC1", "label": 0} for n in range(1, 6)]
    with pytest.raises(DataError, match=r"the 5 rows of test are all '0': no AUC.*split_seed"):
        task("molecule-property").divide(split, {"test": 0.12}, 0)
    numbers = [{**row, "label": row["label"] + 0.5} for row in split]
    assert len(task("molecule-property").divide(numbers, {"test": 0.12}, 0)["test"]) == 5


def test_proteins_are_drawn_one_by_one():
    assert task("molecule-property", notation="protein").divide([], {"test": 0.1}, 0) is None


# -- reading and writing


def test_the_model_reads_the_canonical_form(caplog):
    found, tokenizer = fitted([0, 1]), by_atoms()
    one, other = found.encode([{"smiles": "OCC", "label": 1}, {"smiles": "C(O)C"}], tokenizer)
    assert one["input_ids"] == other["input_ids"]
    assert tokenizer.convert_ids_to_tokens(one["input_ids"]) == ["<s>", "C", "C", "O", "</s>"]
    assert (one["label"], "label" in other) == (1, False)
    assert not caplog.text
    found.encode([{"smiles": "[Si](C)(C)C"}, {"smiles": "C"}], tokenizer)
    assert "1 of 2 molecules hold tokens the model does not know" in caplog.text


def test_long_molecules_are_cut_and_counted():
    found, tokenizer = fitted([0, 1], max_length=8), by_atoms()
    examples = found.encode([{"smiles": "C" * 9}, {"smiles": "CC"}], tokenizer)
    assert [(e["length"], e["truncated"]) for e in examples] == [(8, True), (4, False)]
    assert found.truncated(examples) == 1


def test_augmentation_shows_other_writings_of_the_same_molecule():
    found, tokenizer = fitted([0, 1], augmentation={}), by_atoms()
    row = {"smiles": "NCc1ccc(CCO)cc1", "label": 1}
    (example,) = found.encode([row], tokenizer)
    seen = set()
    for seed in range(20):
        shown = found.augment(example, np.random.default_rng(seed))
        assert shown == found.augment(example, np.random.default_rng(seed))
        batch = found.collate([shown, example], tokenizer)
        ids = batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist()
        text = "".join(tokenizer.convert_ids_to_tokens(ids)[1:-1])
        assert molecules.canonical(text) == molecules.canonical(row["smiles"])
        assert batch["input_ids"][1][batch["attention_mask"][1] == 1].tolist() == example["input_ids"]
        assert batch["labels"].tolist() == [1, 1]
        seen.add(text)
    assert len(seen) > 10


def test_a_share_of_the_molecules_is_rewritten_and_none_without_the_setting():
    found, tokenizer = fitted([0, 1], augmentation={"random_order": 0.25}), by_atoms()
    (example,) = found.encode([{"smiles": "CCO", "label": 1}], tokenizer)
    generator = np.random.default_rng(0)
    share = np.mean(["written" in found.augment(example, generator) for _ in range(2000)])
    assert share == pytest.approx(0.25, abs=0.03)
    plain = fitted([0, 1])
    (example,) = plain.encode([{"smiles": "CCO", "label": 1}], tokenizer)
    assert plain.augment(example, generator) is example
    with pytest.raises(SettingsError, match="augmentation has no effect on proteins"):
        task("molecule-property", notation="protein", augmentation={})


# -- scores


def test_auc_decides_for_classes_and_rmse_for_numbers():
    assert fitted([0, 1]).metric == fitted([{"a": 1}, {"a": 0, "b": 1}]).metric == "auc"
    assert fitted([0.5, 1.5]).metric == "rmse"
    assert "rmse" in fitted([0.5, 1.5]).lower_is_better and "auc" not in fitted([0, 1]).lower_is_better


def test_scores_of_classes_and_numbers_are_those_of_scikit_learn():
    chance = np.random.default_rng(0)
    found, wanted = fitted([0, 1]), chance.integers(0, 2, 50)
    answers = found.read(SequenceClassifierOutput(logits=torch.tensor(chance.normal(size=(50, 2)))), {})
    scores = found.score(answers, [{"label": int(w)} for w in wanted])
    given = [answer["probabilities"]["1"] for answer in answers]
    assert scores["auc"] == pytest.approx(metrics.roc_auc_score(wanted, given))
    numbers = fitted([0.5, 1.5])
    values, given = chance.normal(size=(2, 50))
    scores = numbers.score([{"value": v} for v in given], [{"label": float(v)} for v in values])
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((values - given) ** 2)))


def test_auc_of_several_properties_is_the_mean_over_those_that_can_be_ranked():
    chance = np.random.default_rng(1)
    wanted = chance.integers(0, 2, (40, 4)).astype(float)
    wanted[chance.random((40, 4)) < 0.3] = np.nan
    wanted[:, 3] = 1.0
    names = ["a", "b", "c", "d"]
    given = [{n: None if np.isnan(v) else int(v) for n, v in zip(names, row)} for row in wanted]
    found = fitted(given)
    answers = found.read(SequenceClassifierOutput(logits=torch.tensor(chance.normal(size=(40, 4)))), {})
    scores = found.score(answers, [{"label": value} for value in given])
    expected = []
    for index, name in enumerate(names[:3]):
        known = ~np.isnan(wanted[:, index])
        given = np.array([answer["probabilities"][name] for answer in answers])
        expected.append(metrics.roc_auc_score(wanted[known, index], given[known]))
    assert (scores["ranked_labels"], scores["auc"]) == (3, pytest.approx(np.mean(expected)))
    assert {"micro_f1", "subset_accuracy", "average_precision"} <= set(scores)


def test_baselines_of_classes_are_scikit_learn_on_fingerprints(few):
    train, test = rows(80), rows(120)[80:]
    found = task("molecule-property").fit(train)
    scores = found.baselines(train, test)
    known, asked = (molecules.vectors([row["smiles"] for row in part]) for part in (train, test))
    wanted = [row["label"] for row in train]
    expected = {
        "logistic regression": LogisticRegression(max_iter=2000),
        "random forest": RandomForestClassifier(20, random_state=0),
    }
    assert list(scores) == [f"fingerprint, {name}" for name in expected]
    for name, model in expected.items():
        chances = model.fit(known, wanted).predict_proba(asked)[:, 1]
        auc = metrics.roc_auc_score([row["label"] for row in test], chances)
        assert scores[f"fingerprint, {name}"]["auc"] == pytest.approx(auc)
        assert auc > 0.8


def test_baselines_of_numbers_and_of_several_properties_learn_from_what_is_known(few):
    train = rows(80, lambda text: len(text) + 0.5)
    test = rows(120, lambda text: len(text) + 0.5)[80:]
    found = task("molecule-property").fit(train)
    known, asked = (molecules.vectors([row["smiles"] for row in part]) for part in (train, test))
    model = RidgeCV(np.logspace(-1, 3, 9)).fit(known, [row["label"] for row in train])
    errors = model.predict(asked) - [row["label"] for row in test]
    scores = found.baselines(train, test)
    assert scores["fingerprint, ridge regression"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-4)
    assert all(one["rmse"] < found.baseline(train, test)[1]["rmse"] for one in scores.values())

    def several(text):
        nitrogen = int("N" in text.upper())
        return {"nitrogen": nitrogen, "oxygen": None if nitrogen else int("O" in text.upper()), "all": 1}

    train, test = rows(80, several), rows(120, several)[80:]
    found = task("molecule-property").fit(train)
    scores = found.baselines(train, test)["fingerprint, logistic regression"]
    alone = [row for row in train if row["label"]["oxygen"] is not None]
    model = LogisticRegression(max_iter=2000).fit(
        molecules.vectors([row["smiles"] for row in alone]), [row["label"]["oxygen"] for row in alone]
    )
    asked = [row for row in test if row["label"]["oxygen"] is not None]
    oxygen = metrics.roc_auc_score(
        [row["label"]["oxygen"] for row in asked],
        model.predict_proba(molecules.vectors([row["smiles"] for row in asked]))[:, 1],
    )
    single = task("molecule-property").fit([{**row, "label": row["label"]["nitrogen"]} for row in train])
    nitrogen = single.baselines(*([{**r, "label": r["label"]["nitrogen"]} for r in part] for part in (train, test)))
    expected = (oxygen + nitrogen["fingerprint, logistic regression"]["auc"]) / 2
    assert (scores["ranked_labels"], scores["auc"]) == (2, pytest.approx(expected))


# -- proteins


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MKTA1", "sequence holds a letter that no amino acid has ('1')"),
        ("MK*TA", "sequence holds a letter that no amino acid has ('*')"),
        (" ", "sequence is empty"),
        (7, "sequence is not text (int)"),
    ],
)
def test_what_is_no_protein_says_why(text, message):
    assert task("molecule-property", notation="protein").check({"smiles": text, "label": 1}) == message


def test_proteins_have_one_form_and_are_near_by_runs_of_letters():
    found = task("molecule-property", notation="protein")
    assert found.check({"smiles": "mkta YIAKx*", "label": 1}) is None
    assert found.identity({"smiles": "mkta yiak*"}) == found.identity({"smiles": "MKTAYIAK"})
    assert found.sketch({"smiles": "MKTAYIA"}) == {"MKTAY", "KTAYI", "TAYIA"}
    assert found.sketch({"smiles": "MK"}) == {"MK"}


def test_the_composition_of_a_protein_is_shares_of_letters_and_pairs():
    (vector,) = proteins.vectors(["AACX"])
    filled = {int(place): float(vector[place]) for place in vector.nonzero()[0]}
    assert filled == {0: 0.5, 1: 0.25, 20: 0.25, 21: 0.25}  # A, C, AA, AC; X and CX are nowhere


def test_letters_stand_apart_for_tokenizers_that_know_them_only_so(tmp_path):
    found = fitted([0, 1], notation="protein")
    (example,) = found.encode([{"smiles": "mktay"}], with_spaces())
    assert with_spaces().convert_ids_to_tokens(example["input_ids"]) == list("MKTAY")
    tokenizer = by_residues(tmp_path)
    (example,) = found.encode([{"smiles": "mktay"}], tokenizer)
    assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == ["<cls>", *"MKTAY", "<eos>"]


# -- models

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PLACES = {"max_position_embeddings": 66, "pad_token_id": 1}
FAMILIES = {
    "roberta": lambda v: tf.RobertaConfig(vocab_size=v, **SIZES, **PLACES, bos_token_id=0, eos_token_id=2),
    "bert": lambda v: tf.BertConfig(vocab_size=v, **SIZES, **PLACES),
    "esm": lambda v: tf.EsmConfig(vocab_size=v, **SIZES, **PLACES, position_embedding_type="rotary"),
}


def residues(count, label=lambda text: int(text.count("K") > text.count("E"))):
    chance = np.random.default_rng(0)
    texts = ["".join(chance.choice(list("AKELGV"), chance.integers(5, 20))) for _ in range(count)]
    return [{"smiles": text, "label": label(text)} for text in texts]


def folder(path, family):
    """A random backbone with a tokenizer of its kind."""
    torch.manual_seed(0)
    tokenizer = by_residues(path) if family == "esm" else by_atoms()
    tokenizer.save_pretrained(path)
    tf.AutoModel.from_config(FAMILIES[family](len(tokenizer))).save_pretrained(path)
    return str(path)


def of_family(family, count):
    """The fitted task and its rows."""
    given = residues(count) if family == "esm" else rows(count)
    return task("molecule-property", notation="protein" if family == "esm" else "smiles").fit(given), given


STEPS = [
    {"type": "lora", "r": 4, "target_modules": "all-linear"},
    {"type": "ia3"},
    {"type": "adapter"},
    {"type": "prefix", "num_virtual_tokens": 3},
    {"type": "prompt", "num_virtual_tokens": 3},
    {"type": "bitfit"},
]


NO_PLACE = {("esm", "prompt"): "takes no tokens besides its own"}
"""Models that have no site for a method, and what they are refused with: ESM's embeddings read their own mask."""


@pytest.mark.parametrize("method", STEPS, ids=lambda method: method["type"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_of_every_method_lower_the_loss_on_every_family(tmp_path, family, method):
    found, given = of_family(family, 12)
    loaded = found.load(folder(tmp_path, family))
    batch = found.collate(found.encode(given, loaded.processor), loaded.processor)
    network = loaded.model.eval()
    chosen = deltatune.method({**method, "modules_to_save": loaded.new})
    if (family, method["type"]) in NO_PLACE:
        with pytest.raises(SettingsError, match=NO_PLACE[family, method["type"]]):
            deltatune.attach(network, chosen, seed=0)
        return
    deltatune.attach(network, chosen, seed=0)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = found.loss(network(**inputs_of(batch)), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_an_answer(tmp_path, family):
    found, given = of_family(family, 9)
    loaded = found.load(folder(tmp_path, family))
    network = loaded.model.eval()
    examples = found.encode([{"smiles": row["smiles"]} for row in given], loaded.processor)
    with torch.no_grad():
        together = network(**found.collate(examples, loaded.processor)).logits
        alone = torch.cat([network(**found.collate([example], loaded.processor)).logits for example in examples])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.fixture
def few(monkeypatch):
    """Resamples of the interval and trees of the baseline take most of the time of a run this small."""
    monkeypatch.setattr(registry.tasks()["molecule-property"], "resamples", 20)
    monkeypatch.setattr(fingerprint_baselines, "TREES", 20)


LORA = STEPS[0]


def train(tmp_path, given, **fields):
    model = folder(tmp_path / "model", "roberta")
    parts = {"train": given[:160], "validation": given[160:200], "test": given[200:]}
    for name, part in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return deltatune.finetune(
        task={"type": "molecule-property", **fields},
        model=model,
        data={name: str(tmp_path / f"{name}.jsonl") for name in parts},
        method=LORA,
        training={"max_steps": 80, "learning_rate": 5e-3, "per_device_train_batch_size": 16, "bf16": False},
        output_dir=tmp_path / "run",
        quiet=True,
    )


def test_a_run_learns_from_varied_molecules_and_answers_from_its_folder(tmp_path, few):
    run = train(tmp_path, rows(260), augmentation={})
    before, after = run.results["before"], run.results["test"]
    assert after["loss"] < before["loss"] and after["auc"] > 0.9 > before["auc"]
    assert set(run.results["baselines"]) == {"fingerprint, logistic regression", "fingerprint, random forest"}
    scored = deltatune.evaluate(run.folder, str(tmp_path / "test.jsonl"))
    assert scored["auc"] == pytest.approx(after["auc"], abs=1e-6)
    one, other, wrong = deltatune.predict(run.folder, texts=["NCc1ccccc1", "c1ccccc1CN", "c1ccccc1C("])
    assert one == other and one["label"] == "1"
    assert wrong["error"].endswith("smiles is not valid (syntax error around character 10)")


def test_numbers_and_several_properties_are_learned_too(tmp_path, few):
    run = train(tmp_path / "numbers", rows(240, lambda text: 2.5 * text.upper().count("N") + 0.5))
    assert run.results["metric"] == "rmse"
    assert run.results["test"]["rmse"] < 0.7 * run.results["before"]["rmse"]

    def several(text):
        return {"nitrogen": int("N" in text.upper()), "oxygen": int("O" in text.upper()) if len(text) % 3 else None}

    run = train(tmp_path / "several", rows(240, several))
    assert run.results["test"]["auc"] > 0.7 > run.results["before"]["auc"]
    (answer,) = deltatune.predict(run.folder, texts=["NCc1ccccc1"])
    assert set(answer["probabilities"]) == {"nitrogen", "oxygen"}
