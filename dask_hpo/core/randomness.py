"""The one source of randomness: a generator from (seed, trial number, purpose)."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, trial_id: int, purpose: str, draw: int = 0) -> np.random.Generator:
    """Return the generator of this purpose for this trial, the same wherever it is asked for.

    ``draw`` numbers repeated tries for one trial (a duplicate is drawn again).
    """
    return np.random.default_rng([seed, trial_id, zlib.crc32(purpose.encode()), draw])
