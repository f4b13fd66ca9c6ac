"""Compositions as data, what a weight of several adapters is, and what cannot be composed."""

import pytest
import torch

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import AdapterError
from deltatune.engine.compose import Average, Rows, Stack, evaluate, expand_rows, replaced, without

EVERY = Rows([Stack("a", Average({"b": 0.5})), None, "c"])


def test_an_adapter_is_taken_out_wherever_it_stands():
    assert without(EVERY, "b") == Rows([Stack("a", Average([(None, 0.5)])), None, "c"])
    assert without(EVERY, "a") == Rows([Stack(Average({"b": 0.5})), None, "c"])
    assert without(EVERY, "c") == Rows([Stack("a", Average({"b": 0.5})), None, None])
    assert without(Stack("a", "a"), "a") is None and without(None, "a") is None


def test_a_name_is_replaced_wherever_it_stands():
    assert replaced(EVERY, str.upper) == Rows([Stack("A", Average({"B": 0.5})), None, "C"])


def test_a_row_stands_for_as_many_entries_as_the_batch_has_for_it():
    rows = Rows(["a", None, "a"])
    assert expand_rows(rows, 3, "it") == [("a", [0, 2]), (None, [1])]
    assert expand_rows(rows, 6, "it") == [("a", [0, 1, 4, 5]), (None, [2, 3])]
    for size in (2, 4, 0):
        with pytest.raises(AdapterError, match=f"Rows names 3 rows but it sees a batch of {size}"):
            expand_rows(rows, size, "it")


def test_an_average_is_the_base_where_none_of_its_adapters_is():
    def value(node, here):
        return evaluate(node, here, lambda add, base: base + add, 1.0, lambda pairs: sum(v * w for v, w in pairs))

    node = Stack("a", Average([("b", 0.5), (None, 2.0)]))
    assert value(node, {"a": 10.0}) == 11.0
    assert value(node, {"b": 10.0}) == 0.5 * 11.0 + 2.0 * 1.0
    assert value(node, {"a": 1.0, "b": 10.0}) == 0.5 * 12.0 + 2.0 * 2.0
    with pytest.raises(AdapterError, match="Rows inside Stack or Average is not possible"):
        value(Stack("a", Rows(["b"])), {"b": 1.0})


def two_loras_and_a_dora():
    model = model_of("bert")
    handles = [deltatune.attach(model, deltatune.LoRA(r=2, target_modules=("value",)), name=name) for name in "ab"]
    handles.append(deltatune.attach(model, deltatune.DoRA(r=2, target_modules=("value",)), name="c"))
    for seed, handle in enumerate(handles):
        disturb(handle, seed=seed, size=1.0)
    return model, handles


def test_the_weight_under_an_average_is_the_average_of_the_weights():
    """DoRA divides by the norm of the weight it stands on."""
    model, (a, b, c) = two_loras_and_a_dora()
    with deltatune.active(model, Stack(Average({"a": 0.75, "b": 0.25}), "c")):
        found = outputs(model)
    plain, merged = model_of("bert"), []
    for name, handle in (("a", a), ("b", b)):
        with deltatune.active(model, name):
            handle.merge()
            merged.append({path: weight.clone() for path, weight in value_weights(model).items()})
            handle.unmerge()
    with torch.no_grad():
        for path, weight in merged[0].items():
            plain.get_parameter(path).copy_(0.75 * weight + 0.25 * merged[1][path])
    alone = deltatune.attach(plain, c.method, name="c")
    alone.load_tensors(c.export().tensors)
    assert torch.allclose(found, outputs(plain), atol=1e-5)
    with deltatune.active(model, "c"):
        assert not torch.allclose(found, outputs(model), atol=1e-4)


def value_weights(model):
    return {path: p.data for path, p in model.named_parameters() if path.endswith("value.weight")}


def test_what_acts_on_merged_weights_is_refused():
    model, (a, b, _) = two_loras_and_a_dora()
    with deltatune.active(model, Stack("a", "b")), pytest.raises(AdapterError, match="b would go on acting"):
        a.merge()
    with deltatune.active(model, "a"):
        before = outputs(model)
        with pytest.raises(AdapterError, match="adapter 'a' is not merged"):
            a.unmerge()
        a.merge()
        with pytest.raises(AdapterError, match="adapter 'a' is merged already"):
            b.merge()
        with pytest.raises(AdapterError, match="adapter 'a' is merged into the base"), deltatune.active(model, "a"):
            pass
        with pytest.raises(AdapterError, match="unmerge"):
            a.detach()
        a.unmerge()
        assert torch.equal(outputs(model), before)


@pytest.mark.parametrize(
    ("method", "family", "node", "why"),
    [
        ("prefix", "bert", Average({"a": 0.5, "b": 0.5}), "keys and values of several adapters cannot be averaged"),
        ("prompt", "bert", Average({"a": 0.5, "b": 0.5}), "prompts cannot be averaged"),
        ("prompt", "bert", Rows(["a", "b", "a"]), "prompt cannot act on single rows of a batch"),
        ("ladder", "bert", Stack("a", "b"), "ladder cannot be combined with other adapters"),
    ],
)
def test_what_cannot_act_together_says_so(method, family, node, why):
    model = model_of(family)
    for name in "ab":
        deltatune.attach(model, deltatune.method(method), name=name)
    with pytest.raises(AdapterError, match=why), deltatune.active(model, node):
        outputs(model)


def test_prefixes_side_by_side_are_one_longer_prefix():
    model, long = model_of("bert"), model_of("bert")
    handles = [deltatune.attach(model, deltatune.method("prefix", num_virtual_tokens=2), name=name) for name in "ab"]
    both = deltatune.attach(long, deltatune.method("prefix", num_virtual_tokens=4), name="both")
    for seed, handle in enumerate(handles):
        disturb(handle, seed=seed, size=1.0)
    first, second = (handle.export().tensors for handle in handles)
    joined = {}
    for key, tensor in both.export().tensors.items():
        (dim,) = (d for d in range(tensor.dim()) if tensor.shape[d] != first[key].shape[d])
        joined[key] = torch.cat([first[key], second[key]], dim)
    both.load_tensors(joined)
    with deltatune.active(model, Stack("a", "b")):
        found = outputs(model)
    assert torch.allclose(found, outputs(long), atol=1e-6)
    with deltatune.active(model, Stack("a", None)):
        assert not torch.allclose(found, outputs(model), atol=1e-4)
