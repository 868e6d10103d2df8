"""What `orchestrator.testing` takes and refuses."""

from __future__ import annotations

import pytest

from orchestrator import Terminal, Workflow, step
from orchestrator.errors import OrchestratorError
from orchestrator.testing import Lab


@step(type="authors.ship")
def ship(id: int) -> dict[str, str]:
    return {"shipment": f"S-{id}"}


shipping = Workflow("shipping").then(ship)


@pytest.mark.proves(47)
def test_a_workflow_without_steps_is_refused() -> None:
    with pytest.raises(OrchestratorError, match="at least one step"):
        Lab().run(Workflow("empty"))


@pytest.mark.proves(45, 47)
def test_a_workflow_that_was_not_written_to_its_end_is_refused_with_what_is_left_open() -> None:
    with pytest.raises(OrchestratorError, match=r"End them with \.join"):
        Lab().run(Workflow("open").parallel().do("noop"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Expected a Workflow or a Definition"):
        Lab().run("open")  # type: ignore[arg-type]


@pytest.mark.proves(47)
def test_a_workflow_with_a_step_that_nobody_has_is_refused_before_it_starts() -> None:
    with pytest.raises(OrchestratorError, match=r"authors\.shp"):
        Lab().start(Workflow("mistyped").set({"n": 1}).then("authors.shp"))


@pytest.mark.proves(47)
@pytest.mark.parametrize("type", ["ship", "authors.shipp"])
def test_a_stub_that_replaces_nothing_is_refused_with_what_was_meant(type: str) -> None:
    with pytest.raises(OrchestratorError, match=r'Did you mean "authors\.ship"'):
        Lab(stubs={type: Terminal("no courier")}).run(shipping, {"id": 7})


def test_a_stub_replaces_a_step_that_is_written_as_a_function() -> None:
    lab = Lab(stubs={"authors.ship": Terminal("no courier")})

    lab.run(shipping, {"id": 7}).assert_failed("terminal")
    assert Lab().run(shipping, {"id": 7}).output["shipment"] == "S-7"


def test_a_stub_may_be_for_a_type_that_the_workflow_alone_names_even_in_a_child() -> None:
    child = Workflow("authors-child").then("made-up")
    lab = Lab(stubs={"made-up": {"n": 1}}, workflows=(child,))

    lab.run(Workflow("authors-parent").run("authors-child")).assert_completed()


@pytest.mark.proves(45)
def test_what_was_left_open_is_not_closed_by_what_was_written_after_it() -> None:
    """Of many that nobody keeps, one is bound to get the place in memory of another."""
    for number in range(50):
        flow = Workflow(f"forgotten-{number}").then("noop")
        flow.parallel().do("noop")
        flow.parallel().do("noop").join()
        with pytest.raises(OrchestratorError, match="not joined"):
            Lab().run(flow)
