"""Pages of the documentation as data: their fenced blocks, in order, and what a comment before a block says about it.

A comment is invisible where the page is read:

    <!-- not run: REASON -->      this block is only read; the reason is one of REASONS
    <!-- setup: COMMANDS -->      what the reader has by then, such as an id that was printed; may have several lines
    <!-- exit code: 1 -->         how the block ends, where that is not 0

A block whose first line is `# a/path.yaml` is a file of the reader's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

RUN = ("bash", "python")
READ = ("yaml", "json", "dotenv", "dockerfile")
COMPARED = ("text output",)
SHOWN = ("text", "mermaid")
OF_TASKS = ("json input", "json output", "json event")
"""Of the pages of tasks, whose documents `tests/serverless/test_docs.py` runs."""

REASONS = {
    "starts or stops the stack": "the tests' own stack was started so, and is shared by all pages",
    "container engine": "Docker is not there",
    "internet": "packages are downloaded",
    "servers of yours": "a PostgreSQL, a Redis or a host of the reader's",
}

FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!-- (?P<name>not run|setup|exit code):(?P<text>(?:(?!-->).)*)-->\s*\Z", re.DOTALL)
FILE = re.compile(r"\A# (?P<path>[\w./-]+\.(?:py|ya?ml|json))\n")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    text: str
    not_run: str | None = None
    setup: str = ""
    exit_code: int = 0

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def path(self) -> str | None:
        """The file that the reader writes it into."""
        found = FILE.match(self.text) if self.kind in (*RUN, *READ) else None
        return found["path"] if found else None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [_block(page, text, fence) for fence in FENCE.finditer(text)]


def _block(page: Path, text: str, fence: re.Match[str]) -> Block:
    said, before = {}, text[: fence.start()]
    while comment := COMMENT.search(before):
        said[comment["name"]] = comment["text"].strip()
        before = before[: comment.start()]
    return Block(
        page=page,
        line=text.count("\n", 0, fence.start()) + 1,
        kind=fence["kind"].strip(),
        text=fence["text"],
        not_run=said.get("not run"),
        setup=said.get("setup", ""),
        exit_code=int(said.get("exit code", "0")),
    )


BLOCKS = {page: blocks_of(page) for page in PAGES}
