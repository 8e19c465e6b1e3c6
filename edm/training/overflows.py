"""Gradient overflows in half precision: a warning when they are frequent, an error when training cannot succeed."""

import sys
from pathlib import Path

from edm.config import TrainingConfig
from edm.errors import UserError

#: A warning is printed when at least this share of the steps between two log rows overflow, and at least ``FEWEST``
#: steps overflowed in total. With a suitable loss scale, one step in a few thousand overflows.
MATTERS, FEWEST = 0.1, 10
#: This many steps in a row end a training run, or all steps of a shorter run (at least ``FEWEST``), if each overflowed
#: and at least half of all gradient entries were not finite. Those entries are replaced, so Adam updates most weights
#: with arbitrary numbers, and a constant loss scale does not correct that. With fewer entries replaced, the other
#: weights learn.
HOPELESS = 500


class Overflows:
    """Counts the training steps whose gradients overflow, once per log row.

    parameters: number of parameters of the network. in_a_row: consecutive hopeless steps so far (stored in the training
    state). active: whether this process prints the warning.
    """

    def __init__(self, out: Path, config: TrainingConfig, parameters: int, in_a_row: int, active: bool):
        self.out, self.config, self.parameters = out, config, parameters
        self.in_a_row, self.active = in_a_row, active
        self._seen = 0

    def look(self, overflows: int, entries: int, steps: int, seen: int) -> None:
        """Checks the last ``steps`` steps: ``overflows`` had non-finite gradient entries, ``entries`` in total.

        seen: number of training images so far. Raises UserError if training cannot succeed (``HOPELESS``).
        """
        hopeless = overflows >= steps and entries >= steps * self.parameters / 2
        self.in_a_row = self.in_a_row + steps if hopeless else 0
        self._seen += overflows
        advice = f"lower loss_scale (it is {self.config.loss_scale:g}) or set precision: bf16 or fp32"
        if self.in_a_row >= min(HOPELESS, max(FEWEST, self.config.steps)):
            raise UserError(
                f"{self.out}: most gradients overflowed in {self.config.precision} in each of the last "
                f"{self.in_a_row:,} steps, up to {seen:,} images: nothing is learned; {advice}"
            )
        if self.active and self._seen >= FEWEST and overflows >= MATTERS * steps:
            self.active = False  # warn once; log.jsonl has every row
            print(
                f"warning: {self.out}: gradients overflowed in {self.config.precision} in {overflows} of the last "
                f"{steps} steps, up to {seen:,} images, and were replaced; if that continues, {advice}",
                file=sys.stderr,
            )
