"""Prefix tuning: virtual keys and values in front of every attention's own.

    K' = [P_k ; K], V' = [P_v ; V]        P_k, P_v [P, H K] per attention, trained
    with prefix_projection:  [P_k, P_v] of all attentions = W_2 tanh(W_1 E + b_1) + b_2

Trains   2 P H K values per attention; with the projection E and the perceptron, folded away afterwards
Start    normal values of spread 0.02: no query prefers a virtual key, and their values add nothing. N(0, 1), as in both
         peers, is far from the keys of a pretrained model
Merge    no
Note     grouped-query models have H key-value heads; real tokens keep their positions
Paper    Li and Liang 2021, arXiv:2101.00190
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from deltatune.core.prefix import PrefixMethod, read_prefix_config


class PrefixTuning(PrefixMethod):
    """Settings of prefix tuning; names as in peft's `PrefixTuningConfig`."""

    type: ClassVar[str] = "prefix"
    title: ClassVar[str] = "Prefix tuning"
    paper: ClassVar[str] = "Li and Liang 2021, arXiv:2101.00190"
    learning_rate: ClassVar[float] = 3e-2

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "PrefixTuning | None":
        """Settings of a PREFIX_TUNING folder; None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        settings: PrefixTuning = read_prefix_config(cls, config)
        return settings
