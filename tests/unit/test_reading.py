"""Texts become data within bounds: what is hostile in them is refused where it shows, and at once."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.definition import yaml12
from orchestrator.definition.marks import Marks
from orchestrator.definition.reading import RESOURCE, read
from orchestrator.errors import Invalid


def refusal(text: str, name: str = "x.yaml") -> str:
    with pytest.raises(Invalid) as caught:
        read(text, name)
    return str(caught.value.faults[0])


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2027-01-01", "2027-01-01"),
        ("1_000", "1_000"),
        ("0o17", 15),
        ("0x1F", 31),
        ("007", 7),
        ("-0", 0),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("TRUE", True),
        ("tRue", "tRue"),
        ("~", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("<<", "<<"),
        ("=", "="),
        ("'*a'", "*a"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written: str, value: Any) -> None:
    [found] = read(f"- {written}")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 50_000, "x.yaml:1:201: This is nested more than 200 levels deep."),
        ("- " * 50_000, "x.yaml:1:401: This is nested more than 200 levels deep."),
        ('{"a":' * 50_000, "x.yaml:1:1001: This is nested more than 200 levels deep."),
        ("x" * 1_100_000, "x.yaml: This text has more than 1,048,576 bytes."),
        ("a: 1\na: 2", 'x.yaml:2:1: The key "a" is given twice.'),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', 'x.yaml:1:24: The key "c" is given twice.'),
        ("a: &a [*a]", 'x.yaml:1:8: The alias "*a" stands inside of what it names.'),
        ("a: *b", 'x.yaml:1:4: There is no anchor "&b" before this alias.'),
        ("a: b: c", "x.yaml:1:5: Invalid YAML: mapping values are not allowed in this context."),
        ("---\na: 1\n---\nb: 2", "x.yaml:3:1: Expected one document, got several. Remove what follows `---`."),
        ("a: !!python/name:os.system x", 'x.yaml:1:4: Unknown tag "!!python/name:os.system".'),
        ("a: !!binary aGk=", 'x.yaml:1:4: Unknown tag "!!binary".'),
        ("[a]: 1", "x.yaml:1:1: Expected text as the name of a field, got a list."),
        ("1: a", "x.yaml:1:1: Expected text as the name of a field, got 1. Put it into quotes."),
        ("a: " + "1" * 5000, "x.yaml:1:4: This number has more than 400 digits. Put it into quotes."),
        ("a: .nan", "x.yaml:1:1: /a: nan is not a number of JSON."),
        ("a: [1e999]", "x.yaml:1:5: /a/0: inf is not a number of JSON."),
        ('a: "\\0"', "x.yaml:1:1: /a: This text holds the character U+0000, which PostgreSQL cannot keep."),
        ("a: \x07", "x.yaml: Invalid YAML: unacceptable character #x0007: control characters are not allowed."),
        ("\ud800", "x.yaml: This is not Unicode text: it holds half of a surrogate pair."),
    ],
    ids=lambda text: text[:20],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, said: str) -> None:
    assert refusal(text).startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)),
        "a: &x '" + "y" * 50_000 + "'\nb: [" + "*x," * 1000 + "]",
        "a: &x {b: 1}\nc: [" + "*x," * 60_000 + "]",
    ],
    ids=["doubling", "long text", "many"],
)
def test_aliases_are_counted_before_they_are_expanded(text: str) -> None:
    assert "The aliases of this text stand for more than" in refusal(text)


def test_aliases_that_stand_for_little_are_what_they_stand_for() -> None:
    assert read("a: &a {x: [1]}\nb: *a\nc: [*a, *a]") == {"a": {"x": [1]}, "b": {"x": [1]}, "c": [{"x": [1]}, {"x": [1]}]}


def test_reading_counts_every_value_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(yaml12._Reader, "_count", lambda self, event, made=yaml12._Reader._count: (counted.append(1), made(self, event)))
    for size in (500, 1000):
        counted.clear()
        read("".join(f"- {{id: s{n}, after: [s{n - 1}]}}\n" for n in range(size)))
        assert len(counted) == 6 * size + 1


@pytest.mark.timeout(60)
def test_the_largest_text_is_read_or_refused_in_a_moment() -> None:
    for text in (
        "[" + "[]," * 340_000 + "]",
        "a: " + "{" * 1_000_000,
        "".join(f"- &a{n} x\n" for n in range(70_000)),
        "- " + "a\n" * 500_000,
    ):
        with contextlib.suppress(Invalid):
            read(text)


def test_json_is_read_as_json_and_its_faults_have_lines() -> None:
    assert read('{"a": 1.0, "b": null}', "x.json") == {"a": 1.0, "b": None}
    assert refusal('{"a": 1,\n "b": }', "x.json") == "x.json:2:7: Invalid JSON: Expecting value."
    assert refusal('{"a": [NaN]}', "x.json") == "x.json:1:8: /a/0: nan is not a number of JSON."
    # YAML has no such text, and so no line for it.
    assert refusal('{"a":\n"\\ud800"}', "x.json").startswith("x.json: /a: This text holds half of a surrogate pair")


def test_what_others_wrote_is_read_more_leniently() -> None:
    assert read("responses: {200: {a: 1}}", "", RESOURCE) == {"responses": {"200": {"a": 1}}}
    assert read('{"a": 1, "a": 2}', "", RESOURCE) == {"a": 2}
    with pytest.raises(Invalid, match="nested more than"):
        read("[" * 100_000, "", RESOURCE)


def test_a_place_is_found_where_it_is_written() -> None:
    marks = Marks("a:\n  - b: 1\n    c/d: &x {e: 5}\n  - *x\n")
    assert marks.of("") == (1, 1)
    assert marks.of("/a/0/b") == (2, 5)
    assert marks.of("/a/0/c~1d/e") == (3, 14)
    assert marks.of("/a/1") == (4, 5)
    assert marks.of("/a/1/e") == (3, 14)
    assert marks.of("/a/0/nothing/at/all") == (2, 5)
    assert Marks("a: [").of("/a") is None


def test_texts_are_read_by_one_reader() -> None:
    """Whoever loads YAML by himself goes around its bounds."""
    package = Path(yaml12.__file__).parents[1]
    loading = re.compile(r"yaml\.(?:safe_)?(?:load|compose|parse|scan)|SafeLoader")
    loaders = {str(file.relative_to(package)) for file in package.rglob("*.py") if loading.search(file.read_text())}
    assert loaders == {"definition/yaml12.py"}
