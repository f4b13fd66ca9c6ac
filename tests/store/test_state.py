"""The state of a training comes back equal to the bit."""

import errno
import math
import random
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltatune.core.errors import DeltatuneError
from deltatune.store import state

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def round_trip(folder, value):
    state.save(folder, value)
    return state.load(folder)


def same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a.hex() == b.hex()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(NESTED)
def test_any_nesting_of_plain_values_comes_back(tmp_path_factory, value):
    assert same(round_trip(tmp_path_factory.mktemp("state"), value), value)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=6))
def test_windows_of_one_buffer_come_back_however_they_overlap(tmp_path_factory, bounds):
    buffer = torch.randn(20)
    windows = [buffer[min(pair) : max(pair)] for pair in bounds]
    found = round_trip(tmp_path_factory.mktemp("state"), windows)
    assert all(map(torch.equal, found, windows))


def test_what_shares_no_memory_is_written_without_a_copy(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(state, "save_file", lambda tensors, path: written.update(tensors))
    buffer = torch.randn(3, 4)
    state.save(tmp_path, [buffer[0], buffer[1:], buffer[2]])
    places = [tensor.data_ptr() for tensor in written.values()]
    assert places[:2] == [buffer.data_ptr(), buffer[1].data_ptr()] and places[2] != buffer[2].data_ptr()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_come_back_to_the_bit(tmp_path, dtype):
    tensor = (torch.randn(4, 5) * 3).to(dtype)
    found = round_trip(
        tmp_path, {"view": tensor.t(), "same": [tensor, tensor], "scalar": tensor[0, 0], "none": tensor[:0]}
    )
    assert torch.equal(found["view"], tensor.t()) and found["view"].dtype == dtype
    assert torch.equal(found["same"][1], tensor)
    assert found["scalar"].shape == () and found["none"].shape == (0, 5)


def test_infinities_in_tensors_and_numbers_come_back(tmp_path):
    found = round_trip(tmp_path, [torch.tensor([math.inf, -math.inf, math.nan]), -math.inf, math.nan, -0.0, 5e-324])
    assert found[0].isinf().tolist() == [True, True, False] and found[0].isnan()[2]
    assert found[1] == -math.inf and math.isnan(found[2]) and str(found[3]) == "-0.0" and found[4] == 5e-324


def test_an_optimizer_comes_back_to_the_bit(tmp_path):
    parameters = [torch.nn.Parameter(torch.randn(3, 3)), torch.nn.Parameter(torch.randn(3))]
    optimizer = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}], lr=0.1)
    for _ in range(3):
        sum(parameter.pow(2).sum() for parameter in parameters).backward()
        optimizer.step()
    found = round_trip(tmp_path, optimizer.state_dict())
    expected = optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for index, tensors in expected["state"].items():
        for name, tensor in tensors.items():
            assert torch.equal(found["state"][index][name], tensor)


def drawn():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random(), random.gauss(0, 1)


def test_every_random_generator_goes_on_where_it_was(tmp_path):
    drawn()  # numpy and Python now hold the second half of a pair of normal numbers
    state.save(tmp_path, state.random_state())
    expected = drawn()
    drawn()
    state.restore_random_state(state.load(tmp_path))
    assert drawn() == expected


Point = namedtuple("Point", "x")


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), np.float32(1.0), 1j])
def test_what_json_cannot_carry_is_refused(tmp_path, value):
    with pytest.raises(DeltatuneError, match="cannot hold a"):
        state.save(tmp_path, {"inner": [value]})


def test_a_full_disk_is_found_before_it_is_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(4000))
    with pytest.raises(OSError, match="4,400 bytes needed, 4,000 free") as caught:
        state.save(tmp_path, torch.zeros(1000))
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_an_error_of_the_disk_is_an_os_error(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "TENSORS", "missing/state.safetensors")
    with pytest.raises(OSError, match="No such file"):
        state.save(tmp_path, torch.zeros(3))
