"""The `orchestrator` command, put together: one module per group of verbs."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import click
import psycopg
import redis
from kombu.exceptions import OperationalError as KombuError

from orchestrator import reach
from orchestrator.cli import acting, breaking, configuring, documents, eventful, guarding, looking, proxying, running, sealing, timing
from orchestrator.cli.console import JsonText
from orchestrator.errors import Invalid, NotFound, OrchestratorError, Refused
from orchestrator.starting import EXIT_AWAY, EXIT_REFUSED

EXIT_NOT_FOUND = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="celery-orchestrator")
def cli() -> None:
    """Durable workflows on Celery, Redis and Postgres.

    An instance's id may be shortened to its end: those of instances that start together begin alike.

    Exit codes: 0 done, 1 the workflow failed, 2 refused, 3 not found, 4 a server is away, 5 not ended within --wait-timeout.
    """


def _take_text_alone(command: click.Command) -> None:
    """What is no UTF-8 is refused before a command runs: nothing here can keep or compare it. A file may be called anything."""
    for parameter in command.params:
        if isinstance(parameter.type, click.types.StringParamType):
            parameter.callback = functools.partial(_as_text, parameter.callback)
    if isinstance(command, click.Group):
        for one in command.commands.values():
            _take_text_alone(one)


def _as_text(then: Callable[..., Any] | None, context: click.Context, parameter: click.Parameter, given: Any) -> Any:
    for text in given if isinstance(given, tuple) else (given,):
        if isinstance(text, str) and not (text.startswith("@") and isinstance(parameter.type, JsonText)):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise click.BadParameter(f"{os.fsencode(text)!r} is not UTF-8 text.", context, parameter) from None
    return given if then is None else then(context, parameter, given)


for module in (running, acting, looking, eventful, timing, configuring, breaking, guarding, sealing, proxying, documents):
    for command in module.COMMANDS:
        cli.add_command(command)
_take_text_alone(cli)


def main() -> None:
    """The console script: errors become a sentence and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except NotFound as error:
        _say(str(error))
        sys.exit(EXIT_NOT_FOUND)
    except (Invalid, Refused) as error:
        _say(str(error))
        sys.exit(EXIT_REFUSED)
    except reach.Away as error:
        _say(str(error))
        sys.exit(EXIT_AWAY)
    except OrchestratorError as error:
        _say(str(error))
        sys.exit(1)
    except psycopg.errors.UndefinedTable:
        _say("the database has no tables yet; run `orchestrator migrate`, or `make up`")
        sys.exit(EXIT_AWAY)
    except psycopg.OperationalError as error:
        _say(str(reach.postgres().away(reach.why(error))))
        sys.exit(EXIT_AWAY)
    except redis.RedisError as error:
        _say(str(reach.redis_server().away(reach.why(error))))
        sys.exit(EXIT_AWAY)
    except KombuError as error:
        _say(str(reach.broker().away(reach.why(error))))
        sys.exit(EXIT_AWAY)


def _say(text: str) -> None:
    click.secho(text, fg="red", err=True)
