"""`docs/reference/settings.md`, and `.env.example`, made from the settings: `python -m orchestrator.config.reference [--env]`."""

from __future__ import annotations

import sys
from dataclasses import fields

from orchestrator.config.given import PASSWORDS
from orchestrator.config.settings import SECRET, Settings, variable


def page() -> str:
    lines = [
        "# Settings",
        "",
        "Read from the environment, then from `.env` in the folder, then from the stack that runs there (`make up`), else the default.",
        "`REDIS_URL` may lack its scheme; without it `REDIS_HOST`, `REDIS_PORT` and `REDIS_PASSWORD` are read.",
        "A password beside its URL, with any characters: `DATABASE_PASSWORD` goes into a `DATABASE_URL` without one. `DATABASE_URL=postgresql://`",
        "leaves everything to libpq's own variables (`PGHOST`, `PGUSER`, `PGPASSWORD`, `PGPASSFILE` …).",
        "What is secret may lie in a file: `<variable>_FILE` names it, for "
        + ", ".join(f"`{name}`" for name in (*SECRET, *PASSWORDS))
        + ".",
        "Durations may be written as `15`, `15s`, `1m30s` or `PT15S`. All faults are reported at once.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for setting in fields(Settings):
        default = setting.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        lines.append(f"| `{variable(setting.name)}` | {f'`{shown}`' if shown else ''} | {setting.metadata['help']} |")
    return "\n".join(lines) + "\n"


def example() -> str:
    """`.env.example`: every variable with its default, commented out."""
    lines = ["# Copy to .env and change what you need. docs/reference/settings.md says what each means.", ""]
    for setting in fields(Settings):
        shown = ",".join(setting.default) if isinstance(setting.default, tuple) else str(setting.default)
        lines += [f"# {setting.metadata['help']}", f"#{variable(setting.name)}={shown}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(example() if "--env" in sys.argv else page(), end="")  # noqa: T201
