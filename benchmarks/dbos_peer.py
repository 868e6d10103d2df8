"""DBOS on the same PostgreSQL, run as a process of its own: `python -m benchmarks.dbos_peer INSTANCES STEPS`."""

from __future__ import annotations

import os
import sys
import time

from dbos import DBOS, DBOSConfig

config: DBOSConfig = {
    "name": "bench",
    "system_database_url": os.environ["DBOS_URL"],
    "log_level": "ERROR",
    "run_admin_server": False,
}
DBOS(config=config)


@DBOS.step()
def nop(n: int) -> None:
    return None


@DBOS.workflow()
def sequence(steps: int) -> None:
    for n in range(steps):
        nop(n)


def main(instances: int, steps: int) -> None:
    DBOS.launch()
    sequence(steps)
    began = time.perf_counter()
    if sys.argv[3:] == ["direct"]:
        for _ in range(instances):
            sequence(steps)
    else:
        # Several at once, as its own thread pool allows: faster than one after another.
        running = []
        for _ in range(instances):
            running.append(DBOS.start_workflow(sequence, steps))
            if len(running) >= 8:
                running.pop(0).get_result()
        for handle in running:
            handle.get_result()
    print(f"took {time.perf_counter() - began:.6f}", flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
