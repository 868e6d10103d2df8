"""Steps of graph documents that hold steps: `condition`, `parallel`, `forEach`, `while`.

What is inside runs one after another, each step getting what the ones before it gave; with `dependencies`, as a graph.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, AliasChoices, Field, StringConstraints, model_validator

from orchestrator.definition.expressions import Bind, Expression, Jq, Merge, Template, embedded
from orchestrator.definition.parsing import Many, Model, Name
from orchestrator.definition.tree import EXIT, AnyTask, Around, Case, Do, For, Fork, Graph, Node, Switch, Written

if TYPE_CHECKING:
    from orchestrator.definition.graph import StepForm

# Step types by another name.
ALIASES = {"apiCall": "http", "api_call": "http"}


def jq_of(text: str) -> Jq:
    """jq as people write it where only jq may stand: bare, or as `${ … }`."""
    return Jq(embedded(text) or text)


def _some(given: tuple[Any, ...]) -> tuple[Any, ...]:
    if not given:
        raise ValueError("Expected at least one step.")
    return given


Steps = Annotated[tuple["StepForm", ...], Many, AfterValidator(_some)]
Variable = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]


class NestedForm(Model):
    """The parameters of a step that holds steps."""

    @abstractmethod
    def task(self, name: str, around: Around, written: Written, place: str) -> AnyTask:
        """The step's task; `around` holds its condition and timeout, `place` is the pointer of its parameters."""


class ConditionForm(NestedForm):
    required: ClassVar[dict[Any, str]] = {"condition": "The condition, such as .total > 5, is required."}

    condition: Name
    then: Steps
    otherwise: Steps | None = Field(None, validation_alias="else")

    def task(self, name: str, around: Around, written: Written, place: str) -> AnyTask:
        then = _tasks(self.then, written, f"{place}/then")
        otherwise = _tasks(self.otherwise or (), written, f"{place}/else")
        cases = (
            Case(name="holds", when=jq_of(self.condition), then="then"),
            Case(name="otherwise", then="else" if otherwise else EXIT),
        )
        ways = [Do(name="then", tasks=then, around=Around(then=EXIT)), *([Do(name="else", tasks=otherwise)] if otherwise else [])]
        return Do(name=name, tasks=(Switch(name="which", cases=cases), *ways), around=around)


class ParallelForm(NestedForm):
    steps: Steps | None = None
    branches: Annotated[tuple[Steps, ...], Many] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> ParallelForm:
        if not self.steps and not self.branches:
            raise ValueError("Expected `steps`, each of which is a branch, or `branches`, each of which is a list of steps.")
        if self.steps and self.branches:
            raise ValueError("Give either `steps` or `branches`.")
        if any(step.dependencies for step in self.steps or ()):
            raise ValueError("These steps run side by side: none can have `dependencies`.")
        return self

    def task(self, name: str, around: Around, written: Written, place: str) -> AnyTask:
        if self.steps:
            branches = _tasks(self.steps, written, f"{place}/steps")
        else:
            lists = enumerate(self.branches or ())
            branches = tuple(Do(name=f"branch{n + 1}", tasks=_tasks(steps, written, f"{place}/branches/{n}")) for n, steps in lists)
        return Fork(name=name, branches=branches, gather="merge", concurrency=self.concurrency, around=around)


class ForEachForm(NestedForm):
    required: ClassVar[dict[Any, str]] = {"items": "The items, as a list or as jq that gives one, are required."}

    items: Name | list[Any]
    each: Variable = Field("item", validation_alias="as")
    at: Variable = Field("index", validation_alias="index")
    parallel: bool = False
    concurrency: Annotated[int, Field(ge=1)] | None = None
    steps: Steps

    @model_validator(mode="after")
    def _limits_what_is_parallel(self) -> ForEachForm:
        if self.concurrency is not None and not self.parallel:
            raise ValueError("A loop does one item after another: `concurrency` limits one with `parallel: true`.")
        return self

    def task(self, name: str, around: Around, written: Written, place: str) -> AnyTask:
        output: Expression = Merge(name) if self.parallel else Jq(f"del(.{self.each}, .{self.at})")
        inside = _tasks(self.steps, written, f"{place}/steps")
        return For(
            name=name,
            items=Template(self.items) if isinstance(self.items, list) else jq_of(self.items),
            each=self.each,
            at=self.at,
            do=Do(tasks=inside, around=Around(input_from=Bind((self.each, self.at)))),
            parallel=self.parallel,
            concurrency=self.concurrency,
            around=replace(around, output_as=output),
        )


class WhileForm(NestedForm):
    required: ClassVar[dict[Any, str]] = {"condition": "The condition, such as .total > 5, is required."}

    condition: Name
    most: int = Field(1000, ge=1, le=1_000_000, validation_alias=AliasChoices("maxIterations", "max_iterations"))
    steps: Steps

    def task(self, name: str, around: Around, written: Written, place: str) -> AnyTask:
        # The condition on lines of its own: it may end with a comment.
        bounded = Jq(
            f"if (\n{jq_of(self.condition).source}\n) then"
            f' (if $index < {self.most} then true else error("is still true after {self.most} rounds") end) else false end'
        )
        return For(name=name, condition=bounded, do=Do(tasks=_tasks(self.steps, written, f"{place}/steps")), around=around)


FORMS: dict[str, type[NestedForm]] = {
    "condition": ConditionForm,
    "parallel": ParallelForm,
    "forEach": ForEachForm,
    "for_each": ForEachForm,
    "while": WhileForm,
}


def _tasks(steps: Sequence[StepForm], written: Written, place: str) -> tuple[AnyTask, ...]:
    nodes: list[Node] = [step.node(written, f"{place}/{number}") for number, step in enumerate(steps)]
    if any(node.after for node in nodes):
        return (Graph(name="steps", nodes=tuple(nodes)),)
    return tuple(node.task for node in nodes)
