"""The addresses to which proxies send their requests."""

import re
from urllib.parse import urlsplit

TARGET = re.compile(r"https?://[^/\s]+(/\S*)?")


def is_parsable(target: str) -> bool:
    """Whether an address has a host and a port that can be told, whatever they are."""
    try:
        _ = (urlsplit(target).hostname, urlsplit(target).port)
    except ValueError:
        return False
    return True


def is_target(given: object) -> bool:
    """Whether requests can be sent there."""
    return isinstance(given, str) and TARGET.fullmatch(given) is not None and is_parsable(given)
