"""Conditional adapters: the paper's count, rows of many tasks in one batch, and the plain adapter of each task."""

import pytest
import torch

import deltatune
from contract.cases import disturb, forward, model_of, outputs
from deltatune.core.errors import AdapterError
from models import ROWS, inputs
from shapes import count

FAMILIES = ["bert", "llama", "t5", "vit", "whisper"]
GENERATORS = ["film", "hypernet"]


def made(family, generator, **settings):
    model = model_of(family)
    method = deltatune.ConditionalAdapter(generator=generator, tasks=3, reduction_factor=8, **settings)
    adapter = deltatune.attach(model, method)
    disturb(adapter, size=0.2)
    return model, adapter


def test_t5_base_with_8_tasks_trains_0_29_percent_per_task():
    method = deltatune.ConditionalAdapter(generator="hypernet", tasks=8, reduction_factor=32)
    trained = count(method, "t5-base")
    assert trained - 8 * 64 == 5_162_928
    assert round(100 * trained / 8 / 222_903_552, 2) == 0.29


def test_film_adds_two_small_matrices_to_every_bottleneck():
    m, d, c = 24, 768, 64
    expected = 24 * (2 * m * d + m + d + 2 * m * c) + 8 * c
    assert count(deltatune.ConditionalAdapter(tasks=8, reduction_factor=32), "bert-base") == expected


@pytest.mark.parametrize("generator", GENERATORS)
def test_only_the_table_grows_with_the_number_of_tasks(generator):
    few, many = (count(deltatune.ConditionalAdapter(generator=generator, tasks=n), "bert-base") for n in (1, 101))
    assert many - few == 100 * 64


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_many_tasks_is_the_tasks_one_by_one(family, generator):
    model, adapter = made(family, generator)
    given = inputs(model)
    with adapter.conditioned(torch.tensor([2, 0, 1])):
        mixed = outputs(model, given)
    for row, task in enumerate((2, 0, 1)):
        with adapter.conditioned(torch.full((ROWS,), task)):
            assert torch.allclose(outputs(model, given)[row], mixed[row], atol=1e-5)
    assert not torch.allclose(mixed, outputs(model, given), atol=1e-4)


@pytest.mark.parametrize("generator", GENERATORS)
def test_permuting_the_tasks_and_their_ids_changes_nothing(generator):
    model, adapter = made("bert", generator)
    with adapter.conditioned(torch.tensor([0, 1, 2])):
        before = outputs(model)
    order = torch.tensor([2, 0, 1])
    table = adapter.attached.placed.shared.table
    with torch.no_grad():
        table.copy_(table[order].clone())
    with adapter.conditioned(order.argsort()):
        assert torch.equal(outputs(model), before)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_task_becomes_a_plain_adapter_with_equal_outputs(family, generator, tmp_path):
    model, adapter = made(family, generator, train_layernorm=True)
    with adapter.conditioned(torch.full((ROWS,), 1)):
        expected = outputs(model)
    plain = deltatune.materialize(adapter, 1, name="plain")
    assert plain.method.type == "adapter"
    assert torch.allclose(outputs(model), expected, atol=1e-5)
    plain.save(tmp_path / "plain")
    fresh = model_of(family)
    deltatune.load(fresh, tmp_path / "plain")
    assert torch.allclose(outputs(fresh), expected, atol=1e-5)


@pytest.mark.parametrize("generator", GENERATORS)
def test_vectors_take_the_place_of_the_table(generator):
    model, adapter = made("bert", generator, condition_size=5)
    assert not [n for n in adapter.named_parameters() if "table" in n]
    assert adapter.trainable_parameters == adapter.method.count(adapter.attached.sites)
    vectors = torch.randn(ROWS, 5)
    with adapter.conditioned(vectors):
        expected = outputs(model)
    with adapter.conditioned(vectors.flip(0)):
        assert not torch.allclose(outputs(model), expected, atol=1e-4)
    deltatune.materialize(adapter, vectors[1], name="plain")
    assert torch.allclose(outputs(model)[1], expected[1], atol=1e-5)


@pytest.mark.parametrize("generator", GENERATORS)
def test_without_a_condition_a_row_is_of_the_average_task(generator):
    model, adapter = made("bert", generator)
    table = adapter.attached.placed.shared.table
    expected = outputs(model)
    with torch.no_grad():
        table.copy_(table.mean(0).expand_as(table).clone())
    with adapter.conditioned(torch.tensor([0, 1, 2])):
        assert torch.allclose(outputs(model), expected, atol=1e-5)


def test_film_at_the_start_is_the_plain_adapter_and_the_table_takes_its_gradient_through_film_alone():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.ConditionalAdapter(tasks=3))
    for module in adapter.attached.placed.modules():
        torch.nn.init.normal_(module.up_weight)
    with adapter.conditioned(torch.tensor([0, 1, 2])):
        mixed = forward(model, inputs(model))
    assert torch.equal(mixed, forward(model, inputs(model)))
    mixed.square().sum().backward()
    assert not adapter.attached.placed.shared.table.grad.any()
    module = next(iter(adapter.attached.placed.modules()))
    assert module.gain.grad.any() and module.shift.grad.any()


@pytest.mark.parametrize(
    ("settings", "condition", "message"),
    [
        ({}, torch.tensor([0, 3, 1]), "task id 3 is outside the table of 3 tasks; set method.tasks"),
        ({}, torch.tensor([0, -1, 1]), "one task id"),
        ({}, torch.randn(3), "one task id"),
        ({"condition_size": 4}, torch.randn(3, 5), r"a vector of 4 values per row, not a condition of shape \[3, 5\]"),
    ],
)
def test_impossible_conditions_are_errors(settings, condition, message):
    _, adapter = made("bert", "film", **settings)
    with pytest.raises(AdapterError, match=message), adapter.conditioned(condition):
        pass


def test_a_plain_adapter_cannot_be_materialized():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.BottleneckAdapter())
    with pytest.raises(AdapterError, match="has no condition"):
        deltatune.materialize(adapter, 0, name="plain")


def test_a_hypernetwork_moves_at_a_tenth_of_the_rate():
    _, adapter = made("bert", "hypernet", modules_to_save=("classifier",))
    for name, pace in adapter.paces().items():
        assert pace.rate == (0.1 if name.startswith("shared.networks.") else 1.0)
