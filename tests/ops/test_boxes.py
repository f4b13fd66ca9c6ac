"""Boxes against counted squares: areas, overlaps, and which of those that overlap stay."""

import torch

from deltatune.ops.boxes import area, centres, corners, overlap, surest

SIDE = 12


def squares(box: torch.Tensor) -> set[tuple[int, int]]:
    """The unit squares in a box of whole numbers."""
    left, top, right, bottom = (int(value) for value in box)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


def random_boxes(count: int) -> torch.Tensor:
    ends = torch.randint(0, SIDE, (count, 2, 2), generator=torch.Generator().manual_seed(count))
    low = ends.amin(1)
    return torch.cat([low, ends.amax(1) + 1], -1).float()


def test_corners_and_centres_are_each_others_inverse():
    boxes = random_boxes(40)
    assert torch.allclose(corners(centres(boxes)), boxes)
    assert centres(torch.tensor([1.0, 2.0, 5.0, 4.0])).tolist() == [3.0, 3.0, 4.0, 2.0]


def test_areas_and_overlaps_are_those_of_counted_squares():
    boxes = random_boxes(30)
    iou, giou = overlap(boxes[:, None], boxes[None])
    for i, a in enumerate(map(squares, boxes)):
        assert area(boxes[i]) == len(a)
        for j, b in enumerate(map(squares, boxes)):
            xs, ys = zip(*(a | b), strict=True)
            hull = (max(xs) - min(xs) + 1) * (max(ys) - min(ys) + 1)
            wanted = len(a & b) / len(a | b)
            assert abs(iou[i, j] - wanted) < 1e-6
            assert abs(giou[i, j] - (wanted - (hull - len(a | b)) / hull)) < 1e-6


def test_boxes_without_area_have_no_overlap():
    swapped, point = torch.tensor([4.0, 4.0, 1.0, 1.0]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    assert area(swapped) == 0 and area(point) == 0
    assert overlap(point, point)[0] == 0 and overlap(swapped, torch.tensor([0.0, 0.0, 4.0, 4.0]))[0] == 0
    apart = overlap(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0]))
    assert apart[0] == 0 and apart[1] == -0.5


def test_the_surest_boxes_stay_as_one_goes_through_them():
    boxes = random_boxes(60)
    groups = torch.arange(60) % 3
    iou, _ = overlap(boxes[:, None], boxes[None])
    for most in (0.0, 0.2, 0.5):
        kept: list[int] = []
        for i in range(60):
            if not any(groups[i] == groups[j] and iou[i, j] > most for j in kept):
                kept.append(i)
        assert surest(boxes, groups, most).nonzero().flatten().tolist() == kept
        assert 0 < len(kept) < 60
