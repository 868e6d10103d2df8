"""Documents under fire: instances that use every kind of task, while worker processes are killed. Exact results."""

from __future__ import annotations

import pytest

from orchestrator.definition.documents import read_document
from tests.chaos.crowd import LONG, QUICK, kill_a_child, number, report, trouble
from tests.serverless.standins import StandIn, standing_in
from tests.stack import Stack, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 if LONG else 180)]

CHILD = """
document: {dsl: '1.0.3', namespace: chaos, name: child, version: '1.0.0'}
do: [{twice: {set: {twice: '${ .n * 2 }'}}}]
"""

EVERYTHING = """
document: {dsl: '1.0.3', namespace: chaos, name: everything, version: '1.0.0'}
use:
  functions: {plus: {set: '${ .a + .b }'}}
  retries: {soon: {delay: {milliseconds: 50}, limit: {attempt: {count: 100}}}}
  extensions: [{count: {extend: run, after: [{counted: {set: {x: 1}, export: {as: '{ran: (($context.ran // 0) + 1)}'}}}]}}]
timeout: {after: {minutes: 10}}
do:
  - start: {set: {n: '${ .n }', log: []}}
  - loop:
      for: {each: x, in: '[1, 2, 3]'}
      do:
        - add: {set: {n: '${ .n + $x }', log: '${ .log + [$x] }'}}
        - nap: {wait: {milliseconds: 20}}
  - way: {switch: [{even: {when: .n % 2 == 0, then: even}}, {odd: {then: odd}}]}
  - odd: {set: '${ . + {way: "odd"} }', then: both}
  - even: {set: '${ . + {way: "even"} }'}
  - both:
      fork:
        branches:
          - call:
              do:
                - get: {call: http, with: {method: get, endpoint: 'ADDRESS/echo?n={n}'}, output: {as: '.query.n[0] | tonumber'}}
          - child: {run: {workflow: {namespace: chaos, name: child, version: '1.0.0', input: {n: '${ .n }'}}}, output: {as: .twice}}
          - command: {run: {shell: {command: 'echo $(($1 + 1))', arguments: ['${ .n }']}}, output: {as: tonumber}}
          - function: {call: plus, with: {a: '${ .n }', b: 100}}
      output: {as: '$input + {both: .}'}
  - tried:
      try:
        - pass: {set: '${ . }', export: {as: '$context + {tries: (($context.tries // 0) + 1)}'}}
        - fail: {if: '$context.tries < 3', raise: {error: {type: https://chaos/again, status: 503}}}
      catch: {errors: {with: {status: 503}}, retry: soon}
  - timed:
      try: [{long: {timeout: {after: {milliseconds: 100}}, wait: {hours: 1}}}]
      catch: {errors: {with: {status: 408}}, do: [{late: {set: '${ . + {timedOut: true} }'}}]}
  - tell: {emit: {event: {with: {type: 'chaos.told.${}', subject: told, data: {n: '${ .n }'}}}}, output: {as: $input}}
  - hear:
      listen: {to: {all: [{with: {type: chaos.go, data: '${ .for == $workflow.input.id }'}}, {with: {type: chaos.more, data: '${ .for == $workflow.input.id }'}}]}}
      output: {as: '$input + {heard: (map(.word) | sort)}'}
  - last: {set: '${ {n, log, way, both, timedOut, heard, tries: $context.tries, ran: $context.ran} }'}
"""


@pytest.fixture
def fired_at(stack: Stack) -> Stack:
    stack.environment.update({**QUICK, "RUN_SHELL": "1"})
    return stack


def expected(n: int) -> dict[str, object]:
    total = n + 6
    return {
        "n": total,
        "log": [1, 2, 3],
        "way": "even" if total % 2 == 0 else "odd",
        "both": [total, total * 2, total + 1, total + 100],
        "timedOut": True,
        "heard": ["go", "more"],
        "tries": 3,
        "ran": 1,
    }


def _send(stack: Stack, name: str) -> None:
    for word in ("go", "more"):
        event = {
            "specversion": "1.0",
            "id": f"{name}-{word}",
            "source": "/chaos",
            "type": f"chaos.{word}",
            "data": {"for": name, "word": word},
        }
        assert stack.runner.send_event(event)
        assert not stack.runner.send_event(event)


def test_documents_of_every_task_end_exactly_while_processes_are_killed(fired_at: Stack) -> None:
    with standing_in() as standin:
        _fire(fired_at, standin)


def _fire(stack: Stack, standin: StandIn) -> None:
    size = number(25, 500)
    for text in (CHILD, EVERYTHING.replace("ADDRESS", standin.address).replace(".${}", "")):
        stack.runner.register_workflow(read_document(text, "chaos.yaml"))
    stack.worker(concurrency=4)
    started: dict[str, int] = {}

    with trouble(lambda: kill_a_child(stack.workers), (0.5, 1.5)):
        for n in range(size):
            instance_id = stack.runner.start_workflow("chaos.everything", input={"n": n, "id": f"i{n}"})
            started[instance_id] = n
            # Some events come before anybody listens, some long after.
            if n % 2:
                _send(stack, f"i{n}")
        for n in range(0, size, 2):
            _send(stack, f"i{n}")

        def left() -> int:
            return int(stack.sql("select count(*) from instances where state in ('PENDING', 'RUNNING')")[0][0])

        until(lambda: left() == 0, 600 if LONG else 120, f"{size} documents end\n{stack.logs()[-3000:]}")

    rows = {str(id): (state, output, error) for id, state, output, error in stack.sql("select id, state, output, error from instances")}
    wrong = {i: rows[i] for i, n in started.items() if rows[i][0] != "COMPLETED" or rows[i][1] != expected(n)}
    assert not wrong, f"{len(wrong)} ended otherwise: {list(wrong.items())[:2]}"
    twice = stack.sql(
        "select position, count(*) from checkpoints where kind in ('step.completed', 'event.emitted', 'child.ended', 'branches.joined')"
        " group by branch_id, position having count(*) > 1"
    )
    assert twice == []
    told = stack.sql("select count(*) from events where type = 'chaos.told'")
    assert told == [(size,)]
    report("documents, children killed", instances=len(started), requests=len(standin.requests))
