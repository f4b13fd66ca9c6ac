"""Similarity of two sets of representations of the same rows, whatever their rotation and scale."""

import torch
from torch import Tensor


def cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Linear centred kernel alignment, HSIC without bias; 1: the same but for rotation and scale, 0: unrelated.

        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = X X^T, L = Y Y^T
        HSIC(K, L) = [tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2/(n-2) 1'K~L~1] / (n (n-3)),   K~: K without diagonal

    The plain estimate calls any two representations alike when there are fewer rows than features. N is at least 4;
    NaN where a representation is the same for all rows. Kornblith et al. 2019; unbiased: Nguyen et al. 2021, eq. 3.
    """
    if len(x_ND) < 4:
        raise ValueError(f"CKA needs at least 4 rows (got {len(x_ND)})")
    k_NN, l_NN = _gram(x_ND), _gram(y_NE)
    return float(_hsic(k_NN, l_NN) / (_hsic(k_NN, k_NN) * _hsic(l_NN, l_NN)).sqrt())


def _gram(x_ND: Tensor) -> Tensor:
    x_ND = x_ND.double()
    x_ND = x_ND - x_ND.mean(0)  # changes nothing but the rounding
    return (x_ND @ x_ND.T).fill_diagonal_(0)


def _hsic(k_NN: Tensor, l_NN: Tensor) -> Tensor:
    n = len(k_NN)
    trace = (k_NN * l_NN).sum()
    sums = k_NN.sum() * l_NN.sum() / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * torch.dot(k_NN.sum(1), l_NN.sum(1))
    return (trace + sums - rows) / (n * (n - 3))
