"""`docs/reference/settings.md`, and `.env.example`, made from the settings: `python -m orchestrator.config.reference [--env]`."""

from __future__ import annotations

import sys
from dataclasses import fields

from orchestrator.config.settings import SECRET, Settings, variable


def page() -> str:
    lines = [
        "# Settings",
        "",
        "Every process reads them when it starts, `make up` included: from the environment, then from `.env` in the folder, then from the stack",
        "that runs there, else the default. A value that means nothing ends the process with exit code 2; all faults are reported at once, each",
        "with its variable and value. A variable that is nearly the name of a setting gets a warning. `orchestrator config` shows what is in force",
        "and where it comes from.",
        "",
        "The highest source that names Redis decides; there `REDIS_URL` goes before `REDIS_HOST` and `REDIS_PORT`. `REDIS_PASSWORD` is given to an",
        "address that has none, `DATABASE_PASSWORD` likewise; any characters. `DATABASE_URL=postgresql://` leaves everything to libpq's own",
        "variables (`PGHOST`, `PGUSER`, `PGPASSWORD`, `PGPASSFILE` …). An empty value counts as none, except where the meaning says otherwise.",
        "",
        "What is secret may lie in a file, as Docker and Kubernetes lay secrets down: `<variable>_FILE` names it, for",
        ", ".join(f"`{name}`" for name in SECRET) + ".",
        "",
        "| variable | default | expected | meaning |",
        "|---|---|---|---|",
    ]
    for setting in fields(Settings):
        default = setting.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        expected = setting.metadata["kind"].expected.replace("|", "\\|")
        lines.append(f"| `{variable(setting.name)}` | {f'`{shown}`' if shown else ''} | {expected} | {setting.metadata['help']} |")
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
