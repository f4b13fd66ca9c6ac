"""What an adapter makes the backward pass keep, against the floor: an adapter that reads no input."""

import pytest
import torch

import deltatune
from deltatune.ops.kept import kept_bytes
from models import tiny

FLOOR = {"bert": "bitfit", "llama": "layernorm", "gpt2": "bitfit"}


def kept(family, method):
    torch.manual_seed(0)
    model = tiny(family).eval()
    adapter = deltatune.attach(model, method)
    adapter.train_mode(True)
    ids = torch.randint(3, 30, (8, 24))
    loss = model(input_ids=ids).logits.float().logsumexp(-1).mean()
    bytes_kept = kept_bytes(loss, but=model.state_dict(keep_vars=True).values())
    loss.backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    return bytes_kept


@pytest.mark.parametrize("family", FLOOR)
@pytest.mark.parametrize("method", ["lora", "ia3", "shared-lora"])
def test_layer_adapters_keep_little_more_than_the_base_does(family, method):
    floor = kept(family, FLOOR[family])
    assert kept(family, method) <= (1.25 if method != "ia3" else 1.35) * floor
