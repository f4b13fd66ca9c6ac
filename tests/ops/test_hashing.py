"""SplitMix64 against plain integers, and the balance of what is drawn from it."""

import pytest
import torch

from deltatune.ops import hashing

WORD = 2**64


def plain(z):
    """SplitMix64 in Python's own integers."""
    z = (z + hashing.GOLDEN) % WORD
    z = (z ^ z >> 30) * hashing.FIRST % WORD
    z = (z ^ z >> 27) * hashing.SECOND % WORD
    return z ^ z >> 31


def signed(z):
    return z - WORD if z >= WORD // 2 else z


def test_it_is_splitmix64_of_plain_integers():
    values = [0, 1, 2**31, 2**62 + 12345, 2**63, WORD - 1]
    found = hashing.mix(torch.tensor([signed(value) for value in values]))
    assert found.tolist() == [signed(plain(value)) for value in values]


@pytest.mark.parametrize("seed", [0, 42, -1, 2**64 - 1])
def test_a_permutation_lists_the_entries_by_their_keys(seed):
    found = hashing.permutations(3, 7, seed)
    for partition, row in enumerate(found.tolist()):
        start = plain(plain(seed % WORD) ^ partition)
        assert row == sorted(range(7), key=lambda entry: signed(plain(start ^ entry)))


def test_the_numbers_never_change():
    assert hashing.permutations(2, 8, 42).tolist() == EXPECTED


EXPECTED = [[7, 6, 1, 2, 4, 3, 5, 0], [0, 3, 4, 6, 5, 2, 7, 1]]


@pytest.mark.parametrize(("entries", "values"), [(1000, 64), (64, 64), (65, 64), (10_007, 3)])
def test_every_value_is_read_equally_often_up_to_one(entries, values):
    found = hashing.balanced(entries, values, 7)
    counts = torch.bincount(found, minlength=values)
    assert len(found) == entries and len(counts) == values
    assert counts.max() - counts.min() <= 1


def test_other_seeds_draw_other_maps():
    assert not torch.equal(hashing.balanced(500, 50, 1), hashing.balanced(500, 50, 2))
