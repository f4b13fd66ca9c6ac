"""Linear probe: the head and nothing else."""

import pytest

import deltatune
from contract.cases import forward, model_of
from models import inputs


@pytest.mark.parametrize(
    ("family", "count"), [("bert", 3 * 32 + 3), ("distilbert", 32 * 32 + 32 + 3 * 32 + 3), ("vit", 3 * 32 + 3)]
)
def test_only_the_head_trains(family, count):
    assert deltatune.attach(model_of(family), deltatune.LinearProbe()).trainable_parameters == count


def test_no_gradient_flows_into_the_blocks():
    model = model_of("bert")
    deltatune.attach(model, deltatune.LinearProbe())
    seen = []
    model.bert.register_forward_hook(lambda m, a, o: seen.append(o.pooler_output.requires_grad))
    forward(model, inputs(model)).sum().backward()
    assert seen == [False]


def test_a_model_without_a_head_is_refused():
    with pytest.raises(deltatune.DeltatuneError, match="this model has none"):
        deltatune.attach(model_of("clip"), deltatune.LinearProbe())
