"""What only a GPU can show: `make gpu`."""

import pytest
import torch

import deltatune
from contract.cases import distance, disturb, forward, model_of, outputs
from deltatune.core import registry
from deltatune.engine.precision import base_dtype
from models import inputs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def on_gpu(batch):
    return {name: tensor.cuda() for name, tensor in batch.items()}


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_a_method_gives_the_outputs_of_the_cpu(name):
    model = model_of("bert")
    adapter = deltatune.attach(model, registry.method(name))
    disturb(adapter)
    expected = outputs(model)
    model.cuda()
    assert distance(outputs(model, on_gpu(inputs(model))).cpu(), expected) < 1e-4


@pytest.mark.parametrize("name", ["lora", "dora", "full"])
def test_a_bfloat16_base_trains_with_float32_masters(name):
    model = model_of("llama").to("cuda", torch.bfloat16)
    adapter = deltatune.attach(model, registry.method(name))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2, fused=True)
    losses = []
    for _ in range(20):
        loss = forward(model, on_gpu(inputs(model))).float().square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}


def test_a_new_adapter_is_made_on_the_device_of_its_layer():
    model = model_of("gpt2").cuda()
    adapter = deltatune.attach(model, deltatune.LoRA(r=2))
    assert {p.device.type for p in adapter.parameters()} == {"cuda"}
    adapter.merge()
    adapter.unmerge()


def test_automatic_precision_is_bfloat16():
    assert base_dtype("auto") == torch.bfloat16
