"""PiSSA: its start against the singular values, and its closed form."""

import pytest
import torch
from torch import nn

import deltatune
from contract.cases import disturb
from deltatune.core.errors import SettingsError
from shapes import count


def test_it_trains_loras_values():
    assert count(deltatune.PiSSA(r=8, target_modules=("attention.query", "attention.value")), "bert-base") == 294_912


@pytest.mark.parametrize("niter", [None, 8])
def test_the_factors_start_at_the_principal_part_of_the_weight(niter):
    layer = nn.Linear(20, 12)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(12, 3) @ torch.randn(3, 20) + 0.01 * torch.randn(12, 20))
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.PiSSA(r=3, lora_alpha=6, target_modules="0", niter=niter))
    module = adapter.attached.placed.sites["0"]
    u, s, vt = torch.linalg.svd(layer.weight.detach())
    principal = u[:, :3] * s[:3] @ vt[:3]
    assert torch.allclose(module.scale * module.lora_B @ module.lora_A, principal, atol=1e-4)
    norms = (module.lora_A.norm(dim=1), module.lora_B.norm(dim=0))
    assert torch.allclose(norms[0], norms[1], atol=1e-4)  # the singular values are shared evenly


def test_the_output_is_the_closed_form():
    layer = nn.Linear(6, 5)
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.PiSSA(r=4, target_modules="0"))
    module = adapter.attached.placed.sites["0"]
    before = (module.lora_B @ module.lora_A).detach()
    disturb(adapter)
    x = torch.randn(3, 6)
    change = module.scale * (module.lora_B @ module.lora_A - before)
    assert torch.allclose(model(x), x @ (layer.weight + change).T + layer.bias, atol=1e-5)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(SettingsError, match="PiSSA starts from matrices"):
        deltatune.attach(nn.Sequential(nn.Embedding(5, 4)), deltatune.PiSSA(r=2, target_modules="0"))
