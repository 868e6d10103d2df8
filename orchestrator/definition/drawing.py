"""A definition as a Mermaid flowchart: what may follow what."""

from __future__ import annotations

import itertools

from orchestrator.definition.tree import (
    END,
    EXIT,
    AnyTask,
    Definition,
    Do,
    Extended,
    For,
    Fork,
    Graph,
    Listen,
    Step,
    Switch,
    Try,
)
from orchestrator.ids import unescaped

Ends = list[tuple[str, str]]
"""Where the flow leaves a part: nodes, each with the label of the arrow that leaves it."""


def mermaid(definition: Definition) -> str:
    drawing = _Drawing()
    ends = drawing.task(definition.do, [("start", "")])
    for node, label in [*ends, *drawing.ended]:
        drawing.arrow(node, "stop", label)
    body = "\n".join(f"    {line}" for line in drawing.lines)
    return f"flowchart TD\n    start((start))\n    stop((end))\n{body}\n"


class _Drawing:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ended: Ends = []
        self.numbers = itertools.count(1)

    def node(self, label: str, shape: str = "[]") -> str:
        name = f"n{next(self.numbers)}"
        text = label.replace('"', "'").replace("\n", " ")
        opening, closing = {"[]": ("[", "]"), "{}": ("{", "}"), "()": ("([", "])")}[shape]
        self.lines.append(f'{name}{opening}"{text}"{closing}')
        return name

    def arrow(self, one: str, other: str, label: str = "") -> None:
        text = label.replace('"', "'").replace("|", "/")
        self.lines.append(f'{one} -->|"{text}"| {other}' if text else f"{one} --> {other}")

    def joined(self, into: Ends, name: str) -> None:
        for node, label in into:
            self.arrow(node, name, label)

    def task(self, task: AnyTask, into: Ends) -> Ends:
        """Draws the task behind what leads to it; gives what leaves it."""
        match task:
            case Do(tasks=tasks) if tasks:
                return self._list(list(tasks), into)
            case Fork(branches=branches):
                return self._side_by_side(task, into, [[b] for b in branches], "first of" if task.compete else "all of")
            case Graph():
                return self._graph(task, into)
            case For(do=body):
                return self._loop(task, into, body, "for each" if task.items else "while")
            case Listen(do=Do() as body):
                return self._loop(task, into, body, "for each event")
            case Try(do=body, catch=catch):
                with self._box(f"try {unescaped(task.name)}"):
                    left = self.task(body, into)
                if catch.do is None:
                    return left
                caught = self.node(f"catch {unescaped(task.name)}", "()")
                self.arrow(self._last_of(left, into), caught, "error")
                return [*left, *self.task(catch.do, [(caught, "")])]
            case Extended(task=inner):
                return self.task(inner, into)
        return self._single(task, into)

    def _single(self, task: AnyTask, into: Ends) -> Ends:
        kind = task.type if isinstance(task, Step) else type(task).__name__.lower()
        name = self.node(f"{unescaped(task.name) or kind} ({kind})", "{}" if isinstance(task, Switch) else "[]")
        self.joined(into, name)
        return [(name, "")]

    def _list(self, tasks: list[AnyTask], into: Ends) -> Ends:
        """One after another, with the jumps that directives make."""
        entries: dict[str, str] = {}
        jumps: list[tuple[str, str, str]] = []
        left: Ends = into
        for task in tasks:
            first = len(self.lines)
            leaving = self.task(task, left)
            entries[task.name] = self._first_node(first) or (leaving[0][0] if leaving else "")
            left = []
            if task.around.condition is not None:
                left += [(node, "skipped") for node, _ in leaving[:1]]
            targets = [(case.name, case.then) for case in task.cases] if isinstance(task, Switch) else []
            if not targets or all(case.when for case in task.cases):  # type: ignore[union-attr]
                targets.append(("", task.around.then or "continue"))
            for label, then in targets:
                for node, said in leaving:
                    if then == "continue":
                        left.append((node, label or said))
                    elif then == END:
                        self.ended.append((node, label))
                    elif then == EXIT:
                        jumps.append((node, EXIT, label))
                    else:
                        jumps.append((node, then, label))
        for node, target, label in jumps:
            if target == EXIT:
                left.append((node, label))
            elif target in entries:
                self.arrow(node, entries[target], label)
        return left

    def _first_node(self, since: int) -> str:
        for line in self.lines[since:]:
            name = line.split("[")[0].split("{")[0].split("(")[0].strip()
            if name.startswith("n") and name[1:].isdigit():
                return name
        return ""

    def _last_of(self, left: Ends, into: Ends) -> str:
        return left[-1][0] if left else into[-1][0] if into else "start"

    def _side_by_side(self, task: AnyTask, into: Ends, branches: list[list[AnyTask]], what: str) -> Ends:
        opened = self.node(f"{unescaped(task.name)} (fork)", "()")
        self.joined(into, opened)
        joined = self.node(f"{what} {len(branches)}", "()")
        for branch in branches:
            self.joined(self._list(branch, [(opened, "")]), joined)
        return [(joined, "")]

    def _graph(self, task: Graph, into: Ends) -> Ends:
        opened = self.node(f"{unescaped(task.name) or 'graph'}", "()")
        self.joined(into, opened)
        ends: dict[str, Ends] = {}
        waited: set[str] = set()
        todo = list(task.nodes)
        while todo:
            # A cycle is a fault of its own; it is drawn all the same.
            node = next((n for n in todo if all(name in ends for name in n.after)), todo[0])
            todo.remove(node)
            before = [end for name in node.after for end in ends.get(name, [])] or [(opened, "")]
            waited |= set(node.after)
            ends[node.task.name] = self.task(node.task, before)
        joined = self.node("all done", "()")
        for name, left in ends.items():
            if name not in waited:
                self.joined(left, joined)
        return [(joined, "")]

    def _loop(self, task: AnyTask, into: Ends, body: Do, what: str) -> Ends:
        head = self.node(f"{unescaped(task.name)} ({what})", "{}")
        self.joined(into, head)
        self.joined(self.task(body, [(head, "next")]), head)
        return [(head, "done")]

    def _box(self, title: str) -> _Box:
        return _Box(self, title)


class _Box:
    def __init__(self, drawing: _Drawing, title: str) -> None:
        self.drawing = drawing
        self.title = title

    def __enter__(self) -> None:
        self.drawing.lines.append(f'subgraph b{next(self.drawing.numbers)} ["{self.title}"]')

    def __exit__(self, *_: object) -> None:
        self.drawing.lines.append("end")
