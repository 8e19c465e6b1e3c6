"""Gradients that are too large for half precision: said when they begin to matter, an end to what cannot learn."""

import sys
from pathlib import Path

from edm.config import TrainingConfig
from edm.errors import UserError

#: From this share of the steps between two rows of the log on, overflows are worth a line on stderr. A loss scale that
#: fits causes one in some thousand steps.
MATTERS = 0.1
#: So many steps in a row, each with an overflow, end a training; in a shorter one, all of its steps, from ``FEWEST`` on.
#: By the custom of loss scaling, which skips such steps, none of them would have counted. A dynamic scale would have
#: been halved in each: this one does not change, so nothing will change.
HOPELESS, FEWEST = 500, 10


class Overflows:
    """Counts the steps of a training whose gradients overflowed, a row of the log at a time.

    in_a_row: steps so far, without one that did not overflow in between (states keep it). active: whether this process
    is to say something.
    """

    def __init__(self, out: Path, config: TrainingConfig, in_a_row: int, active: bool):
        self.out, self.config, self.in_a_row, self.active = out, config, in_a_row, active

    def look(self, overflows: int, steps: int, images: int) -> None:
        """After ``images``: of the last ``steps`` steps, ``overflows`` had entries that were not finite.

        Raises UserError where the training cannot learn (``HOPELESS``).
        """
        self.in_a_row = self.in_a_row + steps if overflows >= steps else 0
        scale, precision = self.config.loss_scale, self.config.precision
        advice = f"lower loss_scale (it is {scale:g}) or set precision: bf16 or fp32 (it is {precision})"
        if self.in_a_row >= min(HOPELESS, max(FEWEST, self.config.steps)):
            raise UserError(
                f"{self.out}: the gradients overflowed in each of the last {self.in_a_row:,} steps, up to {images:,} "
                f"images: nothing is learned; {advice}"
            )
        if self.active and overflows >= MATTERS * steps and overflows:
            self.active = False  # once is enough: log.jsonl has every row
            print(
                f"warning: {self.out}: the gradients overflowed in {overflows} of the last {steps} steps, up to "
                f"{images:,} images; what is not finite is replaced. If that goes on, {advice}",
                file=sys.stderr,
            )
