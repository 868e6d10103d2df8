"""Which proofs are wanted: `--number 34`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--number", type=int, default=None, help="only the tests that prove this number")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds for what it installs or builds")
    config.addinivalue_line("markers", "proves(*numbers): the faults that these tests failed for when they were found")


def numbers_of(item: pytest.Item) -> set[int]:
    return {number for mark in item.iter_markers("proves") for number in mark.args}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--number")
    if wanted is None:
        return
    unwanted = [item for item in items if wanted not in numbers_of(item)]
    items[:] = [item for item in items if wanted in numbers_of(item)]
    config.hook.pytest_deselected(items=unwanted)
