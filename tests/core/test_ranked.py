"""Ranks and scales per layer, as they are written for peft."""

import deltatune
from deltatune.engine.anatomy import Anatomy
from models import tiny


def test_patterns_are_written_by_full_path_and_only_where_there_are_any():
    plain = deltatune.LoRA(target_modules=("query", "value"))
    sites = plain.sites(Anatomy.of(tiny("bert")))
    assert plain.peft_config(sites)["rank_pattern"] == plain.peft_config(sites)["alpha_pattern"] == {}
    first = sites[0].path
    given = deltatune.LoRA(target_modules=("query", "value"), alpha_pattern={first: 3.0}, lora_alpha=5)
    written = given.peft_config(sites)
    assert written["rank_pattern"] == {}
    assert written["alpha_pattern"] == {site.path: 3.0 if site.path == first else 5 for site in sites}
