"""Pixels as models read them: to the bit those of the Pillow image processors of transformers."""

import logging

import numpy as np
import pytest
import transformers as tf

from deltatune.core import image_processor
from deltatune.core.errors import SettingsError
from deltatune.core.image_processor import ImageProcessor

PILS = {
    "ViTImageProcessor": {"size": {"height": 24, "width": 24}},
    "BitImageProcessor": {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}},
    "CLIPImageProcessor": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    "BeitImageProcessor": {"size": {"height": 28, "width": 28}, "crop_size": 24, "do_center_crop": True},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 24}},
    "DeiTImageProcessor": {"size": 28, "crop_size": 24},
    "EfficientNetImageProcessor": {"size": 24},
}
SHAPES = [(61, 83), (200, 20), (8, 9), (24, 24), (300, 301)]


def folder(tmp_path, kind, **settings):
    getattr(tf, f"{kind}Pil")(**settings).save_pretrained(tmp_path)
    tf.ViTConfig(image_size=24).save_pretrained(tmp_path)
    return str(tmp_path)


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [None, 24, 32])
@pytest.mark.parametrize("kind", list(PILS))
def test_pixels_are_those_of_transformers_to_the_bit(kind, side, tmp_path):
    own = ImageProcessor.of(folder(tmp_path, kind, **PILS[kind]), side)
    assert (own.height, own.width) == (side or 24, side or 24)
    images = [pixels(shape) for shape in SHAPES]
    reference = [
        own.processor(i, input_data_format="channels_last", return_tensors="np", **own.options) for i in images
    ]
    sized = [own.sized(image) for image in images]
    assert all(image.dtype == np.uint8 for image in sized)
    assert np.array_equal(own.normalised(sized).numpy(), np.stack([r["pixel_values"][0] for r in reference]))


def test_the_share_that_is_cut_off_stays_with_another_size(tmp_path):
    own = ImageProcessor.of(folder(tmp_path, "BitImageProcessor", **PILS["BitImageProcessor"]), 48)
    assert own.options == {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}}


def test_unusual_mean_and_scale_are_in_the_table(tmp_path):
    own = ImageProcessor.of(folder(tmp_path, "ViTImageProcessor", image_mean=[0, 0.25, 0.5], image_std=[1, 0.5, 2]))
    grey = own.normalised([np.full((3, 4, 4), 255, np.uint8)])
    assert grey[0, :, 0, 0].tolist() == pytest.approx([1, 1.5, 0.25])


def test_a_processor_that_cannot_be_used_is_not_called_missing(tmp_path, caplog, monkeypatch):
    def stand_in(*_, **__):
        raise ImportError("asks for torchvision")

    monkeypatch.setattr(image_processor.AutoImageProcessor, "from_pretrained", stand_in)
    ImageProcessor.of(folder(tmp_path, "ViTImageProcessor"))
    assert "an image processor that cannot be used (asks for torchvision): images are read by" in caplog.text


def test_a_model_that_says_nothing_is_read_as_its_family_with_its_own_size(tmp_path, caplog):
    tf.ViTConfig(image_size=16).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "deltatune"):
        own = ImageProcessor.of(str(tmp_path))
    assert (own.height, own.width) == (16, 16)
    assert "no preprocessor_config.json" in caplog.text and "ViTImageProcessorPil" in caplog.text


def test_a_family_without_a_usual_processor_has_the_colours_of_imagenet(tmp_path):
    tf.DINOv3ViTConfig(image_size=32).save_pretrained(tmp_path)
    own = ImageProcessor.of(str(tmp_path))
    assert own.height == 32
    assert own.table_CV[:, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_a_processor_that_keeps_the_aspect_ratio_needs_a_size(tmp_path):
    source = folder(tmp_path, "BitImageProcessor", size={"shortest_edge": 24}, do_center_crop=False)
    with pytest.raises(SettingsError, match="images of many sizes; set task.image_size"):
        ImageProcessor.of(source)
    assert ImageProcessor.of(source, 32).sized(pixels((61, 83))).shape == (3, 32, 32)


def test_a_missing_folder_is_an_error():
    with pytest.raises(SettingsError, match="does not exist"):
        ImageProcessor.of("./no/such/model")
