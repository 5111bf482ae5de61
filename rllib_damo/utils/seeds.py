"""Where a user gives no seed."""

from __future__ import annotations

import numpy as np


def fresh_seed() -> int:
    """A seed from the machine's entropy."""
    return int(np.random.SeedSequence().generate_state(1)[0])
