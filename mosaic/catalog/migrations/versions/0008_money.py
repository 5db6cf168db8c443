"""What models cost, a version for each change, and budgets."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "price",
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("model", sa.String(400), nullable=False),
        sa.Column("input_nano_dollars_per_million", sa.BigInteger, nullable=False),
        sa.Column("cached_input_nano_dollars_per_million", sa.BigInteger, nullable=False),
        sa.Column("output_nano_dollars_per_million", sa.BigInteger, nullable=False),
        sa.Column("gpu_second_nano_dollars", sa.BigInteger, nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_price"),
    )
    op.create_table(
        "budget",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("amount_nano_dollars", sa.BigInteger, nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("scope", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_budget"),
        sa.UniqueConstraint("name", name="uq_budget_name"),
    )
