"""How patient tests are: deadlines grow with how slow the machine is, and with how many share it.

`tests/run.py` measures the machine and sets TEST_PACE. A deadline says when a test gives up; what a test claims never hangs on it.
"""

from __future__ import annotations

import os

PACE = max(1.0, float(os.environ.get("TEST_PACE", "1")))


def patient(seconds: float) -> float:
    return seconds * PACE
