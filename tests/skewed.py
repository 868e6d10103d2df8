"""Named among the workflows of a worker: its statements take `now()` from the engine's schema before PostgreSQL's own."""

from orchestrator.store import connection

connection.SEARCH_PATH = "{}, pg_catalog"
