"""Codes: texts that travel in a batch beside what the model reads, as code points."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def codes_of(texts: Sequence[str]) -> Tensor:
    """Code points of every text [B, N], filled up with zeros.

    >>> texts_in(codes_of(["ab", "", "é"]))
    ['ab', '', 'é']
    """
    codes = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32).copy() for text in texts]
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(code) for code in codes], batch_first=True)


def texts_in(codes_BN: Tensor) -> list[str]:
    """The texts again; NUL characters at their ends are lost."""
    rows = codes_BN.cpu().numpy().astype("<u4")
    return [row.tobytes().decode("utf-32-le", "surrogatepass").rstrip("\x00") for row in rows]
