"""Memory: the most bytes a training holds at once, added up from what is known before it begins.

    peak = process + weights + rows + max(loading, libraries + adapter + trunk + moments + slack * busy)
    busy = max(step, evaluation)

On a GPU only what torch allocates there counts: process, rows and libraries are the host's.
"""

from dataclasses import dataclass

from deltatune.advise.evidence import Constants


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of the parts of a training."""

    process: int
    """Python, torch and the libraries, before a model is there."""
    weights: int
    """The base in its dtype, with buffers."""
    stored: int
    """The checkpoint as it is read from disk."""
    adapter: int
    """The trained tensors."""
    rows: int
    """Encoded rows."""
    trunk: int
    """What is kept of frozen blocks below."""
    step: int
    """Most at once in forward and backward, gradients included."""
    evaluation: int
    """Most at once in a pass over validation rows."""


@dataclass(frozen=True, slots=True)
class Range:
    """A forecast: what is expected, and between what it will most likely be."""

    low: float
    expected: float
    high: float

    def as_json(self) -> dict[str, int | float]:
        """Plain values; whole numbers from a thousand on, else four digits."""
        return {
            name: round(value) if value >= 1000 else float(f"{value:.4g}")
            for name, value in (("low", self.low), ("expected", self.expected), ("high", self.high))
        }


def peak(sizes: Sizes, device: str, constants: Constants) -> Range:
    """The peak of a training on a device, bytes.

    >>> from deltatune.advise.evidence import constants
    >>> sizes = Sizes(
    ...     process=0, weights=100, stored=100, adapter=10, rows=5, trunk=0, step=50, evaluation=80
    ... )
    >>> peak(sizes, "cuda", constants()).expected  # weights, adapter, two moments, evaluation
    210.0
    """
    moments = 2 * sizes.adapter
    busy = max(sizes.step, sizes.evaluation)
    if device != "cpu":
        expected = float(sizes.weights + sizes.adapter + sizes.trunk + moments + busy)
        return Range(expected * (1 - constants.spread), expected, expected * (1 + constants.spread))
    working = constants.libraries + sizes.adapter + sizes.trunk + moments + constants.slack * busy
    fixed = sizes.process + sizes.weights + sizes.rows
    expected = fixed + max(constants.loading * sizes.stored, working)
    return Range(expected * (1 - constants.spread), expected, expected * (1 + constants.spread))
