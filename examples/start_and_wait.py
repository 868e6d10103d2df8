"""Start a workflow from Python and wait for its result.

make up                                        # in one terminal
.venv/bin/python examples/start_and_wait.py    # in another
"""

from __future__ import annotations

from orchestrator.client import Client
from orchestrator.config import process


def main() -> None:
    settings = process.settings()  # the stack that runs in this folder, or HOST and PORT
    with Client(f"http://{settings.host}:{settings.port}") as workflows:
        hello = workflows.start("hello", {"name": "Ada"})
        print(f"started {hello.id}")
        print(hello.result(timeout_s=30))


if __name__ == "__main__":
    main()
