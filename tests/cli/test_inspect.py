"""`deltatune inspect` on folders that hold nothing but a config."""

import json

import pytest
from typer.testing import CliRunner

from deltatune.cli.main import build
from deltatune.core.errors import SettingsError
from models import tiny


def inspected(tmp_path, name, *options):
    model = tiny(name)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    result = CliRunner().invoke(build(), ["inspect", str(tmp_path), *options], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return model, result.output


@pytest.mark.parametrize("name", ["bert", "qwen3-moe", "swin", "whisper"])
def test_the_json_counts_the_parameters_of_the_model(tmp_path, name):
    model, output = inspected(tmp_path, name, "--json")
    found = json.loads(output)
    assert found["model"] == type(model).__name__
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_the_json_has_a_pattern_shape_and_heads_per_role(tmp_path):
    found = json.loads(inspected(tmp_path, "llama", "--json")[1])
    (stack,) = found["stacks"]
    assert (stack["path"], stack["blocks"], stack["heads"]) == ("model.layers.{i}", 2, [[4, 2]])
    key = next(row for row in stack["layers"] if row["role"] == "attention.key")
    assert (key["path"], key["shape"], key["blocks"]) == ("model.layers.{i}.self_attn.k_proj", [16, 32], 2)
    assert found["head"]["modules"] == ["lm_head"]
    assert {row["path"] for row in found["norms"]} == {
        "model.layers.{i}.input_layernorm.weight",
        "model.layers.{i}.post_attention_layernorm.weight",
        "model.norm.weight",
    }


def test_the_table_shows_roles_packed_parts_and_heads(tmp_path):
    output = inspected(tmp_path, "gpt2")[1]
    assert "attention.query (packs query, key, value)" in output
    assert "transformer.h.{i}.attn.c_attn" in output
    assert "4 heads" in output
    assert "linear (tied)" in output


def test_an_architecture_that_is_not_named_is_shown_without_its_head(tmp_path):
    tiny("bert").config.save_pretrained(tmp_path)
    result = CliRunner().invoke(build(), ["inspect", str(tmp_path), "--json"])
    assert json.loads(result.output)["model"] == "BertModel"


def test_a_missing_folder_is_an_error_of_settings(tmp_path):
    result = CliRunner().invoke(build(), ["inspect", str(tmp_path / "none")])
    assert isinstance(result.exception, SettingsError)
    assert "none does not exist" in str(result.exception)
