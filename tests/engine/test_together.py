"""Several adapters in one pass: outputs and gradients of passes for each alone."""

from itertools import pairwise

import pytest
import torch

import deltatune
from deltatune.core.errors import AdapterError
from deltatune.core.task import TRUNK
from deltatune.engine.compose import by_rows, chosen, equal_shares
from deltatune.engine.sockets import LayerSocket
from deltatune.engine.together import split, together
from deltatune.engine.trunk import Trunk, trunk_of
from models import inputs, tiny

MIXES = {
    "ranks": [("lora", {"r": 2}), ("lora", {"r": 5}), ("lora", {"r": 3, "use_rslora": True})],
    "kinds": [("lora", {"r": 2}), ("ia3", {}), ("adapter", {}), ("bitfit", {})],
    "family": [("lora", {"r": 2}), ("lora", {"r": 2, "use_gating": True}), ("dora", {"r": 3}), ("lora-fa", {"r": 2})],
    "places": [("lora", {"r": 2, "layers_to_transform": "top-1"}), ("lora", {"r": 2, "target_modules": "attention"})],
}
FAMILIES = ["bert", "llama", "gpt2", "vit"]


def attached(family, mix):
    """Adapters in float64 that are not the identity any more."""
    torch.manual_seed(0)
    model = tiny(family).eval().double()
    handles = [
        deltatune.attach(model, deltatune.method(name, **settings), name=f"run-{index}", seed=index)
        for index, (name, settings) in enumerate(mix)
    ]
    for handle in handles:
        for parameter in handle.parameters():
            parameter.data = torch.randn_like(parameter) * 0.1 + parameter.detach()
    return model, handles


def double(batch):
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def gradients(handles):
    found = [[parameter.grad for parameter in handle.parameters()] for handle in handles]
    for handle in handles:
        for parameter in handle.parameters():
            parameter.grad = None
    return found


def compare(handles, batch, one, again):
    """Logits and gradients of a joint pass against passes for each adapter alone, each with a loss of its own."""
    model = handles[0].model
    alone = []
    for index, handle in enumerate(handles):
        with handle.roster.activated(handle.name):
            logits = model(**batch).logits
        ((index + 1) * logits.square().sum()).backward()
        alone.append(logits.detach())
    separate = gradients(handles)
    with together(handles, len(next(iter(batch.values()))), one, again):
        outputs = split(model(**{name: t for name, t in again.items() if name != TRUNK}), len(handles))
        torch.stack([(index + 1) * part.logits.square().sum() for index, part in enumerate(outputs)]).sum().backward()
    for part, expected in zip(outputs, alone, strict=True):
        assert torch.allclose(part.logits, expected, atol=1e-10)
    for handle, ours, theirs in zip(handles, gradients(handles), separate, strict=True):
        for name, own, expected in zip(handle.named_parameters(), ours, theirs, strict=True):
            assert (own is None) == (expected is None), name
            assert own is None or torch.allclose(own, expected, rtol=1e-8, atol=1e-10), name


def repeated(batch, times):
    return {name: tensor.repeat(times, *(1 for _ in tensor.shape[1:])) for name, tensor in batch.items()}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_separate_passes(family, mix):
    chosen = [(name if family != "llama" or name != "bitfit" else "layernorm", own) for name, own in MIXES[mix]]
    model, handles = attached(family, chosen)  # Llama has no biases
    batch = double(inputs(model))
    compare(handles, batch, batch, repeated(batch, len(handles)))


@pytest.mark.parametrize("kept", [True, False])
def test_the_trunk_is_shared(kept):
    """Its rows are taken from what is kept, or its blocks run once for all adapters."""
    model, handles = attached("bert", [("lora", {"r": r, "layers_to_transform": "top-1"}) for r in (1, 2, 4)])
    batch = double(inputs(model))
    trunk = Trunk(handles[0], trunk_of(handles[0]))
    for other in handles[1:]:
        trunk.cover(other)
    handles[0].activate()
    numbers = {TRUNK: torch.tensor(trunk.keep(batch))} if kept else {}
    if not kept:
        trunk.keep(batch)
    handles[0].roster.trunk = trunk
    again = repeated(batch | numbers, 3)
    ran = []
    block = model.get_submodule(trunk.blocks[0])
    hook = block.attention.register_forward_hook(lambda module, args, output: ran.append(len(output[0])))
    rows = len(batch["input_ids"])
    compare(handles, batch, batch | numbers, again)
    hook.remove()
    assert ran[:3] == [rows] * 3  # of the separate passes
    assert ran[3:] == ([] if kept else [rows])


def test_a_trunk_that_leaves_makes_room_for_another():
    model, handles = attached("bert", [("linear-probe", {}), ("lora", {"layers_to_transform": "top-1"})])
    batch = double(inputs(model))
    expected = []
    for handle in handles:
        handle.activate()
        expected.append(model(**batch).logits)
    for handle, logits in zip(handles, expected, strict=True):
        handle.activate()
        trunk = Trunk(handle, trunk_of(handle))
        numbers = torch.tensor(trunk.keep(batch))
        with torch.no_grad(), trunk.replaying({**batch, TRUNK: numbers}):
            assert torch.allclose(model(**batch).logits, logits, atol=1e-10)
        trunk.leave()
        assert torch.equal(model(**batch).logits, logits)


def test_low_rank_adapters_side_by_side_run_in_one_operation(monkeypatch):
    model, handles = attached("bert", MIXES["ranks"])
    batch = double(inputs(model))
    monkeypatch.setattr(LayerSocket, "_composed", lambda *_: pytest.fail("one after the other"))
    with together(handles, len(batch["input_ids"]), batch, repeated(batch, 3)):
        model(**repeated(batch, 3))


def test_adapters_that_change_the_whole_batch_are_refused():
    _, handles = attached("bert", [("lora", {}), ("ladder", {})])
    with pytest.raises(AdapterError, match="cannot act on single rows"), together(handles, 2, {}, {}):
        pass


def test_outputs_are_split_whatever_their_form():
    output = {
        "logits": torch.arange(6),
        "states": (torch.arange(4), torch.arange(2)),
        "loss": torch.tensor(1.0),
        "none": (),
    }
    first, second = split(output, 2)
    assert first["logits"].tolist() == [0, 1, 2] and second["logits"].tolist() == [3, 4, 5]
    assert [part.tolist() for part in second["states"]] == [[2, 3], [1]]
    assert first["loss"] is output["loss"] and first["none"] == ()


@pytest.mark.parametrize("rows", [[0, 1], [2, 3], [3, 1], [0, 2], [4]])
def test_rows_are_chosen_and_put_back(rows):
    x = torch.randn(5, 3)
    assert torch.equal(chosen(x, rows, 0), x[rows])
    assert torch.equal(chosen(x.mT, rows, 1), x[rows].mT)
    rest = [row for row in range(5) if row not in rows]
    groups = [("a", rows), ("b", rest)]
    assert torch.equal(by_rows(groups, lambda node, own: chosen(x, own, 0), 0), x)
    ordered = all(a < b for a, b in pairwise(rows + rest))
    assert equal_shares(groups) == (ordered and len(rows) == len(rest))
