"""Securables, model versions with aliases, tokens, runs with their edges."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    live = sa.text("deleted_at IS NULL")
    op.create_table(
        "securable",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("parent_id", sa.String(64)),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("full_name", sa.String(800), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("properties", sa.JSON, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("config_version", sa.Integer, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("updated_at", time, nullable=False),
        sa.Column("deleted_at", time),
        sa.PrimaryKeyConstraint("id", name="pk_securable"),
        sa.ForeignKeyConstraint(["parent_id"], ["securable.id"], name="fk_securable_parent_id"),
    )
    op.create_index("ix_securable_parent_id", "securable", ["parent_id"])
    op.create_index(
        "uq_securable_live_name",
        "securable",
        ["kind", "full_name"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
    _create_model_tables(time)
    op.create_table(
        "token",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("principal", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("is_admin", sa.Boolean, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("expires_at", time),
        sa.Column("revoked_at", time),
        sa.Column("last_used_at", time),
        sa.PrimaryKeyConstraint("id", name="pk_token"),
        sa.UniqueConstraint("secret_sha256", name="uq_token_secret_sha256"),
    )
    _create_run_tables(time)
    numbers = op.create_table(
        "revision",
        sa.Column("only", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("only", name="pk_revision"),
    )
    op.bulk_insert(numbers, [{"only": 1, "number": 0}])


def _create_model_tables(time: sa.DateTime) -> None:
    op.create_table(
        "model_version",
        sa.Column("model_id", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("base_model", sa.Text),
        sa.Column("run_id", sa.String(64)),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("checksums", sa.JSON, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "version", name="pk_model_version"),
        sa.ForeignKeyConstraint(["model_id"], ["securable.id"], name="fk_model_version_model_id"),
    )
    op.create_index("ix_model_version_run_id", "model_version", ["run_id"])
    op.create_table(
        "model_alias",
        sa.Column("model_id", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("model_id", "alias", name="pk_model_alias"),
        sa.ForeignKeyConstraint(
            ["model_id", "version"],
            ["model_version.model_id", "model_version.version"],
            name="fk_model_alias_model_id_version",
        ),
    )
    op.create_table(
        "model_alias_event",
        sa.Column("sequence", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("model_id", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("principal", sa.String(255), nullable=False),
        sa.Column("at", time, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_model_alias_event"),
        sa.ForeignKeyConstraint(["model_id"], ["securable.id"], name="fk_model_alias_event_model_id"),
    )
    op.create_index("ix_model_alias_event_asked", "model_alias_event", ["model_id", "alias", "at"])


def _create_run_tables(time: sa.DateTime) -> None:
    op.create_table(
        "run",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("principal", sa.String(255), nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("mlflow_run_id", sa.String(64)),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("started_at", time, nullable=False),
        sa.Column("finished_at", time),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
    )
    op.create_table(
        "run_edge",
        sa.Column("sequence", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("direction", sa.String(8), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("name", sa.String(800), nullable=False),
        sa.Column("version", sa.BigInteger),
        sa.Column("detail", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("sequence", name="pk_run_edge"),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_run_edge_run_id"),
    )
    op.create_index("ix_run_edge_run_id", "run_edge", ["run_id"])
    op.create_index("ix_run_edge_asked", "run_edge", ["direction", "kind", "name", "version"])
