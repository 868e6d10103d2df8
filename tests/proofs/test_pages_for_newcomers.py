"""What pages promise to somebody who has just typed `make up`. (That all of their snippets run is `tests/docs`.)"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """What stands in blocks of no other language, word by word; lines that go on are one."""
    found = []
    for kind, text in BLOCK.findall(page.read_text()):
        if kind in ("", "bash", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                try:
                    found.append(shlex.split(line, comments=True))
                except ValueError:
                    continue  # a drawing
    return [words for words in found if words]


def source_of(words: list[str]) -> str | None:
    """Where the event says that it comes from; nothing for what sends none."""
    if words[:3] == ["orchestrator", "events", "send"]:
        return words[words.index("--source") + 1] if "--source" in words else "cli"
    if words[0] == "curl" and words[-2] == "-d":
        return str(json.loads(words[-1]).get("source"))
    if "XADD" in words:
        return words[words.index("source") + 1] if "source" in words else "redis"
    if "PUBLISH" in words:
        return str(json.loads(words[-1]).get("source"))
    return None


@pytest.mark.proves(52)
def test_the_events_of_a_page_fire_the_trigger_of_that_page() -> None:
    page = ROOT / "docs" / "how-to" / "react-to-events.md"
    [trigger] = [
        trigger for kind, text in BLOCK.findall(page.read_text()) if kind == "yaml" for trigger in _triggers(text) if "source" in trigger
    ]

    sources = [source for words in commands(page) if (source := source_of(words)) is not None]

    assert len(sources) == 5
    assert set(sources) == {trigger["source"]}


def _triggers(text: str) -> list[dict[str, Any]]:
    return list((yaml.safe_load(text) or {}).get("triggers", ()))


@pytest.mark.proves(52)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_calls_nothing_that_is_not_there_after_make_up(page: Path) -> None:
    """Servers' own tools never are; ours are once the environment is activated."""
    told = page.read_text()
    # These are read where the package was installed into an environment of the reader's.
    activated = "activate" in told or page.stem in ("install", "use-your-own-postgres")
    for words in commands(page):
        assert words[0] not in ("redis-cli", "valkey-cli"), words
        assert words[0] not in ("orchestrator", "celery", "pytest") or activated, words
