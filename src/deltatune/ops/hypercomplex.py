"""Parameterised hypercomplex multiplication (PHM), never written out as a matrix.

    y = x W        W = sum_i A_i (kron) (s_i t_i)        Zhang et al. 2021, arXiv:2102.08597

Shape legend: N terms, and rows and columns of each rule A_i; I in and O out, both multiples of N; R rank.
"""

import torch
from torch import Tensor


def multiply(x_I: Tensor, rule_NNN: Tensor, left_NIR: Tensor, right_NRO: Tensor) -> Tensor:
    """x W, [..., O] for [..., I]; `rule_NNN[i]` is A_i, `left_NIR[i]` is s_i [I/N, R], `right_NRO[i]` t_i [R, O/N].

    >>> a, s, t = torch.randn(2, 2, 2), torch.randn(2, 3, 1), torch.randn(2, 1, 4)
    >>> x = torch.randn(5, 6)
    >>> torch.allclose(multiply(x, a, s, t), x @ matrix(a, s, t), atol=1e-5)
    True
    """
    x = x_I.reshape(*x_I.shape[:-1], rule_NNN.shape[1], -1)  # a row of W is (row of A_i, row of s_i)
    u = torch.einsum("...ak,ikr->...air", x, left_NIR)
    v = torch.einsum("...air,iac->...cir", u, rule_NNN)
    return torch.einsum("...cir,ird->...cd", v, right_NRO).flatten(-2)


def matrix(rule_NNN: Tensor, left_NIR: Tensor, right_NRO: Tensor) -> Tensor:
    """W [I, O], for export and tests."""
    products = left_NIR @ right_NRO
    return torch.stack([torch.kron(a, st) for a, st in zip(rule_NNN, products, strict=True)]).sum(0)
