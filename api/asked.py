"""What a request says: its body as an object, and who asks."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from flask import Request, request
from flask.json.provider import DefaultJSONProvider
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import RequestEntityTooLarge

from orchestrator import nesting
from orchestrator.api.gate import named_tenant, who
from orchestrator.api.gate import tenant as tenant
from orchestrator.errors import Fault, Invalid
from orchestrator.security.principals import EVERY_TENANT
from orchestrator.store.definitions import Stored
from orchestrator.store.sealing import Unopened

Model = TypeVar("Model", bound=BaseModel)


class Asked(Request):
    def get_data(self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False) -> Any:
        """Of a body whose length nobody said, werkzeug gives the beginning when it is too long; here it is refused like any other."""
        held = super().get_data(cache=cache, as_text=False, parse_form_data=parse_form_data)
        if self.content_length is None and held and len(held) == self.max_content_length and self.environ["wsgi.input"].read(1):
            raise RequestEntityTooLarge
        return held.decode(errors="replace") if as_text else held

    def on_json_loading_failed(self, e: ValueError | None) -> Any:
        """Says where the body stops being JSON, and not that a browser sent it."""
        raise Invalid([Fault("body", f"is no JSON: {e}" if e else "must be JSON, with Content-Type: application/json")], "request")


class Json(DefaultJSONProvider):
    """As the standard has it, without NaN or Infinity; and not nested without end."""

    sort_keys = False

    @staticmethod
    def default(o: Any) -> Any:
        return o.shown() if isinstance(o, Unopened) else DefaultJSONProvider.default(o)

    def loads(self, s: str | bytes, **options: Any) -> Any:
        return nesting.parse(s, parse_constant=_refuse, **options)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def body() -> dict[str, Any]:
    if not request.get_data(cache=True):
        return {}
    found = request.get_json(force=True)
    if not isinstance(found, dict):
        raise Invalid([Fault("body", "must be a JSON object")], "request")
    return found


def body_as(model: type[Model]) -> Model:
    """The body as a model says it must be; every fault at once."""
    return read_as(model, body())


def read_as(model: type[Model], given: Any) -> Model:
    try:
        return model.model_validate(given, strict=True)
    except ValidationError as error:
        faults = [Fault("/".join(str(part) for part in one["loc"]) or "body", one["msg"]) for one in error.errors()]
        raise Invalid(faults, "request") from None


def actor() -> str:
    return who().name


def only_tenant() -> str | None:
    """For lists: None where everything may be seen and no tenant was named."""
    return named_tenant() if who().tenant == EVERY_TENANT else who().tenant


def sees(stored: Stored) -> bool:
    """Whether a definition is everybody's, or the asker's own."""
    return who().sees_all_tenants or stored.tenant in ("default", who().tenant)


def cursor() -> tuple[dt.datetime, str] | None:
    """Where the last page ended: `?cursor=`, as it was given."""
    text = request.args.get("cursor")
    if text is None:
        return None
    try:
        at, _, id = base64.b64decode(text.encode(), altchars=b"-_", validate=True).decode().partition("|")
        return dt.datetime.fromisoformat(at), str(uuid.UUID(id))
    except ValueError:
        raise Invalid([Fault("cursor", "is none that was given here")], "request") from None


def cursor_after(rows: Sequence[Mapping[str, Any]], limit: int) -> str | None:
    if len(rows) < limit:
        return None
    return base64.urlsafe_b64encode(f"{rows[-1]['created_at']}|{rows[-1]['id']}".encode()).decode()


def before() -> int | None:
    """The same in lists of what is numbered: `?cursor=` (or `?before=`) is the number of what came last."""
    named = next((name for name in ("cursor", "before") if name in request.args), None)
    return None if named is None else number(named, 1, 2**62)


def next_of(rows: Sequence[Mapping[str, Any]], limit: int, key: str = "id") -> Any:
    return rows[-1][key] if len(rows) >= limit else None


def moment(name: str) -> str | None:
    text = request.args.get(name)
    if text is not None:
        try:
            dt.datetime.fromisoformat(text)
        except ValueError:
            raise Invalid([Fault(name, f"is '{text}'; a time like 2026-01-31T12:00:00Z is needed")], "request") from None
    return text


def by_whom() -> dict[str, Any]:
    return {"actor": actor(), "source": "api"}


def wants_whole_data() -> bool:
    """Whether large inputs and outputs of tasks are wanted, too: `?data=whole`."""
    text = request.args.get("data", "brief")
    if text not in ("brief", "whole"):
        raise Invalid([Fault("data", f'Expected brief or whole, got "{text}".')], "request")
    return text == "whole"


def number(name: str, default: int, most: int) -> int:
    text = request.args.get(name, str(default))
    if not text.isdigit() or not 0 < int(text) <= most:
        raise Invalid([Fault(name, f"is '{text}'; a number from 1 to {most:,} is needed")], "request")
    return int(text)
