"""Counter-based random permutations: SplitMix64 in 64-bit integers, equal on every machine and in every version.

    mix(z):  z += 0x9E3779B97F4A7C15
             z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;  z = (z ^ z >> 27) * 0x94D049BB133111EB;  z ^ z >> 31

all modulo 2^64 (Steele, Lea, Flood 2014). The key of entry o in partition p is mix(mix(mix(seed) ^ p) ^ o), and the
permutation of a partition lists its entries in the order of their keys, read as signed integers. mix is a bijection,
so no two keys of a partition are equal.

Shape legend: P partitions, M entries of a partition.
"""

import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(z: Tensor) -> Tensor:
    """SplitMix64 of 64-bit integers.

    >>> hex(int(mix(torch.tensor(0))) % 2**64)
    '0xe220a8397b1dcdaf'
    """
    z = z + _signed(GOLDEN)
    z = (z ^ _shifted(z, 30)) * _signed(FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND)
    return z ^ _shifted(z, 31)


def permutations(count: int, size: int, seed: int) -> Tensor:
    """One permutation of 0..M-1 for each of P partitions, [P, M]; the seed counts modulo 2^64."""
    device = torch.device("cpu")
    start = mix(torch.tensor(_signed(seed % 2**64), device=device))
    keys_P = mix(start ^ torch.arange(count, device=device))
    keys_PM = mix(keys_P.unsqueeze(1) ^ torch.arange(size, device=device))
    return keys_PM.argsort(dim=1)


def balanced(entries: int, values: int, seed: int) -> Tensor:
    """For each entry the value it reads, [entries]: every value is read equally often, up to one time."""
    partitions = -(-entries // values)
    return permutations(partitions, values, seed).flatten()[:entries]


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits, with zeros from the left."""
    return (z >> bits) & ((1 << 64 - bits) - 1)


def _signed(value: int) -> int:
    """The signed integer with the same 64 bits."""
    return value - 2**64 if value >= 2**63 else value
