"""The set loss against the losses of transformers, and what it promises beyond them."""

import math

import pytest
import torch

from deltatune.core import set_loss as ours
from deltatune.core.set_loss import NOTHING, Wanted, kind_of, layer_loss, layers, matched, set_loss
from deltatune.ops.boxes import centres, corners
from detectors import CLASSES, FAMILIES, SIDE, detector

COUNTS = (2, 0, 4)


def wanted(counts=COUNTS, most=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.full((len(counts), most), NOTHING)
    boxes = torch.zeros(len(counts), most, 4)
    for image, count in enumerate(counts):
        classes[image, :count] = torch.randint(CLASSES, (count,), generator=generator)
        sizes = 0.1 + 0.3 * torch.rand(count, 2, generator=generator)
        low = torch.rand(count, 2, generator=generator) * (1 - sizes)
        boxes[image, :count] = centres(torch.cat([low, low + sizes], -1))
    return Wanted(classes, boxes)


def image_of(given, image):
    count = given.counts[image]
    return Wanted(
        given.classes_BM[image : image + 1, : max(1, count)], given.boxes_BM4[image : image + 1, : max(1, count)]
    )


def theirs(model, output, given, image):
    """The loss of transformers for one image, without D-FINE's terms of its own."""
    one = slice(image, image + 1)
    count = given.counts[image]
    labels = [{"class_labels": given.classes_BM[image, :count], "boxes": given.boxes_BM4[image, :count]}]
    more = {}
    if output.get("enc_topk_logits") is not None:
        more = {
            "outputs_class": output.intermediate_logits[one],
            "outputs_coord": output.intermediate_reference_points[one],
            "enc_topk_logits": output.enc_topk_logits[one],
            "enc_topk_bboxes": output.enc_topk_bboxes[one],
        }
        if "initial_reference_points" in output:
            more["predicted_corners"] = output.intermediate_predicted_corners[one]
            more["initial_reference_points"] = output.initial_reference_points[one]
    loss, parts, _ = model.loss_function(
        output.logits[one], labels, "cpu", output.pred_boxes[one], model.config, **more
    )
    return loss - sum(value for name, value in parts.items() if "fgl" in name or "ddf" in name)


def answer(family):
    model = detector(family)
    torch.manual_seed(1)
    for parameter in model.parameters():  # fresh heads answer the same everywhere
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    output = model(pixel_values=torch.randn(len(COUNTS), 3, SIDE, SIDE))
    output.pred_boxes = output.pred_boxes.clamp(0, 1)  # D-FINE's integral leaves the image, its loss clamps it
    return model, output


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_has_the_loss_that_transformers_computes_for_it_alone(family):
    with torch.no_grad():
        model, output = answer(family)
        given = wanted()
        for image, count in enumerate(COUNTS):
            alone = {name: output[name][image : image + 1] for name in output if output[name] is not None}
            own = set_loss(alone, image_of(given, image), CLASSES)
            expected = theirs(model, output, given, image)
            torch.testing.assert_close(own, expected * max(1, count), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_batch_is_the_sum_over_its_images_whatever_the_padding(family):
    with torch.no_grad():
        _, output = answer(family)
        given = wanted()
        together = set_loss(output, given, CLASSES)
        alone = [
            set_loss({n: output[n][i : i + 1] for n in output if output[n] is not None}, image_of(given, i), CLASSES)
            for i in range(len(COUNTS))
        ]
        torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-5, atol=1e-5)
    assert given.weight == 2 + 1 + 4


def test_the_kind_follows_from_the_output():
    kinds = {family: kind_of(answer(family)[1], CLASSES) for family in FAMILIES}
    assert kinds == {
        "detr": "softmax",
        "yolos": "softmax",
        "conditional-detr": "focal",
        "dab-detr": "focal",
        "deformable-detr": "focal",
        "rt-detr": "varifocal",
        "rt-detr-v2": "varifocal",
        "d-fine": "varifocal",
    }


def test_lower_layers_answer_too_where_the_output_has_them():
    assert [len(list(layers(answer(family)[1]))) for family in ("detr", "rt-detr", "d-fine")] == [1, 3, 2]


@pytest.mark.parametrize("kind", ["softmax", "focal", "varifocal"])
def test_the_match_is_the_cheapest_of_all_assignments(kind):
    from itertools import permutations

    torch.manual_seed(0)
    given = wanted((3,), most=3)
    logits = torch.randn(1, 5, CLASSES + (kind == "softmax"))
    boxes = centres(torch.sort(torch.rand(1, 5, 2, 2), -2).values.flatten(-2))
    _, query, box = matched(logits, boxes, given, kind)
    cost = ours.costs(logits, boxes, given, kind)[0]
    cheapest = min(permutations(range(5), 3), key=lambda queries: sum(cost[q, m] for m, q in enumerate(queries)))
    assert dict(zip(box.tolist(), query.tolist())) == dict(enumerate(cheapest))


def test_a_perfect_answer_costs_only_its_doubt():
    given = wanted((2,), most=2)
    logits = torch.full((1, 4, CLASSES), -20.0)
    logits[0, :2].scatter_(1, given.classes_BM[0, :, None], 20.0)
    boxes = torch.cat([given.boxes_BM4, given.boxes_BM4 * 0.5], 1)
    assert layer_loss(logits, boxes, given, "focal") < 1e-5
    assert layer_loss(logits, boxes, given, "varifocal") < 1e-5


def test_more_boxes_than_answers_leave_some_without():
    given = wanted((5,), most=5)
    image, query, box = matched(torch.randn(1, 2, CLASSES), torch.rand(1, 2, 4), given, "focal")
    assert image.tolist() == [0, 0] and sorted(query.tolist()) == [0, 1] and len(set(box.tolist())) == 2


@pytest.mark.parametrize("kind", ["softmax", "focal", "varifocal"])
def test_images_without_boxes_teach_that_nothing_is_there(kind):
    logits = torch.zeros(2, 3, CLASSES + (kind == "softmax"), requires_grad=True)
    given = Wanted(torch.full((2, 1), NOTHING), torch.zeros(2, 1, 4))
    loss = layer_loss(logits, torch.rand(2, 3, 4), given, kind)
    loss.backward()
    assert given.weight == 2 and math.isfinite(loss.item())
    assert (logits.grad[..., :CLASSES] > 0).all()


def test_half_precision_is_computed_in_float32():
    output = {"logits": torch.randn(1, 4, CLASSES).bfloat16(), "pred_boxes": torch.rand(1, 4, 4).bfloat16()}
    assert set_loss(output, wanted((2,)), CLASSES).dtype == torch.float32


def test_an_answer_that_is_not_finite_is_a_loss_that_is_not_and_no_crash():
    output = {"logits": torch.full((1, 4, CLASSES), math.nan), "pred_boxes": torch.rand(1, 4, 4)}
    assert not math.isfinite(set_loss(output, wanted((2,)), CLASSES))
    assert corners(torch.tensor([1.0, 1, 2, 2])).tolist() == [0, 0, 2, 2]
