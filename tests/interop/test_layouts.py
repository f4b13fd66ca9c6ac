"""The two layouts in which an adapter is saved."""

import pytest
import torch

import deltatune
from contract.cases import disturb, model_of, outputs


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_an_adapter_is_saved_in_either_layout(tmp_path, family):
    model = model_of(family)
    adapter = deltatune.attach(model, deltatune.BottleneckAdapter(bottleneck_size=4), name="books")
    disturb(adapter)
    adapter.save(tmp_path / "hub", layout="adapterhub")
    assert (tmp_path / "hub" / "adapter.safetensors").is_file()
    fresh = model_of(family)
    deltatune.load(fresh, tmp_path / "hub")
    assert torch.allclose(outputs(fresh), outputs(model), atol=1e-6)
