"""The reference is what it says: its examples run, its support table is made of the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.definition.serverless.schema import KINDS
from orchestrator.embedded import Embedded
from orchestrator.testing import ManualClock
from tests.serverless.support import page

ROOT = Path(__file__).parents[2] / "docs" / "reference" / "serverless-workflow"
PAGES = sorted((ROOT / "tasks").glob("*.md"))


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_example_of_a_page_gives_what_it_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_SHELL", "true")
    text = path.read_text()
    [document], [given], [expected] = blocks(text, "yaml"), blocks(text, "json input"), blocks(text, "json output")
    engine = Embedded()
    instance = engine.start(read_document(document), json.loads(given))
    for number, event in enumerate(blocks(text, "json event")):
        engine.settle()
        engine.send({"specversion": "1.0", "id": str(number), "source": "/docs", **json.loads(event)})
    engine.finish(instance)
    assert instance.state == "COMPLETED", instance.error
    assert instance.output == json.loads(expected)


def test_the_shipped_sample_runs() -> None:
    text = (Path(__file__).parents[2] / "workflows" / "wait_sample.yaml").read_text()
    engine = Embedded(clock=ManualClock())
    instance = engine.finish(engine.start(read_document(text), {"name": "Ada"}))
    assert instance.output == {"greeting": "Hello Ada", "marked": True, "waited": True}
    assert instance.ended is not None
    assert round(instance.ended - instance.began) == 2


def test_every_task_has_its_page() -> None:
    assert {path.stem for path in PAGES} == set(KINDS)


def test_the_support_table_is_made_of_the_tests() -> None:
    assert (ROOT / "support.md").read_text() == page()
