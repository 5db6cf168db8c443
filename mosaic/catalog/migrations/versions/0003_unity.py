"""Model versions that are being uploaded, described and deleted; who changed a securable last."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.add_column("securable", sa.Column("updated_by", sa.String(255)))
    # What is there already was registered whole.
    op.add_column("model_version", sa.Column("status", sa.String(32), nullable=False, server_default="READY"))
    op.add_column("model_version", sa.Column("comment", sa.Text, nullable=False, server_default=""))
    op.add_column("model_version", sa.Column("created_by", sa.String(255)))
    op.add_column("model_version", sa.Column("updated_at", time))
    op.add_column("model_version", sa.Column("updated_by", sa.String(255)))
    op.add_column("model_version", sa.Column("deleted_at", time))
