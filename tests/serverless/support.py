"""`docs/reference/serverless-workflow/support.md`, made from the tests: `python -m tests.serverless.support`."""

from __future__ import annotations

import ast
from pathlib import Path

FILES = (
    "test_conformance.py",
    "test_data_flow.py",
    "test_flow.py",
    "test_calls.py",
    "test_durability.py",
    "../acceptance/test_documents.py",
    "test_schedules.py",
    "test_lifecycle.py",
    "test_v08.py",
    "test_examples.py",
    "test_fuzzing.py",
    "test_odd.py",
)


def page() -> str:
    lines = ["# Support", "", "What holds, each line a test of `tests/serverless/` that fails when it does not. Made from the tests.", ""]
    for name in FILES:
        tree = ast.parse((Path(__file__).parent / name).read_text())
        lines += [f"## {(ast.get_docstring(tree) or name).splitlines()[0]}", "", "| what | test |", "|---|---|"]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                said = node.name.removeprefix("test_").replace("_", " ")
                lines.append(f"| {said} | `{Path(name).name}` |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
