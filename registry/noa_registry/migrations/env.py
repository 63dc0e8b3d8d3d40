"""What Alembic runs: the wanted revisions, on the connection and in the transaction of the caller."""

from alembic import context

from noa_registry.schema_upgrade import VERSION_TABLE
from noa_registry.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
