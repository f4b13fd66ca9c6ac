"""Full fine-tuning: everything trains, tied tensors once, and the base stays."""

import torch

import deltatune
from contract.cases import disturb, forward, model_of, outputs
from models import inputs


def test_every_value_trains_and_tied_ones_once():
    model = model_of("gpt2")
    count = sum(p.numel() for p in model.parameters())
    assert deltatune.attach(model, deltatune.Full()).trainable_parameters == count


def test_a_tied_tensor_is_replaced_in_all_its_places():
    model = model_of("gpt2")
    adapter = deltatune.attach(model, deltatune.Full())
    disturb(adapter)
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    assert not torch.equal(model.lm_head.weight, model.lm_head._parameters["weight"])


def test_its_gradients_are_those_of_plain_training():
    plain = model_of("bert")
    forward(plain, inputs(plain)).square().sum().backward()
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.Full())
    forward(model, inputs(model)).square().sum().backward()
    named = adapter.named_parameters()
    for path, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(named[f"{path}.value"].grad, parameter.grad, atol=1e-6)


def test_the_base_is_not_touched_by_training():
    model = model_of("bert")
    base = outputs(model)
    adapter = deltatune.attach(model, deltatune.Full())
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    forward(model, inputs(model)).square().sum().backward()
    optimizer.step()
    with adapter.disabled():
        assert torch.equal(outputs(model), base)
