"""`make ctk`: the conformance kit on both engines, and the count at the end."""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

from orchestrator.config.settings import SCHEMA
from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.store import migrate
from tests.serverless.kit import FOLDER, Durable, InProcess, scenarios
from tests.serverless.standins import standing_in
from tests.stack import Stack


def main() -> int:
    found = list(scenarios())
    if not found:
        print(f"no features in {FOLDER}; set CTK to the kit's directory")
        return 1
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        postgres, redis = Postgres(folder / "pg" / "postgres", any_free()), Redis(folder / "redis", any_free())
        postgres.start()
        redis.start()
        migrate.upgrade(postgres.url, SCHEMA)
        stack = Stack(postgres.url, redis, folder)
        stack.worker()
        try:
            with standing_in() as standin:
                for title, engine in (("durable", Durable(stack)), ("in-process", InProcess())):
                    for feature, scenario in found:
                        try:
                            scenario.check(engine, standin)
                            passed += 1
                            print(f"✔ {title:<10} {feature}: {scenario.name}")
                        except Exception:
                            failed += 1
                            print(f"✖ {title:<10} {feature}: {scenario.name}\n{traceback.format_exc(limit=-1)}")
        finally:
            stack.stop()
            redis.stop()
            postgres.stop()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
