"""The point transformer: order of points, groups that are hidden, folders, its place in the engine."""

import pytest
import torch

from deltatune.engine.anatomy import Anatomy
from deltatune.engine.meta import from_config
from deltatune.models.point_transformer import (
    PointTransformerConfig,
    PointTransformerForClassification,
    PointTransformerForMasking,
    PointTransformerModel,
)

SIZES = {
    "num_points": 40,
    "num_groups": 8,
    "group_size": 6,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.2,
}


def made(kind=PointTransformerForClassification, seed=0, **more):
    torch.manual_seed(seed)
    return kind(PointTransformerConfig(**SIZES, **more)).eval()


def clouds(batch=3, count=40, values=3, seed=0):
    return torch.randn(batch, count, values, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("values", [3, 6])
def test_the_order_of_the_points_is_nothing_that_it_sees(values):
    model, points = made(num_channels=values), clouds(values=values)
    with torch.no_grad():
        expected = model(points).logits
        for seed in range(3):
            order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
            assert torch.allclose(model(points[:, order]).logits, expected, atol=1e-6)
        assert not torch.allclose(model(points * 1.5).logits, expected, atol=1e-3)


@pytest.mark.parametrize("count", [6, 8, 200])
def test_any_number_of_points_from_one_group_on(count):
    with torch.no_grad():
        assert made()(clouds(count=count)).logits.isfinite().all()


def test_a_row_does_not_depend_on_its_neighbours():
    model, points = made(), clouds(5)
    with torch.no_grad():
        whole = model(points).logits
        alone = torch.cat([model(points[row : row + 1]).logits for row in range(5)])
    assert torch.allclose(whole, alone, atol=1e-6)


def test_values_beside_the_place_count():
    model, points = made(num_channels=4), clouds(values=4)
    other = points.clone()
    other[..., 3] += 1
    with torch.no_grad():
        assert not torch.allclose(model(points).logits, model(other).logits, atol=1e-4)


def test_the_geometry_is_exact_in_half_precision():
    model, points = made(PointTransformerModel), clouds()
    places, groups = model.groups(points)
    again, seen = model.bfloat16().groups(points)
    assert torch.equal(places, again) and torch.equal(groups, seen)
    assert model(points).last_hidden_state.dtype == torch.bfloat16


def test_what_is_hidden_is_not_seen():
    model, points = made(PointTransformerForMasking), clouds()
    places, groups = model.encoder.groups(points)
    shown, hidden = torch.arange(8)[None, :3].expand(3, -1), torch.arange(8)[None, 3:].expand(3, -1)
    other = groups.clone()
    other[:, 3:] = torch.randn(other[:, 3:].shape)
    with torch.no_grad():
        guess = model.guess(places, groups, shown, hidden)
        assert guess.shape == (3, 5, 6, 3)
        assert torch.equal(guess, model.guess(places, other, shown, hidden))
        other[:, 2] += 1
        assert not torch.allclose(guess, model.guess(places, other, shown, hidden))


def test_pretraining_lowers_the_distance_of_hidden_groups_of_new_clouds():
    model = made(PointTransformerForMasking).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def rings(seed):
        phases = torch.rand(16, 1, generator=torch.Generator().manual_seed(seed)) + torch.arange(40) / 40
        return torch.stack([(2 * torch.pi * phases).sin(), (2 * torch.pi * phases).cos(), torch.zeros(16, 40)], -1)

    losses = []
    for step in range(100):
        loss = model.loss(rings(step), generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("kind", [PointTransformerModel, PointTransformerForMasking])
def test_a_classifier_is_loaded_from_what_was_pretrained(kind, tmp_path):
    saved = made(kind, seed=1)
    saved.save_pretrained(tmp_path)
    model, info = PointTransformerForClassification.from_pretrained(tmp_path, num_labels=4, output_loading_info=True)
    assert {key.rpartition(".")[0] for key in info["missing_keys"]} == {"classifier"}
    own = saved if kind is PointTransformerModel else saved.encoder
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), model.encoder.parameters(), strict=True))
    assert model(clouds()).logits.shape == (3, 4)


def test_the_anatomy_finds_its_blocks_projections_and_entrance(tmp_path):
    made().save_pretrained(tmp_path)
    anatomy = Anatomy.of(made())
    assert [stack.blocks for stack in anatomy.stacks] == [("encoder.layers.0", "encoder.layers.1")]
    roles = {layer.role for layer in anatomy.every_layer if layer.block is not None}
    parts = ("query", "key", "value", "output")
    assert roles == {*(f"attention.{part}" for part in parts), "mlp.up", "mlp.down"}
    assert anatomy.heads == ("classifier",)
    assert anatomy.inputs()[0].path == "encoder.tokens"
    assert len(anatomy.attentions()) == 2
    assert len(anatomy.sublayers(["attention", "mlp"])) == 4
    assert from_config(str(tmp_path)).config.model_type == "point-transformer"
