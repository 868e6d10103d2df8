"""An executor in a few lines: it speaks to the orchestrator through Redis streams, as an executor in any other language would.

    make up                                        # in one terminal
    .venv/bin/python examples/worker_example.py    # in another

It registers a document with a task that nobody here does, starts it with an event, does the task when it is asked for, and prints how
the workflow ended.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import redis

from orchestrator.client import Client
from orchestrator.config import process

WORKFLOW = "image-scan"
STREAM = f"tenant:default:workflow:{WORKFLOW}:events"
DOCUMENT = f"""
document: {{dsl: '1.0.3', namespace: examples, name: {WORKFLOW}, version: '1.0.0'}}
do:
  - scan:
      call: step:external
      with: {{type: scan, input: {{image: '${{ .image }}'}}}}
  - verdict:
      set: {{accepted: '${{ .findings == 0 }}'}}
"""


def heard(client: Any, timeout_s: float = 30.0) -> Iterator[dict[str, Any]]:
    """What is on the stream, and what comes to it."""
    deadline, last = time.monotonic() + timeout_s, "0"
    while time.monotonic() < deadline:
        for _, entries in client.xread({STREAM: last}, block=500, count=100) or ():
            last = entries[-1][0]
            for _, fields in entries:
                yield {**fields, "data": json.loads(fields.get("data") or "{}")}


def answer(client: Any, request: dict[str, Any], output: Any) -> None:
    done = {"task_id": request["data"]["task_id"], "success": True, "output": output}
    about = {"type": "io.flunq.task.completed", "source": "executor-service", "workflowid": WORKFLOW}
    client.xadd(STREAM, {**about, "executionid": request["executionid"], "data": json.dumps(done)})


def main() -> None:
    settings = process.settings()  # the stack that runs in this folder, or REDIS_URL, HOST and PORT
    client: Any = redis.Redis.from_url(settings.redis_url, decode_responses=True)
    with Client(f"http://{settings.host}:{settings.port}") as api:
        api.register(DOCUMENT)

    image = f"shop/web:{uuid.uuid4().hex[:8]}"
    start = {"type": "io.flunq.execution.started", "source": "api-service", "workflowid": WORKFLOW, "executionid": f"ex_{uuid.uuid4().hex}"}
    client.xadd(STREAM, {**start, "data": json.dumps({"input": {"image": image}})})
    print(f"started a scan of {image}")

    execution = None
    for event in heard(client):
        if event["type"] == "io.flunq.task.requested" and event["data"]["input"] == {"image": image}:
            execution = event["executionid"]
            print(f"asked to do {event['data']['task_name']} of {image}")
            answer(client, event, {"findings": 0})
        elif event["executionid"] == execution and event["type"] == "io.flunq.workflow.completed":
            print(f"completed: {event['data']['output']}")
            return
        elif event["executionid"] == execution and event["type"] == "io.flunq.workflow.failed":
            sys.exit(f"failed: {event['data']['error_message']}")
    sys.exit("nothing more was heard within 30 s: does a bridge run (make up)?")


if __name__ == "__main__":
    main()
