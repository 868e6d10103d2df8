"""The table of changed defaults: each row of the older systems once, and each value as the code has it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.config.settings import Settings, variable
from orchestrator.definition.retry import RetryPolicy

PAGE = Path(__file__).parents[2] / "docs/decisions/0011-where-older-systems-differ.md"
CHANGED = {
    "S4-057", "S4-059", "S4-068", "S4-071", "S4-079", "S4-090", "S4-109", "S4-110", "S4-113", "S4-115", "S4-116", "S4-117", "S4-118", "S4-160",
    "C-03", "C-04", "C-17", "S2-026", "S2-208", "S2-225", "X1-04", "X2-01", "X2-02", "X2-03", "X2-04", "X3-02",
}  # fmt: skip
SETTINGS = {variable(one.name): one for one in fields(Settings)}
POLICY = {one.name: one.default for one in fields(RetryPolicy)}


def rows() -> list[list[str]]:
    _, _, table = PAGE.read_text().partition("## Defaults, row by row")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def values() -> list[tuple[str, str, str]]:
    """(row, name, value) of everything that the table says is the default here."""
    return [(row[0], *found) for row in rows() for found in re.findall(r"`([A-Za-z_]+)=([^`]*)`", row[3])]


def test_each_row_stands_there_once_with_both_defaults_and_a_reason() -> None:
    named = [name for row in rows() for name in row[0].split(", ")]
    assert sorted(named) == sorted(CHANGED)
    assert all(len(row) == 5 and all(row) for row in rows())


@pytest.mark.parametrize(("row", "name", "value"), values())
def test_each_value_is_the_default(row: str, name: str, value: str) -> None:
    if name in POLICY:
        assert type(POLICY[name])(value) == POLICY[name], row
    else:
        setting = SETTINGS[name]
        assert setting.metadata["kind"].parse(value) == setting.default, row


def test_a_setting_is_named_with_its_value() -> None:
    """Without one, nobody would learn that the default has changed."""
    for row in rows():
        bare = set(re.findall(r"`([A-Za-z_]+)`", row[3])) & (set(SETTINGS) | set(POLICY))
        assert not bare, row[0]
    assert len({name for _, name, _ in values()} & set(SETTINGS)) > 20
