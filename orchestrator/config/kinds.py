"""Kinds of settings: how the text of a variable is read, what is expected of it in words, and examples.

A kind refuses what it cannot mean: a port above 65535, a negative number, a control character in a name.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.definition.durations import BadDuration, seconds

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
LONGEST_TEXT = 4096


@dataclass(frozen=True, slots=True)
class Kind:
    """`expected` completes "Expected …"; `parse` raises `ValueError` for what is not that."""

    expected: str
    parse: Callable[[str], Any]
    examples: tuple[str, ...]


def flag() -> Kind:
    def parse(text: str) -> bool:
        lowered = text.lower()
        if lowered not in TRUE + FALSE:
            raise ValueError
        return lowered in TRUE

    return Kind("true or false", parse, ("true", "false"))


def whole(least: int = 0, most: int = 10**9) -> Kind:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise ValueError
        return int(text)

    return Kind(f"a whole number from {least:,} to {most:,}", parse, (str(least + 3), str(least + 4)))


def port() -> Kind:
    return Kind("a port: a whole number from 0 to 65535", whole(0, 65535).parse, ("18080", "18081"))


def number(least: float = 0.0, most: float = 1e9) -> Kind:
    def parse(text: str) -> float:
        found = float(text)
        if not math.isfinite(found) or not least <= found <= most:
            raise ValueError
        return found

    return Kind(f"a number from {least:g} to {most:,.0f}", parse, (f"{least + 1.5:g}", f"{least + 2.5:g}"))


_SIZES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def size(least: int = 1, most: int = 1024**4) -> Kind:
    def parse(text: str) -> int:
        found = re.fullmatch(r"([0-9]{1,15})\s*(|[kmg]i?)b?", text.lower())
        if found is None or not least <= (count := int(found[1]) * _SIZES[found[2]]) <= most:
            raise ValueError
        return count

    return Kind(f"a size in bytes, such as 2097152 or 2MiB, from {least:,} to {most:,}", parse, ("3MiB", "3000000"))


def duration(*, above_zero: bool = False) -> Kind:
    def parse(text: str) -> float:
        try:
            found = seconds(text)
        except BadDuration:
            raise ValueError from None
        if above_zero and found == 0:
            raise ValueError
        return found

    return Kind(f"a duration{' above zero' if above_zero else ''}, such as 15, 15s, 1m30s or PT15S", parse, ("8s", "PT9S"))


def one_of(*words: str, also: dict[str, str] | None = None) -> Kind:
    """`also` are other words for some of them."""
    others = also or {}

    def parse(text: str) -> str:
        lowered = text.lower()
        if others.get(lowered, lowered) not in words:
            raise ValueError
        return others.get(lowered, lowered)

    return Kind(words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}", parse, words)


def text(expected: str = "printable text", pattern: str = r".*", examples: tuple[str, ...] = ("one", "two")) -> Kind:
    def parse(written: str) -> str:
        if len(written) > LONGEST_TEXT or not written.isprintable() or not re.fullmatch(pattern, written):
            raise ValueError
        return written

    return Kind(expected, parse, examples)


def name(what: str = "a name") -> Kind:
    return text(f"{what} of 1 to 200 printable characters without blanks", r"\S{1,200}", ("another", "one-more"))


def path(what: str) -> Kind:
    return text(f"{what}: a path of printable characters", examples=("elsewhere", "/somewhere/else"))


def folder() -> Kind:
    """What is there is a folder, or comes later; a process may see less than its user."""

    def parse(written: str) -> str:
        if _mode(path("a folder").parse(written), stat.S_IFDIR) != stat.S_IFDIR:
            raise ValueError
        return written

    return Kind("a folder: a path of printable characters at which no file is", parse, ("elsewhere", "/somewhere/else"))


def file() -> Kind:
    def parse(written: str) -> str:
        if _mode(path("a file").parse(written), stat.S_IFREG) == stat.S_IFDIR:
            raise ValueError
        return written

    return Kind("a file: a path of printable characters at which no folder is", parse, ("elsewhere", "/somewhere/else"))


def _mode(written: str, unseen: int) -> int:
    """What is there; `unseen` where nothing is. Below a file nothing can be."""
    try:
        return stat.S_IFMT(Path(written).stat().st_mode)
    except NotADirectoryError:
        raise ValueError from None
    except OSError:
        return unseen


def address_or_file() -> Kind:
    address = url("an address", "http", "https", examples=("http://127.0.0.1:9181/keys",))

    def parse(written: str) -> str:
        kind = address if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", written) else file()
        return str(kind.parse(written))

    return Kind("an address such as https://login.example.com/keys, or a file", parse, ("https://login.example.com/keys", "keys.json"))


def host(*, with_port: bool = False) -> Kind:
    """`with_port`: a port may follow after a colon."""

    def parse(written: str) -> str:
        bare, _, number = written.rpartition(":") if with_port and written.count(":") == 1 else (written, "", "0")
        whole(0, 65535).parse(number)
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?", bare):
                raise
            # Numbers and dots are an address, or a mistake in one.
            if re.fullmatch(r"[0-9.]+", bare) or any(len(label) > 63 for label in bare.split(".")):
                raise
        return written

    return Kind("a host name or an IP address", parse, ("localhost", "127.0.0.2"))


def url(expected: str, *schemes: str, examples: tuple[str, ...], needs_host: bool = True) -> Kind:
    """An address with one of these schemes; without any, with any at all."""

    def parse(written: str) -> str:
        scheme, found, rest = written.partition("://")
        if not found or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or not written.isprintable() or " " in written:
            raise ValueError
        if schemes and scheme not in schemes:
            raise ValueError
        if needs_host and not rest.strip("/?#"):
            raise ValueError
        if scheme in ("http", "https") and not urlsplit(written).hostname:
            raise ValueError
        # Several hosts, as PostgreSQL and Sentinel write them, are theirs to read.
        if "," not in rest and not rest.startswith("%") and urlsplit(written).port == 0:
            raise ValueError
        return written

    return Kind(expected, parse, examples)


def rate() -> Kind:
    """As `limits` reads them."""
    pattern = r"\s*[1-9]\d{0,8}\s*(/|per)\s*([1-9]\d{0,5}\s*)?(second|minute|hour|day)s?\s*"
    return text("a number per time, such as 10/minute or 5 per 30 second", pattern, ("10/minute", "20/hour"))


def schema() -> Kind:
    """One of PostgreSQL's that is the engine's alone."""

    def parse(written: str) -> str:
        if not written or not written.isprintable() or len(written.encode()) > 63:
            raise ValueError
        if written.lower() in ("public", "information_schema") or written.lower().startswith("pg_"):
            raise ValueError
        return written

    expected = "the name of a PostgreSQL schema of the engine's own (63 bytes at most; not public), such as orchestrator"
    return Kind(expected, parse, ("workflows", "engine_2"))


def listed(item: Kind, what: str, *, most: int = 1_000) -> Kind:
    """One or several, divided by commas: commas alone are a mistake, and never nothing."""

    def parse(written: str) -> tuple[Any, ...]:
        found = tuple(item.parse(part.strip()) for part in written.split(",") if part.strip())
        if not 0 < len(found) <= most:
            raise ValueError
        return found

    return Kind(f"{what}, divided by commas", parse, tuple(",".join(item.examples[:count]) for count in (1, 2)))


def modules() -> Kind:
    item = text("a module", r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", ("shop", "shop.workflows"))
    return listed(item, "names of packages or modules")


def places() -> Kind:
    """Hosts, *.suffixes and networks, as the egress policy compares them."""

    def parse(written: str) -> str:
        if "/" in written:
            return str(ipaddress.ip_network(written, strict=False))
        try:
            return str(ipaddress.ip_address(written))
        except ValueError:
            if not re.fullmatch(r"[A-Za-z0-9*?_-]+(\.[A-Za-z0-9*?_-]+)*\.?", written):
                raise
        return written.lower()

    return listed(Kind("a host", parse, ("*.example.org", "10.0.0.0/8")), "hosts, *.suffixes and networks")


def keys() -> Kind:
    """Fernet's: 32 bytes each."""

    def parse(written: str) -> str:
        try:
            found = base64.urlsafe_b64decode(written)
        except (binascii.Error, ValueError):
            raise ValueError from None
        if len(found) != 32 or not re.fullmatch(r"[A-Za-z0-9_-]{43}=", written):
            raise ValueError
        return written

    made = tuple(base64.urlsafe_b64encode(bytes([letter]) * 32).decode() for letter in b"ab")
    expected = 'keys of 32 bytes in URL-safe base64 ("orchestrator new-key" makes one)'
    return listed(Kind("a key", parse, made), expected)
