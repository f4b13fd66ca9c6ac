"""P-tuning v2: deep prompts, with a head, on understanding tasks.

    K' = [P_k ; K], V' = [P_v ; V]        in every block; the head is trained too

Trains   2 L P D values and the head: 983,040 for BERT-large and 20 tokens
Start    as prefix tuning
Merge    no
Note     as in the authors' code the prefix is a cache: positions of the real tokens move by P, dropout of 0.1 on it.
         The head is the task's; where there is no task, name it in modules_to_save
Paper    Liu et al. 2021, arXiv:2110.07602
"""

from typing import Annotated, ClassVar

from pydantic import Field

from deltatune.core.method import Can
from deltatune.core.prefix import PrefixMethod


class PTuningV2(PrefixMethod):
    """Settings of P-tuning v2. Its files are prefix tuning's."""

    type: ClassVar[str] = "p-tuning-v2"
    title: ClassVar[str] = "P-tuning v2"
    paper: ClassVar[str] = "Liu et al. 2021, arXiv:2110.07602"
    can: ClassVar[Can] = Can(rows=False, identity=None)
    learning_rate: ClassVar[float] = 3e-2

    prefix_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on keys and values, while training."""
    position_offset: Annotated[int, Field(ge=0)] | None = None
    """By how much the positions of the real tokens move; none means P."""
