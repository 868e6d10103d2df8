"""Where in a text something stands: line and column of a JSON pointer in YAML or JSON."""

from __future__ import annotations

import yaml


class Marks:
    """Made of the text, once; a text that is no YAML has no marks."""

    def __init__(self, text: str) -> None:
        try:
            self.root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError):
            self.root = None

    def of(self, pointer: str) -> tuple[int, int] | None:
        """Line and column, from 1, of the value at the pointer, or of the nearest thing around it."""
        node = self.root
        found = node
        for part in pointer.split("/")[1:]:
            word = part.replace("~1", "/").replace("~0", "~")
            following = None
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if getattr(key, "value", None) == word:
                        # A fault about a mapping's entry is best shown at its key.
                        found, following = key, value
            elif isinstance(node, yaml.SequenceNode) and word.isdigit() and int(word) < len(node.value):
                found = following = node.value[int(word)]
            if following is None:
                break
            node = following
        return None if found is None else (found.start_mark.line + 1, found.start_mark.column + 1)


def located(pointer: str, marks: Marks) -> str:
    at = marks.of(pointer)
    return pointer or "document" if at is None else f"{pointer or 'document'} (line {at[0]}, column {at[1]})"
