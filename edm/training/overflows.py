"""Gradients that are too large for half precision: said when they begin to matter, an end to what cannot learn."""

import sys
from pathlib import Path

from edm.config import TrainingConfig
from edm.errors import UserError

#: Overflows are worth a line on stderr from this share of the steps between two rows of the log on, and from ``FEWEST``
#: on. A loss scale that fits causes one in some thousand steps.
MATTERS, FEWEST = 0.1, 10
#: So many steps in a row end a training, or all steps of a shorter one (``FEWEST`` at least), if each overflowed and at
#: least half of all gradient entries were not finite. They are replaced, so that Adam works with made-up numbers for
#: most weights; and a constant loss scale will not mend that. With fewer entries replaced, the other weights do learn.
HOPELESS = 500


class Overflows:
    """Watches the steps of a training whose gradients overflow, a row of the log at a time.

    parameters: how many the network has. in_a_row: hopeless steps up to now (states keep it). active: whether this
    process is to say something.
    """

    def __init__(self, out: Path, config: TrainingConfig, parameters: int, in_a_row: int, active: bool):
        self.out, self.config, self.parameters = out, config, parameters
        self.in_a_row, self.active = in_a_row, active
        self._seen = 0

    def look(self, overflows: int, entries: int, steps: int, images: int) -> None:
        """After ``images``: of the last ``steps`` steps, ``overflows`` had entries that were not finite, in all
        ``entries``.

        Raises UserError where the training cannot learn (``HOPELESS``).
        """
        hopeless = overflows >= steps and entries >= steps * self.parameters / 2
        self.in_a_row = self.in_a_row + steps if hopeless else 0
        self._seen += overflows
        advice = f"lower loss_scale (it is {self.config.loss_scale:g}) or set precision: bf16 or fp32"
        if self.in_a_row >= min(HOPELESS, max(FEWEST, self.config.steps)):
            raise UserError(
                f"{self.out}: most gradients overflowed in {self.config.precision} in each of the last "
                f"{self.in_a_row:,} steps, up to {images:,} images: nothing is learned; {advice}"
            )
        if self.active and self._seen >= FEWEST and overflows >= MATTERS * steps:
            self.active = False  # once is enough: log.jsonl has every row
            print(
                f"warning: {self.out}: gradients overflowed in {self.config.precision} in {overflows} of the last "
                f"{steps} steps, up to {images:,} images, and were replaced; if that goes on, {advice}",
                file=sys.stderr,
            )
