"""Etags, tags, secrets of connections, scopes of tokens; where an audited request came from."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.add_column("securable", sa.Column("purged_at", time))
    op.add_column("securable", sa.Column("row_version", sa.Integer, nullable=False, server_default="1"))
    op.add_column("token", sa.Column("scopes", sa.JSON, nullable=False, server_default='["all-apis"]'))
    op.add_column("audit", sa.Column("source_ip_address", sa.String(64)))
    op.add_column("audit", sa.Column("user_agent", sa.Text))
    op.create_table(
        "tag",
        sa.Column("securable_id", sa.String(64), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("set_by", sa.String(255), nullable=False),
        sa.Column("set_at", time, nullable=False),
        sa.PrimaryKeyConstraint("securable_id", "version", "key", name="pk_tag"),
        sa.ForeignKeyConstraint(["securable_id"], ["securable.id"], name="fk_tag_securable_id"),
    )
    op.create_index("ix_tag_key", "tag", ["key"])
    op.create_table(
        "secret",
        sa.Column("securable_id", sa.String(64), nullable=False),
        sa.Column("ciphertext", sa.Text, nullable=False),
        sa.Column("set_at", time, nullable=False),
        sa.PrimaryKeyConstraint("securable_id", name="pk_secret"),
        sa.ForeignKeyConstraint(["securable_id"], ["securable.id"], name="fk_secret_securable_id"),
    )
