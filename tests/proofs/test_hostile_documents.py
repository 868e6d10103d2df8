"""Documents of a few bytes that mean a great deal: refused at once, before they are expanded."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.errors import Invalid

HEAD = "document: {dsl: '1.0.3', namespace: proofs, name: hostile, version: '1.0.0'}\n"


def validate(folder: Path, text: str, timeout_s: float = 15.0) -> subprocess.CompletedProcess[str]:
    """What the command says of a document; in a process of its own, which may crash or take for ever."""
    file = folder / "hostile.yaml"
    file.write_text(text)
    command = [sys.executable, "-m", "orchestrator.cli", "validate", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def bomb(levels: int, width: int) -> str:
    names = "abcdefghijklmnop"
    lines = [f"a: &a [{','.join('x' * width)}]"]
    lines += [f"{names[n]}: &{names[n]} [{','.join(['*' + names[n - 1]] * width)}]" for n in range(1, levels)]
    return HEAD + "do: [{s: {set: {x: 1}, metadata: {\n" + ",\n".join(lines) + "}}}]\n"


@pytest.mark.proves(28)
def test_an_alias_bomb_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    text = bomb(7, 9)
    assert len(text) < 600
    answer = validate(tmp_path, text)
    assert answer.returncode == 2
    assert "aliases" in answer.stderr


@pytest.mark.proves(28, 61)
def test_nesting_without_end_does_not_crash_the_reader(tmp_path: Path) -> None:
    answer = validate(tmp_path, "[" * 50_000)
    assert (answer.returncode, "nested more than" in answer.stderr) == (2, True)


@pytest.mark.proves(28)
def test_functions_that_call_the_next_one_twice_are_refused_while_they_grow(tmp_path: Path) -> None:
    calls = [f"  f{n}: {{do: [{{a: {{call: f{n + 1}}}}}, {{b: {{call: f{n + 1}}}}}]}}" for n in range(18)]
    functions = "\n".join([*calls, "  f18: {set: {x: 1}}"])
    answer = validate(tmp_path, f"{HEAD}use:\n functions:\n{functions.replace('  f', '   f')}\ndo: [{{s: {{call: f0}}}}]\n")
    assert (answer.returncode, "tasks" in answer.stderr) == (2, True)


@pytest.mark.proves(28)
def test_expression_functions_that_use_the_next_one_twice_are_refused(tmp_path: Path) -> None:
    functions = "\n".join(f"  - {{name: f{n}, type: expression, operation: 'fn:f{n + 1} + fn:f{n + 1}'}}" for n in range(24))
    state = "{name: s, type: operation, actions: [{functionRef: f0}], end: true}"
    last = "  - {name: f24, type: expression, operation: .x}"
    answer = validate(tmp_path, f"id: grows\nspecVersion: '0.8'\nfunctions:\n{functions}\n{last}\nstates: [{state}]\n")
    assert (answer.returncode, "characters" in answer.stderr) == (2, True)


@pytest.mark.proves(28, 61)
def test_a_document_of_many_tasks_is_read_in_time_that_grows_with_it() -> None:
    def took(tasks: int) -> float:
        text = HEAD + "do:\n" + "".join(f"  - s{n}: {{set: {{x: '${{ .a{n} }}'}}, then: s{(n + 1) % tasks}}}\n" for n in range(tasks))
        began = time.process_time()
        read_document(text, "many.yaml")
        return time.process_time() - began

    took(100)
    # Sixteen times as much: what grows with the square would take 256 times as long.
    assert min(took(16_000) for _ in range(2)) < 64 * min(took(1_000) for _ in range(3))


@pytest.mark.proves(28)
def test_data_that_is_named_as_a_duration_stays_what_it_is() -> None:
    made = read_document(HEAD + "do: [{s: {set: {delay: 2s, timeout: 1m}}}]")
    assert made.do.tasks[0].value.value == {"delay": "2s", "timeout": "1m"}  # type: ignore[union-attr]


@pytest.mark.proves(30)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("if: .x\ndo: [{s: {set: {x: 1}}}]", 'Unknown field "if"'),
        ("do: [{s: {set: {x: 1}, timout: PT1S}}]", 'Did you mean "timeout"?'),
        ("do: [{s: {try: [{t: {set: {x: 1}}}], catch: {errors: {with: {satus: 500}}}}}]", 'Did you mean "status"?'),
        ("schedule: {every: {seconds: -1}}\ndo: [{s: {set: {x: 1}}}]", "Invalid duration"),
        ("schedule: {every: PT0S}\ndo: [{s: {set: {x: 1}}}]", "at least"),
        ("schedule: {cron: 'a b c d e'}\ndo: [{s: {set: {x: 1}}}]", "is not a minute"),
    ],
)
def test_what_is_written_wrong_is_refused_with_its_line(body: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_document(HEAD + body, "wrong.yaml")
    assert any(said in str(fault) and str(fault).startswith("wrong.yaml:2:") for fault in caught.value.faults), caught.value


@pytest.mark.proves(30)
def test_a_version_of_the_specification_that_is_missing_is_told_in_plain_words() -> None:
    with pytest.raises(Invalid) as caught:
        read_document("id: x\nstates: [{name: s, type: inject, data: {}, end: true}]")
    assert [fault.place for fault in caught.value.faults] == ["/specVersion"]
    assert "required" in caught.value.faults[0].message


@pytest.mark.proves(30)
def test_a_wrong_query_is_the_only_fault_that_is_told() -> None:
    with pytest.raises(Invalid) as caught:
        read_document(HEAD + "do: [{s: {call: http, with: {method: get, endpoint: 'http://x', query: 5}}}]")
    assert [fault.place for fault in caught.value.faults] == ["/do/0/s/with/query"]
    assert "Expected a mapping or text, got 5." in str(caught.value)
