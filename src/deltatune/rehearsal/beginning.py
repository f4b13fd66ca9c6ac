"""Beginning: the loss before training against that of a model that finds every answer equally likely.

    ln C of C classes, ln V of a vocabulary, 1 for numbers in units of their spread: the task's own loss of equal logits

A new head begins there; a language model that knows the texts begins far below. One that begins above says that labels,
template or tokenizer do not fit.
"""

import math

from deltatune.rehearsal.line import Line, failed, left_out, passed, warned
from deltatune.rehearsal.stage import Stage

LOOKED_AT, BATCH = 64, 4
"""Training examples, and how many at once."""
SURE, ABOVE = 2.5, 5.0
"""Times the loss of chance: where a new head's first loss is unusual, and where something is wrong."""
KNOWN = 0.9
"""A head of the base's own should begin below this share of the loss of chance."""


def beginning_line(stage: Stage) -> Line:
    """Mean loss of the untrained adapter on some training rows."""
    examples, found = stage.running.examples["train"], []
    within = stage.clock.elapsed_s + stage.clock.share(0.05)
    for start in range(0, min(LOOKED_AT, len(examples)), BATCH):
        found.append(stage.loss(examples[start : start + BATCH]))
        if stage.clock.elapsed_s > within:
            break
    loss = sum(loss for loss, _ in found) / len(found)
    chances = [chance for _, chance in found if chance is not None]
    if not math.isfinite(loss):
        fix = "look for numbers that are not finite in the data, or load the base in float32 (training.bf16: false)"
        return failed("first loss", f"the loss before training is {loss}", fix)
    if not chances:
        return left_out("first loss", f"{loss:.3f}; this task's loss has no value of chance to be compared with")
    chance = sum(chances) / len(chances)
    return _compared(loss, chance, new=bool(stage.ground.loaded.new))


def _compared(loss: float, chance: float, *, new: bool) -> Line:
    seen = f"{loss:.3f} before training, {chance:.3f} where every answer is equally likely"
    details = {"loss": loss, "chance": chance}
    if new:
        if loss <= SURE * chance:
            return passed("first loss", seen, **details)
        fix = "look at the scale of the inputs: a new head should begin near chance"
        return (failed if loss > ABOVE * chance else warned)("first loss", seen, fix, **details)
    if loss <= KNOWN * chance:
        return passed("first loss", seen, **details)
    fix = "the base knows nothing of such answers: is it the right model, language, chat template and column?"
    return (failed if loss > chance else warned)("first loss", seen, fix, **details)
