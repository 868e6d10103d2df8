"""Streams of Redis stay bounded, and nobody loses what was not read: of what every group has done with, about so many entries are kept.

Entries are appended without a length; whoever appends asks now and then whether the stream is too long. A stream that must have a reader
(`is_read`) and has none yet keeps everything for it.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import redis

logger = logging.getLogger("orchestrator.streams")

EVERY = 100
"""Entries of one process between two looks at a stream."""

# The oldest entry that a group has not done with: the first that is pending, else the last that was read. From there on all stay,
# and if these are fewer than wanted, so many as are wanted.
_TRIM = """
local kept = tonumber(ARGV[1])
if redis.call('XLEN', KEYS[1]) <= kept then return 0 end
local function before(a, b)
    local am, as = string.match(a, '(%d+)-(%d+)')
    local bm, bs = string.match(b, '(%d+)-(%d+)')
    if tonumber(am) ~= tonumber(bm) then return tonumber(am) < tonumber(bm) end
    return tonumber(as) < tonumber(bs)
end
local needed
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local about = {}
    for i = 1, #group, 2 do about[group[i]] = group[i + 1] end
    local first = about['last-delivered-id']
    if about['pending'] > 0 then
        local oldest = redis.call('XPENDING', KEYS[1], about['name'])[2]
        if oldest and before(oldest, first) then first = oldest end
    end
    if not needed or before(first, needed) then needed = first end
end
if not needed and ARGV[2] == '1' then return 0 end
if needed and #redis.call('XREVRANGE', KEYS[1], '+', needed, 'COUNT', kept + 1) > kept then
    return redis.call('XTRIM', KEYS[1], 'MINID', '~', needed)
end
return redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', kept)
"""

_appended: dict[str, int] = {}
_lock = threading.Lock()


def trim(client: Any, stream: str, length: int, *, is_read: bool = False) -> int:
    """Gives how many entries went. A key of another type, or none, is left as it is."""
    if client.type(stream) not in ("stream", b"stream"):
        return 0
    return int(client.eval(_TRIM, 1, stream, length, int(is_read)))


def appended(client: Any, stream: str, length: int | None, number: int = 1, *, is_read: bool = False) -> None:
    """So many entries were appended here: trim, if it is time for that. Whether that can be done is not their affair."""
    if length is None:
        return
    with _lock:
        before = _appended.get(stream, EVERY - 1)
        _appended[stream] = before + number
    if (before + number) // EVERY > before // EVERY:
        try:
            trim(client, stream, length, is_read=is_read)
        except redis.RedisError as error:
            logger.warning("stream %s is not trimmed for now: %s", stream, error)
