"""Tokens know which token they were made with."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # None for the tokens that are there: what they were made with was not written down.
    op.add_column("token", sa.Column("parent_id", sa.String(64)))
    op.create_index("ix_token_parent_id", "token", ["parent_id"])
