"""The fused low-rank linear map against its formula: values, gradients, what it keeps."""

import pytest
import torch
import torch.nn.functional as F

from deltatune.ops import low_rank


def tensors(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    shapes = {"x": (3, 2, 13), "weight": (11, 13), "bias": (11,), "a": (2, 13), "b": (11, 2)}
    made = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    return made if bias else {**made, "bias": None}


def plainly(x, weight, bias, a, b):
    return F.linear(x, weight, bias) + F.linear(F.linear(x, a), b)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_sum_of_both_maps(dtype, bias):
    given = tensors(dtype, bias)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert torch.allclose(low_rank.linear(*given.values()), plainly(*given.values()), atol=tolerance)


@pytest.mark.parametrize(
    "trained", [("a", "b"), ("x", "a", "b"), ("x", "weight", "bias", "a", "b"), ("bias", "b"), ("x",)]
)
def test_gradients_are_those_of_finite_differences_for_whatever_is_trained(trained):
    given = tensors()
    for name in trained:
        given[name].requires_grad_(True)
    assert torch.autograd.gradcheck(low_rank.linear, tuple(given.values()))


def test_a_large_rank_is_written_out_where_that_is_cheaper():
    x, weight, a, b = (torch.randn(s, dtype=torch.float64) for s in ((40, 4), (4, 4), (4, 4), (4, 4)))
    seen = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.extend(tuple(t.shape) for t in args if isinstance(t, torch.Tensor) and "mm" in str(func))
            return func(*args, **(kwargs or {}))

    with Seen():
        result = low_rank.linear(x, weight, None, a, b)
    assert torch.allclose(result, plainly(x, weight, None, a, b)) and seen.count((40, 4)) == 1
    for tensor in (x, a, b):
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(low_rank.linear, (x, weight, None, a, b))


def test_it_keeps_the_input_once_and_nothing_of_the_size_of_the_output():
    given = tensors()
    for name in ("x", "a", "b"):
        given[name].requires_grad_(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        low_rank.linear(*given.values())
    sizes = sorted(t.numel() for t in kept if t.data_ptr() not in {given[n].data_ptr() for n in ("weight", "a", "b")})
    assert sizes == [6 * 2, 6 * 13]
    assert any(t.data_ptr() == given["x"].data_ptr() for t in kept)


def test_rows_that_are_not_contiguous_are_read_right():
    given = tensors()
    given["x"] = given["x"].transpose(0, 1)
    assert torch.allclose(low_rank.linear(*given.values()), plainly(*given.values()))


@pytest.mark.parametrize("shape", [(3, 2, 4), (5, 4), (4,)])
def test_what_is_widened_has_the_gradients_of_the_plain_product(shape):
    torch.manual_seed(0)
    h, b = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(7, 4, dtype=torch.float64)
    b.requires_grad_()
    assert torch.equal(low_rank.widened(h, b), F.linear(h, b))
    assert torch.autograd.gradcheck(low_rank.widened, (h, b))
    with torch.autocast("cpu", torch.bfloat16):
        y = low_rank.widened(h.float(), b.float())
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and b.grad.shape == b.shape


@pytest.mark.parametrize("shape", [(4, 3, 6), (8, 6)])
def test_side_by_side_is_each_adapter_on_its_share(shape):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape).double(), torch.randn(5, 6).double(), torch.randn(5).double()
    a, b = torch.randn(4, 2, 6).double(), torch.randn(4, 5, 2).double()
    given = [tensor.requires_grad_() for tensor in (x, weight, bias, a, b)]
    parts = [low_rank.linear(part, weight, bias, a[k], b[k]) for k, part in enumerate(x.chunk(4))]
    assert torch.allclose(low_rank.side_by_side(*given), torch.cat(parts), atol=1e-12)
    assert torch.autograd.gradcheck(low_rank.side_by_side, given)


@pytest.mark.parametrize("scale", [1.0, -0.7, 3.0])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (4, 6, 5)])
def test_the_norm_of_a_row_is_that_of_the_whole_written_out(shape, scale):
    """A linear map, a convolution, and a stack of copies."""
    weight = torch.randn(shape, dtype=torch.float64)
    copies = shape[:1] if len(shape) == 3 else ()
    b = torch.randn(*copies, 6, 2, dtype=torch.float64)
    a = torch.randn(*copies, 2, *shape[len(copies) + 1 :], dtype=torch.float64)
    whole = weight + scale * low_rank.matrix(b, a, weight.shape)
    wanted = whole.norm(dim=-1) if copies else whole.flatten(1).norm(dim=1)
    assert torch.allclose(low_rank.row_norm(weight, b, a, scale), wanted)
    squares = weight.square().sum(-1) if copies else weight.flatten(1).square().sum(1)
    assert torch.allclose(low_rank.row_norm(weight, b, a, scale, squares), wanted)
