"""Every snippet of every page does what the page says, for somebody who follows it on a fresh clone."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orchestrator.cli import cli
from tests.docs import documents
from tests.docs.newcomer import Newcomer
from tests.docs.pages import BLOCKS, COMPARED, OF_TASKS, PAGES, READ, REASONS, ROOT, RUN, SHOWN, Block

FOLLOWED = [page for page in PAGES if any(block.kind in RUN and block.not_run is None for block in BLOCKS[page])]
FIRST = ("README.md", "docs/tutorial/first-workflow.md", "docs/how-to/react-to-events.md")
"""Pages that everybody reads are followed before every change is taken; the others by `make test-long`."""
TASKS = ROOT / "docs" / "reference" / "serverless-workflow" / "tasks"


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def all_blocks(*kinds: str) -> list[Block]:
    return [block for blocks in BLOCKS.values() for block in blocks if block.kind in kinds]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    made = Newcomer(tmp_path_factory.mktemp("newcomer"))
    try:
        made.up()
        yield made
    finally:
        code = made.down()
    assert code == 0, made.said()
    assert "| stopped" in made.said()
    assert not (made.folder / ".orchestrator" / "stack.json").exists()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=named(page), marks=() if named(page) in FIRST else pytest.mark.slow) for page in FOLLOWED]
)
def test_a_page_does_what_it_says(page: Path, newcomer: Newcomer) -> None:
    newcomer.follow(page)


def test_every_block_is_run_or_read_or_says_why_not() -> None:
    for page, blocks in BLOCKS.items():
        assert page.read_text().count("```") == 2 * len(blocks), f"{named(page)} has a fence that is not read"
        for block in blocks:
            kinds = (*RUN, *READ, *COMPARED, *SHOWN, *(OF_TASKS if page.parent == TASKS else ()))
            assert block.kind in kinds, f"{block.place}: say what this is: {', '.join(kinds)}"
            if block.not_run is not None:
                assert block.not_run in REASONS, f"{block.place}: {block.not_run!r} is none of {', '.join(REASONS)}"
                assert block.kind in ("bash", "dockerfile"), f"{block.place}: {block.kind} can be read anywhere"


def test_what_a_page_prints_follows_what_prints_it() -> None:
    for block in all_blocks(*COMPARED):
        before = [other for other in BLOCKS[block.page] if other.line < block.line]
        assert before, f"{block.place}: output of nothing"
        assert before[-1].kind in RUN, f"{block.place}: output of {before[-1].kind}"
        assert before[-1].not_run is None, f"{block.place}: output of a block that is not run"


@pytest.mark.parametrize("block", [block for block in all_blocks("bash") if block.not_run is not None], ids=lambda block: block.place)
def test_commands_that_are_not_run_are_commands(block: Block) -> None:
    done = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    for line in block.text.splitlines():
        if said := re.match(r"(?:[A-Z_]+=\S+ )*orchestrator ((?:[\w-]+ ?)+)", line):
            command_of(said[1].split())


@pytest.mark.parametrize("block", [block for block in all_blocks(*READ) if block.page.parent != TASKS], ids=lambda block: block.place)
def test_a_document_is_accepted_by_the_door_that_it_is_for(block: Block) -> None:
    documents.read(block)


def test_every_command_that_a_sentence_names_is_there() -> None:
    for page in PAGES:
        for said in re.finditer(r"`orchestrator ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)*)[^`]*`", page.read_text()):
            command_of(said[1].split())


def command_of(words: list[str]) -> click.Command:
    """The command that these words begin with. Raises `KeyError` where there is none."""
    found: click.Command = cli
    for word in words:
        if not isinstance(found, click.Group):
            break  # its arguments
        found = found.commands[word]
    return found
