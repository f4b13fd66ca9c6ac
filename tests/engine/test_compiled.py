"""Compiled blocks: the outputs and gradients of the plain ones, and no new graph for a new adapter."""

import pytest
import torch
from torch._dynamo.utils import counters

import deltatune
from deltatune.core.errors import SettingsError
from deltatune.engine import handle
from deltatune.engine.compiled import compile_blocks
from models import tiny
from words import csv_file, model_folder, reviews

# torch looks at the gradients of what comes in while it traces
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def no_graphs():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def attached(model, method, name, **settings):
    adapter = deltatune.attach(model, deltatune.method(method, **settings), name=name)
    generator = torch.Generator().manual_seed(len(name))
    for parameter in adapter.parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapter.train_mode(True)
    return adapter


def given(family, rows=4, tokens=10):
    generator = torch.Generator().manual_seed(rows * tokens)
    mask = (torch.arange(tokens) >= torch.tensor([2] + [0] * (rows - 1))[:, None]).long()
    batch = {"input_ids": torch.randint(3, 90, (rows, tokens), generator=generator), "attention_mask": mask}
    return {**batch, "use_cache": False} if family == "llama" else batch


def step(adapter, batch):
    """Outputs and gradients."""
    with adapter.roster.activated(adapter.name):
        logits = adapter.model(**batch).logits
        logits.square().mean().backward()
    found = [logits.detach(), *(p.grad.clone() for p in adapter.parameters() if p.grad is not None)]
    adapter.model.zero_grad()
    return found


def graphs():
    return counters["stats"]["unique_graphs"]


def close(ours, theirs):
    return len(ours) == len(theirs) > 1 and all(
        torch.allclose(one, other, atol=1e-5, rtol=1e-4) for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_later_adapters_lengths_and_blocks_share_the_graphs_of_the_first(family):
    """Two graphs: the input of the first block needs no gradient, that of the others does."""
    torch.manual_seed(0)
    model = tiny(family).eval()
    batches = [given(family), given(family, tokens=9), given(family, rows=3, tokens=17)]
    for name in ("first", "second", "a-third"):
        adapter = attached(model, "lora", name, r=2)
        plain = [step(adapter, batch) for batch in batches]
        adapter.compile("eager")
        assert all(close(step(adapter, batch), expected) for batch, expected in zip(batches, plain, strict=True))
        assert graphs() == 2


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dora", {"r": 2}),
        ("adapter", {}),
        ("ia3", {}),
        ("bitfit", {}),
        ("prefix", {"num_virtual_tokens": 2}),
        ("lora", {"r": 2, "layers_to_transform": "top-1"}),
    ],
)
def test_other_methods_compile_and_give_the_same(method, settings):
    torch.manual_seed(0)
    adapter = attached(tiny("bert").eval(), method, "one", **settings)
    batch = given("bert")
    plain = step(adapter, batch)
    adapter.compile("eager")
    assert close(step(adapter, batch), plain)
    assert graphs() > 0


def test_checkpointed_blocks_compile_too():
    torch.manual_seed(0)
    adapter = attached(tiny("bert").eval(), "lora", "one", r=2)
    plain = step(adapter, given("bert"))
    adapter.checkpoint()
    adapter.compile("eager")
    assert close(step(adapter, given("bert")), plain)
    assert graphs() > 0


def test_without_gradient_and_without_it_nothing_is_compiled():
    model = tiny("bert").eval()
    adapter, other = attached(model, "lora", "one", r=2), attached(model, "lora", "other", r=2)
    adapter.compile("eager")
    with torch.no_grad(), adapter.roster.activated("one"):
        model(**given("bert"))
    step(other, given("bert"))
    assert graphs() == 0


def test_what_is_attached_is_found_under_its_own_name_again():
    model = tiny("bert").eval()
    paths = [path for path, _ in model.named_modules()]
    adapter = attached(model, "lora", "one", r=2)
    names = [name for name, _ in model.named_parameters()]
    adapter.compile("eager")
    step(adapter, given("bert"))
    assert [name for name, _ in model.named_parameters()] == names and adapter.roster.active == "one"
    adapter.detach()
    assert [path for path, _ in model.named_modules()] == paths


def test_a_block_that_is_no_graph_is_refused_by_name():
    model = tiny("bert").eval()
    adapter = attached(model, "lora", "one", r=2)
    dense = model.bert.encoder.layer[0].intermediate.dense
    dense.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    adapter.compile("eager")
    with pytest.raises(SettingsError, match="BertLayer cannot be compiled.*leave training.compile out"):
        step(adapter, given("bert"))
    assert adapter.roster.active == "one"


def test_models_without_blocks_and_adapters_of_others_are_refused():
    flat = deltatune.attach(torch.nn.Sequential(torch.nn.Linear(4, 4)), deltatune.LoRA(r=2, target_modules="0"))
    with pytest.raises(SettingsError, match="no repeated blocks"):
        flat.compile()
    mixed = deltatune.attach(tiny("bert"), [{"type": "lora", "r": 2}, "bitfit"])
    with pytest.raises(SettingsError, match="mix acts with other adapters"):
        mixed.compile()


def test_a_run_of_compiled_blocks_is_the_run_of_plain_ones(tmp_path, monkeypatch):
    model_folder(tmp_path / "model")
    csv_file(tmp_path / "reviews.csv", reviews(60))
    monkeypatch.setattr(
        handle, "compile_blocks", lambda model, roster, name, _: compile_blocks(model, roster, name, "eager")
    )
    found = []
    for compiled in (False, True):
        done = deltatune.finetune(
            task="text-classification",
            model=str(tmp_path / "model"),
            data={"train": str(tmp_path / "reviews.csv")},
            method={"type": "lora", "lora_dropout": 0.0},
            training={"num_train_epochs": 1, "per_device_train_batch_size": 16, "bf16": False, "compile": compiled},
            output_dir=tmp_path / str(compiled),
            quiet=True,
        )
        found.append(done.results["test"]["loss"])
        assert (graphs() > 0) is compiled
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.torture
def test_inductor_gives_the_same():
    torch.manual_seed(0)
    adapter = attached(tiny("bert").eval(), "lora", "one", r=2)
    plain = step(adapter, given("bert"))
    adapter.compile()
    assert close(step(adapter, given("bert")), plain)


@pytest.mark.torture
def test_a_machine_without_a_compiler_is_told(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    adapter = attached(tiny("bert").eval(), "lora", "one", r=2)
    adapter.compile()
    with pytest.raises(SettingsError, match="leave training.compile out"):
        step(adapter, given("bert"))
