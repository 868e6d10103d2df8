"""Cron expressions as text: what they may hold, and what those of other schedulers mean here. When they fire: `schedule/times.py`.

Five fields (minute, hour, day of month, month, day of week) as Unix has them, or six with the seconds before them.
"""

from __future__ import annotations

import re

from cronsim.cronsim import DAYS_IN_MONTH, FIELD_NAMES, CronSimError, Field

FORM = "write five fields (minute hour day month weekday), or six with the seconds first"


class BadCron(ValueError):
    """Why this is no cron expression."""


def check(text: object) -> str:
    """The expression in its usual form; raises `BadCron` naming the field that is wrong."""
    fields = text.split() if isinstance(text, str) else []
    if len(fields) not in (5, 6):
        raise BadCron(f"Invalid cron expression: {FORM}.")
    # `?` is Quartz's word for any day.
    fields = ["*" if field == "?" else field for field in fields]
    parts = [field.upper() for field in (fields if len(fields) == 6 else ["0", *fields])]
    for number, part in enumerate(parts):
        try:
            Field(number).parse(part)
        except (CronSimError, AssertionError, ValueError):
            raise BadCron(f'Invalid cron expression: "{part[:40]}" is not a {FIELD_NAMES[number].replace("-", " ")}; {FORM}.') from None
    days, months = Field.DAY.parse(parts[3]), Field.MONTH.parse(parts[4])
    longest = max(DAYS_IN_MONTH[month] for month in months if isinstance(month, int))
    is_both = parts[3].startswith("*") or parts[5].startswith("*")
    if is_both and all(isinstance(day, int) and day > longest for day in days):
        raise BadCron("Invalid cron expression: its day never comes.")
    return " ".join(fields)


def of_quartz(text: str) -> str:
    """A Quartz expression (seconds first, perhaps years last, Sunday is 1) as it is written here; others as they are."""
    fields = text.split()
    if len(fields) not in (6, 7):
        return text
    weekday = re.sub(r"(?<![#/\w])[1-7](?=$|[-,/#L])", lambda found: str(int(found.group()) - 1), fields[5])
    fields = [re.sub(r"^0/", "*/", field) for field in fields[:5]] + [weekday]
    # At the full minute it is what Unix would do, with what Unix does where clocks are changed.
    return " ".join("*" if field == "?" else field for field in (fields[1:] if fields[0] == "0" else fields))
