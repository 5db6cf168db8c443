"""Endpoints have numbered configurations, of which one is live."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "endpoint_config",
        sa.Column("endpoint_id", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("pinned", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("endpoint_id", "version", name="pk_endpoint_config"),
        sa.ForeignKeyConstraint(["endpoint_id"], ["securable.id"], name="fk_endpoint_config_endpoint_id_securable"),
    )
    op.create_index("ix_endpoint_config_state", "endpoint_config", ["state"])
    # What an endpoint had until now is live; of those before it nothing is known.
    op.execute(
        """
        INSERT INTO endpoint_config (endpoint_id, version, config, pinned, state, created_at, created_by)
        SELECT id, config_version, spec, '{}', 'live', updated_at, COALESCE(updated_by, created_by)
        FROM securable WHERE kind = 'endpoint'
        """
    )
