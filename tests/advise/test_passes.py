"""Passes without values: they count what the same passes with values take, byte by byte."""

import pytest
import torch
import transformers as tf

from deltatune.advise.passes import Pass, counted, evaluation, step
from deltatune.core import registry
from deltatune.engine.attach import attach
from deltatune.engine.attention_by_shape import choose_attention
from deltatune.engine.handle import Handle
from deltatune.engine.valueless import valueless, without_values
from deltatune.ops.kept import kept_bytes
from models import BERT, LLAMA, VOCAB

ASKED = ("bitfit", "lora", "dora", "ia3", "adapter", "compacter", "prefix", "prompt", "loha", "full", "lokr")


class Classes:
    """The loss of a classifier, and what a pass asks of a task."""

    @staticmethod
    def loss(output, batch):
        return torch.nn.functional.cross_entropy(output.logits.float(), batch["labels"])


def classifier(method, dtype=torch.float32):
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(tf.BertConfig(**BERT)).to(dtype).eval()
    choose_attention(model)
    handle = attach(model, registry.method(method).model_copy(update={"modules_to_save": ("classifier",)}))
    handle.train_mode(True)
    ids = torch.arange(60).view(5, 12) % VOCAB
    mask = torch.ones(5, 12, dtype=torch.long)
    mask[0, 9:] = 0
    return handle, {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0, 1])}


@pytest.mark.parametrize("method", ASKED)
def test_a_step_without_values_takes_what_one_with_values_takes(method):
    handle, batch = classifier(method)
    twin = Handle(without_values(handle.model), handle.name)
    assert all(parameter.is_meta for parameter in twin.model.parameters())
    real = counted(handle.model, batch, Classes.loss, learns=True)
    said = step(twin, Classes, batch, "cpu")
    assert said.whole and said.kept_bytes == pytest.approx(real.kept_bytes, rel=0.01)
    assert said.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    assert said.operations == pytest.approx(real.operations, rel=0.01)


def test_a_side_network_is_said_to_take_a_little_more_than_it_takes():
    handle, batch = classifier("ladder")
    real = counted(handle.model, batch, Classes.loss, learns=True)
    said = step(Handle(without_values(handle.model), handle.name), Classes, batch, "cpu")
    assert real.peak_bytes <= said.peak_bytes < 1.25 * real.peak_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_evaluation_without_values_takes_what_one_with_values_takes(dtype):
    handle, batch = classifier("lora", dtype)
    twin = Handle(without_values(handle.model), handle.name)
    real = counted(handle.model, batch, Classes.loss, learns=False)
    said = evaluation(twin, Classes, batch, "cpu")
    assert said.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    assert said.peak_bytes < step(twin, Classes, batch, "cpu").peak_bytes


def test_what_is_kept_is_what_the_graph_keeps():
    handle, batch = classifier("lora")
    output = handle.model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    own = kept_bytes(output, but=[*handle.model.parameters(), *handle.model.buffers(), *batch.values()])
    said = counted(handle.model, batch, Classes.loss, learns=True)
    assert own == pytest.approx(said.kept_bytes, rel=0.02)


def test_a_language_model_and_its_mask_need_no_values():
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)).eval()
    handle = attach(model, registry.method("lora"))
    ids = torch.arange(40).view(2, 20) % VOCAB
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}

    class Words:
        @staticmethod
        def loss(output, batch):  # picks by a mask, and asks for a number
            chosen = batch["labels"] != -100
            return output.logits[chosen].float().sum() / max(1, int(chosen.sum()))

    twin = Handle(without_values(model), handle.name)
    real = counted(model, batch, Words.loss, learns=True)
    said = step(twin, Words, batch, "cpu")
    assert said.whole and real.peak_bytes <= said.peak_bytes < 1.1 * real.peak_bytes


def test_where_a_loss_asks_for_values_the_output_takes_its_place():
    handle, batch = classifier("lora")
    twin = Handle(without_values(handle.model), handle.name)

    class Asking:
        @staticmethod
        def loss(output, batch):
            return output.logits[:, batch["labels"].tolist()].sum()

    said = step(twin, Asking, batch, "cpu")
    assert not said.whole and said.peak_bytes > 0


def test_a_copy_without_values_leaves_the_model_as_it_is():
    handle, batch = classifier("adapter")
    before = {name: tensor.clone() for name, tensor in handle.model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in handle.model.named_parameters()}
    step(Handle(without_values(handle.model), handle.name), Classes, batch, "cpu")
    assert all(torch.equal(before[name], tensor) for name, tensor in handle.model.state_dict().items())
    assert flags == {name: parameter.requires_grad for name, parameter in handle.model.named_parameters()}


def test_meta_tensors_say_they_are_where_they_are_said_to_be():
    with valueless("cuda"):
        x = torch.ones(2, device="cpu")
        assert x.is_meta and x.device.type == "cuda" and x.to(x.device).is_meta
    assert torch.ones(2).device.type == "cpu"


def test_blocks_are_counted_as_often_as_they_come():
    one, two = Pass(100, 60, 10.0, 40, 5, True), Pass(150, 90, 18.0, 60, 9, True)
    assert two.scaled(one, 3) == Pass(300, 180, 42.0, 120, 21, True)


def test_what_is_checked_when_a_model_is_loaded_holds_without_values():
    with valueless():
        x = torch.ones(3)
        assert torch.allclose(x, x + 1, atol=float(x.max())) and int(x.sum()) == 1 and not bool(x.any())
