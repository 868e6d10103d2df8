"""`docs/reference/settings.md`, made from the settings themselves: `python -m orchestrator.config.reference`."""

from __future__ import annotations

from dataclasses import fields

from orchestrator.config.settings import Settings, variable


def page() -> str:
    lines = [
        "# Settings",
        "",
        "Read from the environment; what is not set comes from the stack that runs in this folder (`make up`), else the default.",
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


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
