"""Celery's consumer, which outlives the loss of Redis in whatever state that finds its channels.

When the connection is lost, Celery 5.7 closes it twice: first with what hangs on it, then the rest. In kombu 5.7 a channel
of Redis whose closing fails keeps its siblings from being closed, and closing those later, when their transport is taken
apart already, raises `AttributeError`, which ends the worker. So each channel is closed here before, by itself.
"""

from __future__ import annotations

import contextlib
from typing import Any

from celery.worker import consumer
from kombu.transport import virtual


class Consumer(consumer.Consumer):  # type: ignore[misc]
    def on_connection_error_after_connected(self, exc: Exception) -> None:
        if self.connection is not None:
            close_channels(self.connection)
        super().on_connection_error_after_connected(exc)


def close_channels(connection: Any) -> None:
    transport = connection.transport
    if not isinstance(transport, virtual.Transport):
        return
    for channel in [*transport.channels, connection._default_channel]:
        for _ in range(2):  # a channel that waits for a message is freed of that by the first attempt
            if channel is not None and not channel.closed:
                with contextlib.suppress(Exception):  # nobody answers: that is why it is closed
                    channel.close()
