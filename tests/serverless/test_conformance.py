"""Every scenario of the conformance kit, with real workers and again in one process."""

from __future__ import annotations

import pytest

from tests.serverless.kit import FOLDER, Durable, InProcess, Scenario, scenarios
from tests.serverless.standins import StandIn
from tests.stack import Stack

FOUND = list(scenarios()) if FOLDER.is_dir() else []
pytestmark = pytest.mark.skipif(not FOUND, reason=f"no conformance kit in {FOLDER}; set CTK")
EACH = pytest.mark.parametrize("scenario", [s for _, s in FOUND], ids=[f"{feature}: {s.name}" for feature, s in FOUND])


@EACH
def test_with_real_workers(scenario: Scenario, running: Stack, standin: StandIn) -> None:
    scenario.check(Durable(running), standin)


@EACH
def test_in_one_process(scenario: Scenario, standin: StandIn) -> None:
    scenario.check(InProcess(), standin)
