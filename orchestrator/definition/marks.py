"""Where in a text something stands: line and column of a JSON pointer in YAML or JSON."""

from __future__ import annotations

from orchestrator.definition import yaml12


class Marks:
    """Made of the text, once; a text that is no YAML has no marks."""

    def __init__(self, text: str) -> None:
        try:
            self.root = yaml12.load(text, is_marked=True)[1]
        except yaml12.Refusal:
            self.root = None

    def of(self, pointer: str) -> tuple[int, int] | None:
        """Line and column, from 1, of the value at the pointer, or of the nearest thing around it."""
        found = self.root
        if found is None:
            return None
        for part in pointer.split("/")[1:]:
            word = part.replace("~1", "/").replace("~0", "~")
            inner = found.inner or {}
            following = inner.get(word)
            if following is None and word.isdigit():
                following = inner.get(int(word))
            if following is None:
                break
            found = following
        return found.line, found.column
