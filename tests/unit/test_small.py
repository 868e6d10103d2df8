"""What is told is small, whatever was given: texts cut, payloads left where they are kept."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.store.connection import dumps
from orchestrator.stream import outlets, small

LIMIT = 4096
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=20) | st.integers(1, 30_000).map(lambda n: "é" * n),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["status", "message", "error", "output", "payload"]), JSON, max_size=5))
def test_what_is_told_fits_and_what_fits_is_told_whole(body: dict[str, Any]) -> None:
    told = small.fitted(body, LIMIT, "/workflow/instance/x", dumps)
    assert not small.is_large(dumps(told), LIMIT)
    if not small.is_large(dumps(body), LIMIT):
        assert told is body
    else:
        assert told["dataref"] == "/workflow/instance/x"
        assert set(told) - {"dataref"} <= set(body)


def test_small_facts_stay_when_a_payload_goes() -> None:
    told = small.fitted({"status": "failed", "message": "m" * 10_000, "output": "o" * 3_000_000}, 64 * 1024, "/there", dumps)
    assert told["status"] == "failed"
    assert told["message"].startswith("m" * 100)
    assert told["message"].endswith("… (cut here; it has 10,000 characters)")
    assert told["output"].endswith("(cut here; it has 3,000,000 characters)")
    told = small.fitted({"status": "completed", "output": ["o" * 3000] * 100}, 64 * 1024, "/there", dumps)
    assert told == {"status": "completed", "dataref": "/there"}


def test_an_event_without_its_data_leads_to_it() -> None:
    said = small.event({"specversion": "1.0", "id": "a b/c", "source": "shop/1", "type": "t", "data": {"big": True}})
    assert said == {
        "specversion": "1.0", "id": "a b/c", "source": "shop/1", "type": "t", "dataref": "/workflow/events?source=shop%2F1&text=a%20b%2Fc",
    }  # fmt: skip


@pytest.mark.parametrize("type", ["io.flunq.task.requested", "io.flunq.workflow.completed"])
def test_the_input_of_a_task_is_there_for_whoever_does_it(type: str) -> None:
    data = {"task_id": "t", "input": {"text": "x" * 100_000}, "context": {"variables": "x" * 100_000}, "output": "y" * 100_000}
    told = outlets.small_flunq({"type": type, "executionid": "i", "data": data}, LIMIT, dumps)["data"]
    assert told["task_id"] == "t"
    assert ("input" in told and told["input"] == data["input"]) == (type == "io.flunq.task.requested")
    assert "context" not in told or len(dumps(told["context"])) < LIMIT
    assert told["dataref"] == "/workflow/instance/i"
