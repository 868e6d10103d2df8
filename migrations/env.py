"""How Alembic reaches the database: by the connection the caller hands over, which sees the engine's schema, never by one of its own."""

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from orchestrator.store.schema import metadata


def run() -> None:
    given = context.config.attributes
    engine = create_engine("postgresql+psycopg://", creator=given["open"], poolclass=NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, version_table_schema=given["schema"])
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
