"""The trunk: where it ends, and that leaving it out changes nothing."""

import pytest
import torch

import deltatune
from deltatune.core.errors import SettingsError
from deltatune.core.task import TRUNK
from deltatune.engine.conditions import told
from deltatune.engine.trunk import Trunk, Unkept, trunk_of
from models import inputs, tiny


def attached(family, method, **settings):
    torch.manual_seed(0)
    model = tiny(family).eval()
    return deltatune.attach(model, deltatune.method(method, **settings))


TOP = {"layers_to_transform": "top-1"}


@pytest.mark.parametrize(
    ("family", "method", "settings", "blocks"),
    [
        ("bert", "lora", TOP, 1),
        ("llama", "lora", TOP, 1),
        ("vit", "ia3", {"layers_to_transform": (1,)}, 1),
        ("bert", "linear-probe", {}, 2),
        ("bert", "adapter", {"leave_out": (0,)}, 1),
        ("bert", "lora", {}, 0),
        ("bert", "bitfit", {}, 0),
        ("bert", "prompt", {"num_virtual_tokens": 2}, 0),
        ("bert", "prefix", {"num_virtual_tokens": 2}, 0),
        ("bert", "ladder", {}, 0),
        ("gpt2", "lora", {"target_modules": ("c_attn",), "modules_to_save": ("wte",), **TOP}, 0),
    ],
)
def test_it_ends_below_the_lowest_trained_block(family, method, settings, blocks):
    assert len(trunk_of(attached(family, method, **settings))) == blocks


def test_a_head_that_is_tied_to_the_embeddings_leaves_no_trunk():
    torch.manual_seed(0)
    model = tiny("gpt2").eval()
    head = deltatune.method("lora", target_modules=("c_attn",), modules_to_save=("lm_head",), **TOP)
    assert trunk_of(deltatune.attach(model, head)) == ()


CACHED = [
    ("bert", "lora", TOP),
    ("llama", "lora", TOP),
    ("gpt2", "lora", {"target_modules": ("c_attn",), **TOP}),
    ("vit", "lora", TOP),
    ("bert", "linear-probe", {}),
    ("modernbert", "lora", TOP),
]


@pytest.mark.parametrize(("family", "method", "settings"), CACHED)
def test_outputs_and_gradients_are_those_of_the_whole_pass(family, method, settings):
    handle = attached(family, method, **settings)
    for parameter in handle.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = inputs(handle.model)
    mask = batch.get("attention_mask")
    trunk = Trunk(handle, trunk_of(handle))
    numbers = trunk.keep(batch)
    handle.roster.trunk = trunk
    found = []
    for given in (batch, {**batch, TRUNK: torch.tensor(numbers)}):
        handle.model.zero_grad()
        with told(handle.model, given):
            logits = handle.model(**{k: v for k, v in given.items() if k != TRUNK}).logits
        real = logits[mask.bool()] if mask is not None and logits.shape[:2] == mask.shape else logits
        real.square().sum().backward()
        found.append([real.detach(), *(p.grad.clone() for p in handle.parameters() if p.grad is not None)])
    assert len(found[0]) > 1
    for whole, short in zip(*found, strict=True):
        assert torch.equal(whole, short)


def test_rows_come_in_any_order_and_padding():
    handle = attached("bert", "lora", **TOP)
    trunk = Trunk(handle, trunk_of(handle))
    ids = torch.randint(3, 90, (4, 9))
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 2])[:, None]).long()
    numbers = trunk.keep({"input_ids": ids, "attention_mask": mask})
    handle.roster.trunk = trunk
    chosen, wide = [3, 1], 6
    batch = {"input_ids": ids[chosen, :wide], "attention_mask": mask[chosen, :wide]}
    with torch.no_grad():
        whole = handle.model(**batch).logits
        with told(handle.model, {**batch, TRUNK: torch.tensor([numbers[i] for i in chosen])}):
            short = handle.model(**batch).logits
    assert torch.allclose(whole, short, atol=1e-6)


def test_the_blocks_of_the_trunk_do_not_run():
    handle = attached("bert", "lora", **TOP)
    trunk = Trunk(handle, trunk_of(handle))
    batch = inputs(handle.model)
    numbers = trunk.keep(batch)
    handle.roster.trunk = trunk
    block = handle.model.get_submodule(trunk.blocks[0])
    ran = []
    block.attention.register_forward_hook(lambda *_: ran.append(1))
    with told(handle.model, {**batch, TRUNK: torch.tensor(numbers)}):
        handle.model(**batch)
    assert not ran
    handle.model(**batch)
    assert ran


def test_another_adapter_below_brings_the_whole_pass_back():
    handle = attached("bert", "lora", **TOP)
    trunk = Trunk(handle, trunk_of(handle))
    batch = inputs(handle.model)
    numbers = trunk.keep(batch)
    handle.roster.trunk = trunk
    other = deltatune.attach(handle.model, deltatune.LoRA(r=2), name="other")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        whole = handle.model(**batch).logits
        with told(handle.model, {**batch, TRUNK: torch.tensor(numbers)}):
            assert torch.equal(handle.model(**batch).logits, whole)


def test_blocks_that_run_more_than_once_have_no_trunk():
    handle = attached("albert", "linear-probe")
    with pytest.raises(Unkept, match="more than once"):
        Trunk(handle, trunk_of(handle)).keep(inputs(handle.model))


def test_detaching_leaves_nothing_behind():
    handle = attached("bert", "lora", **TOP)
    classes = {path: type(module).__name__ for path, module in tiny("bert").named_modules()}
    Trunk(handle, trunk_of(handle))
    handle.detach()
    assert {path: type(module).__name__ for path, module in handle.model.named_modules()} == classes


@pytest.mark.parametrize("words", ["top-3", "top-9"])
def test_more_top_blocks_than_there_are_is_an_error(words):
    with pytest.raises(SettingsError, match=f"{words}: only 2 blocks hold"):
        attached("bert", "lora", layers_to_transform=words)
