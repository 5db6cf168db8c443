"""The tables of the catalog's database, as SQLAlchemy sees them; `migrations/` brings a database to this shape."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no zone, so it is put back on reading. Naive times are a bug of ours."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        assert value is None or value.tzinfo is not None, "times in the catalog carry a zone"
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_LIVE = sa.text("deleted_at IS NULL")

securable = sa.Table(
    "securable",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),  # metastore (the root), catalog, schema, table, ...
    sa.Column("parent_id", sa.String(64), sa.ForeignKey("securable.id"), index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("full_name", sa.String(800), nullable=False),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("properties", sa.JSON, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("config_version", sa.Integer, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("created_by", sa.String(255), nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
    sa.Column("updated_by", sa.String(255)),  # none: nobody has changed it, or not through a surface that knows who
    sa.Column("deleted_at", UtcTime),
    sa.Column("purged_at", UtcTime),  # its data is gone from storage; the row stays for lineage and audit
    sa.Column("row_version", sa.Integer, nullable=False, server_default="1"),  # grows with every change of the row
    # A name may be taken again after its bearer was deleted; ids are never reused.
    sa.Index("uq_securable_live_name", "kind", "full_name", unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE),
)

model_version = sa.Table(
    "model_version",
    metadata,
    sa.Column("model_id", sa.String(64), sa.ForeignKey("securable.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("base_model", sa.Text),
    sa.Column("run_id", sa.String(64), index=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("checksums", sa.JSON, nullable=False),
    sa.Column("status", sa.String(32), nullable=False, server_default="READY"),  # or PENDING_REGISTRATION
    sa.Column("comment", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("created_by", sa.String(255)),
    sa.Column("updated_at", UtcTime),
    sa.Column("updated_by", sa.String(255)),
    sa.Column("deleted_at", UtcTime),  # the number is not given again, and lineage still leads to it
)

model_alias = sa.Table(
    "model_alias",
    metadata,
    sa.Column("model_id", sa.String(64), primary_key=True),
    sa.Column("alias", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.ForeignKeyConstraint(["model_id", "version"], ["model_version.model_id", "model_version.version"]),
)

model_alias_event = sa.Table(
    "model_alias_event",
    metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("model_id", sa.String(64), sa.ForeignKey("securable.id"), nullable=False),
    sa.Column("alias", sa.String(255), nullable=False),
    sa.Column("version", sa.Integer),  # none: the alias was removed
    sa.Column("principal", sa.String(255), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Index("ix_model_alias_event_asked", "model_id", "alias", "at"),
)

endpoint_config = sa.Table(
    "endpoint_config",
    metadata,
    sa.Column("endpoint_id", sa.String(64), sa.ForeignKey("securable.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),  # pending, live, failed or replaced
    sa.Column("pinned", sa.JSON, nullable=False),  # by model as the config names it: the exact version
    sa.Column("reason", sa.Text),  # why it has failed
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("created_by", sa.String(255), nullable=False),
    sa.Column("decided_at", UtcTime),  # when it was pending no more, or live no more
)

token = sa.Table(
    "token",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("secret_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("principal", sa.String(255), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("is_admin", sa.Boolean, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime),
    sa.Column("revoked_at", UtcTime),
    sa.Column("last_used_at", UtcTime),
    sa.Column("scopes", sa.JSON, nullable=False, server_default='["all-apis"]'),
    sa.Column("parent_id", sa.String(64), index=True),  # the token that it was made with; none: made in process
)

tag = sa.Table(
    "tag",
    metadata,
    sa.Column("securable_id", sa.String(64), sa.ForeignKey("securable.id"), primary_key=True),
    sa.Column("version", sa.String(16), primary_key=True),  # of a model or prompt; empty: the securable's own
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("set_by", sa.String(255), nullable=False),
    sa.Column("set_at", UtcTime, nullable=False),
    sa.Index("ix_tag_key", "key"),
)

secret = sa.Table(
    "secret",
    metadata,
    sa.Column("securable_id", sa.String(64), sa.ForeignKey("securable.id"), primary_key=True),
    sa.Column("ciphertext", sa.Text, nullable=False),  # by a key that is not in the database
    sa.Column("set_at", UtcTime, nullable=False),
)

principal = sa.Table(
    "principal",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),  # user, service, group
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("created_by", sa.String(255), nullable=False),
)

group_member = sa.Table(
    "group_member",
    metadata,
    # In this order, since a check goes from the member up to its groups.
    sa.Column("member", sa.String(255), sa.ForeignKey("principal.name"), primary_key=True),
    sa.Column("group_name", sa.String(255), sa.ForeignKey("principal.name"), primary_key=True, index=True),
    sa.Column("added_by", sa.String(255), nullable=False),
    sa.Column("added_at", UtcTime, nullable=False),
)

privilege_grant = sa.Table(
    "privilege_grant",
    metadata,
    sa.Column("securable_id", sa.String(64), sa.ForeignKey("securable.id"), primary_key=True),
    sa.Column("principal", sa.String(255), sa.ForeignKey("principal.name"), primary_key=True, index=True),
    sa.Column("privilege", sa.String(64), primary_key=True),
    sa.Column("granted_by", sa.String(255), nullable=False),
    sa.Column("granted_at", UtcTime, nullable=False),
)

# The columns of Databricks' system.access.audit; its structs are flat here.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(64), nullable=False, unique=True),
    sa.Column("event_time", UtcTime, nullable=False),
    sa.Column("event_date", sa.Date, nullable=False),
    sa.Column("service_name", sa.String(64), nullable=False),
    sa.Column("action_name", sa.String(64), nullable=False),
    sa.Column("user_identity_email", sa.String(255), nullable=False),
    sa.Column("token_id", sa.String(64)),
    sa.Column("request_id", sa.String(64)),
    sa.Column("request_params", sa.JSON, nullable=False),
    sa.Column("response_status_code", sa.Integer, nullable=False),
    sa.Column("response_error_message", sa.Text),
    sa.Column("source_ip_address", sa.String(64)),
    sa.Column("user_agent", sa.Text),
)

run = sa.Table(
    "run",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("principal", sa.String(255), nullable=False),
    sa.Column("params", sa.JSON, nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("mlflow_run_id", sa.String(64)),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("finished_at", UtcTime),
)

run_edge = sa.Table(
    "run_edge",
    metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(64), sa.ForeignKey("run.id"), nullable=False, index=True),
    sa.Column("direction", sa.String(8), nullable=False),  # input, output
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("name", sa.String(800), nullable=False),
    sa.Column("version", sa.BigInteger),
    sa.Column("detail", sa.JSON(none_as_null=True)),
    sa.Column("securable_id", sa.String(64)),  # of what bore the name when this was noted; none: nothing did
    sa.Index("ix_run_edge_asked", "direction", "kind", "name", "version"),
)

# A price is never changed: another version is valid from a time on.
price = sa.Table(
    "price",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.String(400), nullable=False),  # or a pattern of models, with *
    sa.Column("input_nano_dollars_per_million", sa.BigInteger, nullable=False),
    sa.Column("cached_input_nano_dollars_per_million", sa.BigInteger, nullable=False),
    sa.Column("output_nano_dollars_per_million", sa.BigInteger, nullable=False),
    sa.Column("gpu_second_nano_dollars", sa.BigInteger, nullable=False),
    sa.Column("valid_from", UtcTime, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("created_by", sa.String(255), nullable=False),
)

budget = sa.Table(
    "budget",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("amount_nano_dollars", sa.BigInteger, nullable=False),
    sa.Column("period", sa.String(16), nullable=False),  # day, month
    sa.Column("scope", sa.JSON, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("created_by", sa.String(255), nullable=False),
)

revision = sa.Table(
    "revision",
    metadata,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),  # always 1
    sa.Column("number", sa.BigInteger, nullable=False),
)
