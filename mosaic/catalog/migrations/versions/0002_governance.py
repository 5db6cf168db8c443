"""Principals, groups, grants and audit; the metastore as the root above the catalogs."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from mosaic.ids import new_id

revision = "0002"
down_revision = "0001"

_SEEDED = {"admins": "group", "users": "group", "admin": "user", "system": "service"}


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    _create_principal_tables(time)
    op.create_table(
        "privilege_grant",
        sa.Column("securable_id", sa.String(64), nullable=False),
        sa.Column("principal", sa.String(255), nullable=False),
        sa.Column("privilege", sa.String(64), nullable=False),
        sa.Column("granted_by", sa.String(255), nullable=False),
        sa.Column("granted_at", time, nullable=False),
        sa.PrimaryKeyConstraint("securable_id", "principal", "privilege", name="pk_privilege_grant"),
        sa.ForeignKeyConstraint(["securable_id"], ["securable.id"], name="fk_privilege_grant_securable_id"),
        sa.ForeignKeyConstraint(["principal"], ["principal.name"], name="fk_privilege_grant_principal"),
    )
    op.create_index("ix_privilege_grant_principal", "privilege_grant", ["principal"])
    _create_audit_table(time)
    now = datetime.now(UTC)
    _fill_principals(now)
    _put_metastore_above_catalogs(now)


def _create_principal_tables(time: sa.DateTime) -> None:
    op.create_table(
        "principal",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_principal"),
    )
    op.create_table(
        "group_member",
        sa.Column("member", sa.String(255), nullable=False),
        sa.Column("group_name", sa.String(255), nullable=False),
        sa.Column("added_by", sa.String(255), nullable=False),
        sa.Column("added_at", time, nullable=False),
        sa.PrimaryKeyConstraint("member", "group_name", name="pk_group_member"),
        sa.ForeignKeyConstraint(["member"], ["principal.name"], name="fk_group_member_member"),
        sa.ForeignKeyConstraint(["group_name"], ["principal.name"], name="fk_group_member_group_name"),
    )
    op.create_index("ix_group_member_group_name", "group_member", ["group_name"])


def _create_audit_table(time: sa.DateTime) -> None:
    op.create_table(
        "audit",
        sa.Column("sequence", sa.Integer, nullable=False, autoincrement=True),
        sa.Column("event_id", sa.String(64), nullable=False),
        sa.Column("event_time", time, nullable=False),
        sa.Column("event_date", sa.Date, nullable=False),
        sa.Column("service_name", sa.String(64), nullable=False),
        sa.Column("action_name", sa.String(64), nullable=False),
        sa.Column("user_identity_email", sa.String(255), nullable=False),
        sa.Column("token_id", sa.String(64)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("request_params", sa.JSON, nullable=False),
        sa.Column("response_status_code", sa.Integer, nullable=False),
        sa.Column("response_error_message", sa.Text),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit"),
        sa.UniqueConstraint("event_id", name="uq_audit_event_id"),
    )


def _fill_principals(now: datetime) -> None:
    """Whoever has a token or owns something is a principal from now on."""
    connection = op.get_bind()
    kinds = dict(_SEEDED)
    token = sa.table("token", sa.column("id"), sa.column("principal"), sa.column("kind"))
    for name, kind in connection.execute(sa.select(token.c.principal, token.c.kind).order_by(token.c.id)):
        kinds.setdefault(name, kind)
    securable = sa.table("securable", sa.column("owner"))
    for name in connection.execute(sa.select(securable.c.owner).distinct()).scalars():
        kinds.setdefault(name, "user")
    time = sa.DateTime(timezone=True)
    principal = sa.table(
        "principal",
        sa.column("name", sa.String),
        sa.column("kind", sa.String),
        sa.column("active", sa.Boolean),
        sa.column("created_at", time),
        sa.column("created_by", sa.String),
    )
    common = {"active": True, "created_at": now, "created_by": "system"}
    op.bulk_insert(principal, [{"name": name, "kind": kind, **common} for name, kind in kinds.items()])
    group_member = sa.table(
        "group_member",
        sa.column("member", sa.String),
        sa.column("group_name", sa.String),
        sa.column("added_by", sa.String),
        sa.column("added_at", time),
    )
    op.bulk_insert(group_member, [{"member": "admin", "group_name": "admins", "added_by": "system", "added_at": now}])


def _put_metastore_above_catalogs(now: datetime) -> None:
    connection = op.get_bind()
    time = sa.DateTime(timezone=True)
    securable = sa.table(
        "securable",
        *(sa.column(name, sa.String) for name in ("id", "kind", "parent_id", "name", "full_name", "owner")),
        *(sa.column(name, sa.String) for name in ("comment", "created_by")),
        *(sa.column(name, sa.JSON) for name in ("properties", "spec")),
        sa.column("config_version", sa.Integer),
        *(sa.column(name, time) for name in ("created_at", "updated_at")),
    )
    metastore_id = new_id("sec")
    root = {"id": metastore_id, "kind": "metastore", "name": "metastore", "full_name": "metastore", "owner": "admins"}
    empty: dict[str, object] = {"parent_id": None, "comment": "", "properties": {}, "spec": {}, "config_version": 1}
    made = {"created_at": now, "created_by": "system", "updated_at": now}
    op.bulk_insert(securable, [{**root, **empty, **made}])
    connection.execute(securable.update().where(securable.c.kind == "catalog").values(parent_id=metastore_id))
