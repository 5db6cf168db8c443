"""What alembic runs for every command, in the transaction that `mosaic.catalog.migrate` hands in."""

from alembic import context

from mosaic.catalog.schema import metadata

connection = context.config.attributes["connection"]
# Batch mode rebuilds a table where SQLite cannot alter it; PostgreSQL alters in place.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
