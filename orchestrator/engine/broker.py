"""How long the broker's queues are: asked only when something seems lost."""

from __future__ import annotations

import logging

from celery import Celery
from kombu.exceptions import OperationalError

logger = logging.getLogger("orchestrator.broker")


def depth(app: Celery, queue: str) -> int | None:
    """Messages that wait in a queue; None when the broker does not say, and then nothing is concluded."""
    connection = app.connection_for_read()
    try:
        with connection:
            connection.ensure_connection(max_retries=1, timeout=2)
            channel = connection.default_channel
            client = getattr(channel, "client", None)
            if client is not None and hasattr(client, "llen"):
                return int(client.llen(queue))
            return int(channel.queue_declare(queue, passive=True).message_count)
    except (OperationalError, OSError) as error:
        logger.warning("the broker does not answer: %s", error)
        return None
    except connection.channel_errors:
        return 0
