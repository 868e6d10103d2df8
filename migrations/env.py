"""How Alembic reaches the database: by the URL the caller hands over, never by one of its own."""

from alembic import context
from sqlalchemy import create_engine

from orchestrator.store.schema import metadata


def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None
    engine = create_engine(url)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
