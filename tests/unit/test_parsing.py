"""What comes in: typed, or refused with every fault, its line and a suggestion."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from orchestrator.definition.parsing import Many, Model, Name, Seconds, SomeSeconds, Source, json_faults, parse_as
from orchestrator.errors import Invalid


class Inner(Model):
    required: ClassVar[dict[str, str]] = {"type": "a handler needs a type"}
    type: Name
    tries: int = Field(3, ge=1, le=10)


class Thing(Model):
    name: Name
    every: SomeSeconds | None = None
    wait: Seconds = 0.0
    handler: str | Inner | None = None
    tags: Annotated[tuple[str, ...], Many] = ()
    is_on: bool = False


def faults(data: Any, text: str | None = None) -> list[str]:
    with pytest.raises(Invalid) as caught:
        parse_as(Thing, data, what="thing", source=Source("things.yaml", text) if text else Source())
    return [str(fault) for fault in caught.value.faults]


def test_what_fits_is_read() -> None:
    read = parse_as(Thing, {"name": "a", "every": "1m30s", "handler": {"type": "log"}, "tags": ["x"]}, what="thing")
    assert (read.every, read.handler, read.tags) == (90.0, Inner(type="log"), ("x",))


def test_every_fault_is_told_at_once_with_its_place_and_a_suggestion() -> None:
    assert faults({"name": "", "evry": 3, "is_on": "yes", "tags": "x", "handler": {"type": "log", "tires": 4}, "wait": True}) == [
        "/name: Expected text, got nothing.",
        "/wait: Invalid duration True: write seconds (1.5), '30s', '1m30s', 'PT1M30S' or {'minutes': 5}, up to 1,000 years.",
        '/handler/tires: Unknown field "tires". Did you mean "tries"?',
        '/tags: Expected a list, got "x".',
        '/is_on: Expected true or false, got "yes".',
        '/evry: Unknown field "evry". Did you mean "every"?',
    ]


def test_of_a_field_that_may_be_several_things_all_are_named() -> None:
    assert faults({"name": "a", "handler": 5}) == ["/handler: Expected text or a mapping, got 5."]
    assert faults({"name": "a", "handler": {}}) == ["/handler/type: a handler needs a type"]
    assert faults({"name": "a", "handler": {"type": "x", "tries": 11}}) == ["/handler/tries: Expected a number at most 10, got 11."]


def test_a_fault_of_a_text_names_its_file_and_line() -> None:
    assert faults({"name": "a", "wait": "soon"}, "name: a\n\nwait: soon\n")[0].startswith("things.yaml:3:1: /wait: Invalid duration 'soon'")


@pytest.mark.parametrize("given", [None, [], "x", 5])
def test_what_is_no_mapping_is_refused(given: Any) -> None:
    assert faults(given)[0].startswith("Expected a mapping, got ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": float("nan")}, "/a: nan is not a number of JSON."),
        ({"a": [1e999]}, "/a/0: inf is not a number of JSON."),
        ({"a": 10**400}, "/a: This number is too large: at most 1.8e308 can be counted with."),
        ({"a": "\ud800"}, "/a: This text holds half of a surrogate pair, which is not Unicode text."),
        ({"a\x00": 1}, "The name of a field holds the character U+0000, which PostgreSQL cannot keep."),
        ({1: 1}, "Expected text as the name of a field, got 1. Put it into quotes."),
        ({"a": {1, 2}}, "/a: Expected JSON, got a set."),
    ],
)
def test_what_is_no_json_is_found_wherever_it_is(given: Any, said: str) -> None:
    assert [str(fault) for fault in json_faults(given)] == [said]
