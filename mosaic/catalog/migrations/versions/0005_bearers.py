"""Edges of lineage know which bearer of a name they mean."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("run_edge", sa.Column("securable_id", sa.String(64)))
    # A run that has ended meant what bore the name by then; one that goes on means what bears it now.
    op.execute(
        """
        UPDATE run_edge SET securable_id = (
            SELECT securable.id FROM securable, run
            WHERE securable.kind = run_edge.kind AND securable.full_name = run_edge.name AND run.id = run_edge.run_id
                AND (run.finished_at IS NULL OR securable.created_at <= run.finished_at)
            ORDER BY securable.created_at DESC LIMIT 1
        )
        """
    )
