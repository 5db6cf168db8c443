"""The catalog: start reading here. Every method checks its input, then runs one transaction of small functions."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from mosaic.catalog import lineage, models, names, principals, securables, tables, tokens, values
from mosaic.catalog.audit import Audit
from mosaic.catalog.grants import Grants
from mosaic.catalog.namespaces import Catalogs, Schemas
from mosaic.catalog.principals import Principals
from mosaic.catalog.records import (
    AliasEvent,
    Endpoint,
    Index,
    LineageNode,
    Model,
    ModelVersion,
    Run,
    Schema,
    Table,
    Token,
)
from mosaic.catalog.registry import Registry
from mosaic.catalog.schema import revision
from mosaic.catalog.store import Store
from mosaic.errors import BadRequest, not_found
from mosaic.protocol import Principal


class Catalog:
    """What exists, whose it is, and where it came from.

    Safe for threads; several processes may open the same database. Pickles as its URL. Writes are durable when a method
    returns. All names are without regard to case. Who may do what is in `principals` and `grants`, what was changed and
    what was refused in `audit`.
    """

    def __init__(
        self, store: Store, url: str, *, serving_schema: str = "main.serving", now: Callable[[], datetime] | None = None
    ) -> None:
        self.url = url
        self.serving_schema = names.parse_schema(serving_schema)
        self._store = store
        self._now = now or _utc_now
        self.catalogs, self.schemas = Catalogs(store, self._now), Schemas(store, self._now)
        self.registry = Registry(store, self._now)
        self.audit = Audit(store)
        self.principals = Principals(store, self._now)
        self.grants = Grants(store, self._now, serving_schema=self.serving_schema)

    @classmethod
    def open(
        cls, url: str, *, serving_schema: str = "main.serving", now: Callable[[], datetime] | None = None
    ) -> "Catalog":
        """Open the database at `url`, made or migrated if needed; `sqlite:////absolute/path.db` or `postgresql+...`.

        `serving_schema` holds the endpoints that are named by one word. Raises BadRequest for a wrong URL, Conflict
        for a database that a newer version has written, Unavailable if it cannot be reached.
        """
        names.parse_schema(serving_schema)
        return cls(Store(url), url, serving_schema=serving_schema, now=now)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.url, self.serving_schema))

    def close(self) -> None:
        """Give the idle connections back."""
        self._store.close()

    def revision(self) -> int:
        """A number that grows with every write, so that who keeps a copy can ask cheaply whether it is old."""
        with self._store.read() as connection:
            return int(connection.execute(revision.select()).one().number)

    # Schemas and tables

    def ensure_schema(self, name: str, *, owner: str = "admin") -> Schema:
        """The schema, made with its catalog if it is not there; catalog `system` only for the owner `system`."""
        name = names.parse_schema(name)
        names.check_principal(owner)
        with self._store.read() as connection:
            row = securables.find(connection, "schema", name)
            if row is not None:
                return securables.as_schema(row)
        with self._store.write() as connection:
            return securables.ensure_schema(connection, name, owner=owner, now=self._now())

    def list_schemas(self) -> list[Schema]:
        """Every schema, by name."""
        with self._store.read() as connection:
            return [securables.as_schema(row) for row in securables.list_rows(connection, "schema")]

    def create_table(
        self,
        name: str,
        location: str,
        *,
        columns: Sequence[Mapping[str, Any]],
        primary_key: str | None,
        owner: str,
        comment: str = "",
        properties: Mapping[str, str] | None = None,
    ) -> Table:
        """Register a table whose schema exists; raises AlreadyExists, NotFound."""
        name = names.parse_object(name, "table")
        names.check_principal(owner)
        spec = _table_spec(location, columns, primary_key)
        described = {"comment": comment, "properties": values.texts(properties or {}, "properties"), "spec": spec}
        with self._store.write() as connection:
            securables.insert(connection, "table", name, owner=owner, now=self._now(), **described)
            return tables.as_table(securables.get(connection, "table", name))

    def update_table(
        self,
        name: str,
        *,
        columns: Sequence[Mapping[str, Any]] | None = None,
        comment: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> Table:
        """Change what is given: columns and properties as a whole. Raises NotFound."""
        name = names.parse_object(name, "table")
        changed: dict[str, Any] = {} if comment is None else {"comment": comment}
        if properties is not None:
            changed["properties"] = values.texts(properties, "properties")
        with self._store.write() as connection:
            row = securables.get(connection, "table", name, lock=True)
            if columns is not None:
                changed["spec"] = _table_spec(row.spec["location"], columns, row.spec["primary_key"])
            return tables.as_table(securables.update(connection, row, now=self._now(), **changed))

    def get_table(self, name: str) -> Table:
        """Raises NotFound."""
        name = names.parse_object(name, "table")
        with self._store.read() as connection:
            return tables.as_table(securables.get(connection, "table", name))

    def get_table_by_id(self, table_id: str) -> Table:
        """Raises NotFound."""
        with self._store.read() as connection:
            return tables.as_table(securables.get_by_id(connection, "table", table_id))

    def find_table(self, name: str) -> Table | None:
        """None if there is no such table."""
        name = names.parse_object(name, "table")
        with self._store.read() as connection:
            row = securables.find(connection, "table", name)
            return None if row is None else tables.as_table(row)

    def list_tables(self, schema: str | None = None) -> list[Table]:
        """By name; of one schema if given, which must exist."""
        with self._store.read() as connection:
            return [tables.as_table(row) for row in securables.list_rows(connection, "table", _schema(schema))]

    def delete_table(self, name: str) -> None:
        """Take the table's name away; its files stay. Raises NotFound, and Conflict while an index is over it."""
        name = names.parse_object(name, "table")
        with self._store.write() as connection:
            tables.check_unused(connection, name)
            securables.delete(connection, "table", name, now=self._now())

    # Models

    def create_model(self, name: str, *, owner: str, comment: str = "") -> Model:
        """A name for versions to come; raises AlreadyExists, NotFound for its schema."""
        name = names.parse_object(name, "model")
        names.check_principal(owner)
        with self._store.write() as connection:
            securables.insert(connection, "model", name, owner=owner, now=self._now(), comment=comment)
            return models.as_models(connection, [securables.get(connection, "model", name)])[0]

    def get_model(self, name: str) -> Model:
        """Raises NotFound."""
        name = names.parse_object(name, "model")
        with self._store.read() as connection:
            return models.as_models(connection, [securables.get(connection, "model", name)])[0]

    def find_model(self, name: str) -> Model | None:
        """None if there is no such model."""
        name = names.parse_object(name, "model")
        with self._store.read() as connection:
            row = securables.find(connection, "model", name)
            return None if row is None else models.as_models(connection, [row])[0]

    def list_models(self, schema: str | None = None) -> list[Model]:
        """By name; of one schema if given, which must exist."""
        with self._store.read() as connection:
            return models.as_models(connection, securables.list_rows(connection, "model", _schema(schema)))

    def delete_model(self, name: str) -> None:
        """Take the model's name away; its versions stay for lineage, its files too. Raises NotFound."""
        with self._store.write() as connection:
            securables.delete(connection, "model", names.parse_object(name, "model"), now=self._now())

    def create_model_version(
        self,
        name: str,
        *,
        source: str,
        kind: str,
        base_model: str | None = None,
        run_id: str | None = None,
        spec: Mapping[str, Any] | None = None,
        checksums: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """The next version of a model that exists; versions count 1, 2, 3 without gaps, whoever registers at once."""
        name = names.parse_object(name, "model")
        names.check_edge_kind(kind, "kind")
        if not source:
            raise BadRequest(f"a version of model {name!r} needs a source, the address of its folder", param="source")
        columns: dict[str, Any] = {"source": source, "kind": kind, "base_model": base_model, "run_id": run_id}
        columns |= {"spec": values.json_object(spec or {}, "spec"), "checksums": values.checksums(checksums or {})}
        with self._store.write() as connection:
            if run_id is not None:
                lineage.get(connection, run_id)
            return models.add_version(connection, name, now=self._now(), **columns)

    def get_model_version(self, reference: str) -> ModelVersion:
        """By number (`main.ml.bot/3`) or by alias (`main.ml.bot@champion`); raises NotFound with what exists."""
        asked = names.parse_model_version(reference)
        with self._store.read() as connection:
            return models.get_version(connection, asked)

    def list_model_versions(self, name: str) -> list[ModelVersion]:
        """Oldest first; raises NotFound."""
        with self._store.read() as connection:
            return models.list_versions(connection, names.parse_object(name, "model"))

    def set_alias(self, model: str, alias: str, version: int, *, principal: str = "admin") -> None:
        """Point an alias at a version that exists."""
        self._set_alias(model, alias, names.parse_number(str(version), model), principal)

    def delete_alias(self, model: str, alias: str, *, principal: str = "admin") -> None:
        """Remove an alias; its history stays. Raises NotFound."""
        self._set_alias(model, alias, None, principal)

    def alias_history(self, model: str, alias: str | None = None) -> list[AliasEvent]:
        """Every change of a model's aliases, or of one, oldest first."""
        with self._store.read() as connection:
            asked = None if alias is None else names.parse_alias(alias)
            return models.alias_history(connection, names.parse_object(model, "model"), asked)

    def alias_at(self, model: str, alias: str, moment: datetime) -> ModelVersion:
        """Which version an alias pointed at in a past moment; raises NotFound if at none."""
        moment = values.aware(moment, "moment")
        with self._store.read() as connection:
            return models.alias_at(connection, names.parse_object(model, "model"), names.parse_alias(alias), moment)

    # Indexes and endpoints

    def put_index(
        self, name: str, *, table: str, spec: Mapping[str, Any], owner: str, expected_config_version: int | None = None
    ) -> Index:
        """Make or change an index over a table that exists; only a real change makes a new config version."""
        name, table = names.parse_object(name, "index"), names.parse_object(table, "table")
        names.check_principal(owner)
        wanted = {"table": table, "spec": values.json_object(spec, "spec")}
        with self._store.write() as connection:
            securables.get(connection, "table", table)
            return tables.as_index(
                tables.put(
                    connection,
                    "index",
                    name,
                    spec=wanted,
                    owner=owner,
                    expected=expected_config_version,
                    now=self._now(),
                )
            )

    def get_index(self, name: str) -> Index:
        """Raises NotFound."""
        with self._store.read() as connection:
            return tables.as_index(securables.get(connection, "index", names.parse_object(name, "index")))

    def list_indexes(self, schema: str | None = None) -> list[Index]:
        """By name; of one schema if given, which must exist."""
        with self._store.read() as connection:
            return [tables.as_index(row) for row in securables.list_rows(connection, "index", _schema(schema))]

    def delete_index(self, name: str) -> None:
        """Raises NotFound."""
        with self._store.write() as connection:
            securables.delete(connection, "index", names.parse_object(name, "index"), now=self._now())

    def put_endpoint(
        self, name: str, *, config: Mapping[str, Any], owner: str, expected_config_version: int | None = None
    ) -> Endpoint:
        """Make or change an endpoint; a name of one word stands in the serving schema, which is made if needed."""
        full = self._endpoint_name(name)
        names.check_principal(owner)
        wanted = values.json_object(config, "config")
        now = self._now()
        with self._store.write() as connection:
            if full.rpartition(".")[0] == self.serving_schema:
                securables.ensure_schema(connection, self.serving_schema, owner=owner, now=now)
            row = tables.put(
                connection, "endpoint", full, spec=wanted, owner=owner, expected=expected_config_version, now=now
            )
            return tables.as_endpoint(row, self.serving_schema)

    def get_endpoint(self, name: str) -> Endpoint:
        """By its whole name, or by one word in the serving schema; raises NotFound with the names callers can write."""
        full = self._endpoint_name(name)
        with self._store.read() as connection:
            row = securables.find(connection, "endpoint", full)
            if row is None:
                there = [
                    tables.as_endpoint(other, self.serving_schema).served_name
                    for other in securables.list_rows(connection, "endpoint")
                ]
                raise not_found("endpoint", name, there, param="model")
            return tables.as_endpoint(row, self.serving_schema)

    def list_endpoints(self, schema: str | None = None) -> list[Endpoint]:
        """By name; of one schema if given, which must exist."""
        with self._store.read() as connection:
            rows = securables.list_rows(connection, "endpoint", _schema(schema))
            return [tables.as_endpoint(row, self.serving_schema) for row in rows]

    def delete_endpoint(self, name: str) -> None:
        """Raises NotFound."""
        with self._store.write() as connection:
            securables.delete(connection, "endpoint", self._endpoint_name(name), now=self._now())

    # Tokens

    def create_token(
        self,
        principal: str,
        *,
        kind: Literal["user", "service"] = "user",
        is_admin: bool = False,
        comment: str = "",
        expires_at: datetime | None = None,
    ) -> tuple[Token, str]:
        """A token and its secret `mosaic_...`, which is shown only here; a new name becomes a principal."""
        names.check_principal(principal, "principal")
        now = self._now()
        if kind not in ("user", "service"):
            raise BadRequest(f"kind {kind!r} of a token must be 'user' or 'service'", param="kind")
        if principal == names.SYSTEM_OWNER and kind != "service":
            raise BadRequest(f"principal {principal!r} is the platform's own; only a token of kind 'service' has it")
        if expires_at is not None and values.aware(expires_at, "expires_at") <= now:
            raise BadRequest(f"expires_at = {expires_at.isoformat()} is not in the future", param="expires_at")
        columns = {"principal": principal, "kind": kind, "is_admin": is_admin, "comment": comment}
        with self._store.write() as connection:
            principals.ensure(connection, principal, kind=kind, now=now)
            return tokens.create(connection, now=now, expires_at=expires_at, **columns)

    def check_token(self, secret: str) -> Principal:
        """Whose token it is; raises Unauthenticated if it is unknown, expired or revoked."""
        now = self._now()
        with self._store.read() as connection:
            row = tokens.check(connection, secret, now=now)
        if tokens.is_use_to_note(row, now):
            with self._store.write(counted=False) as connection:
                tokens.note_use(connection, row.id, now=now)
        return Principal(name=row.principal, kind=row.kind, is_admin=row.is_admin, token_id=row.id)

    def revoke_token(self, token_id: str) -> None:
        """Refuse a token from now on; again is fine. Raises NotFound."""
        with self._store.write() as connection:
            tokens.revoke(connection, token_id, now=self._now())

    def list_tokens(self) -> list[Token]:
        """All of them, also revoked and expired ones, oldest first."""
        with self._store.read() as connection:
            return tokens.list_all(connection)

    # Lineage

    def start_run(self, kind: str, name: str, *, principal: str, params: Mapping[str, Any] | None = None) -> str:
        """Write down that something starts which reads and makes things; its id `run_...`."""
        names.check_edge_kind(kind, "kind")
        names.check_principal(principal, "principal")
        columns = {
            "kind": kind,
            "name": name,
            "principal": principal,
            "params": values.json_object(params or {}, "params"),
        }
        with self._store.write() as connection:
            return lineage.start(connection, now=self._now(), **columns)

    def add_input(
        self, run_id: str, kind: str, name: str, version: int | None, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Write down what a running run read, at which version (None: it has none); again replaces the detail."""
        self._add_edge(run_id, "input", lineage.normalised(kind, name, version), detail)

    def add_output(
        self, run_id: str, kind: str, name: str, version: int | None, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Write down what a running run made, at which version; again replaces the detail."""
        self._add_edge(run_id, "output", lineage.normalised(kind, name, version), detail)

    def finish_run(
        self,
        run_id: str,
        status: Literal["finished", "failed", "cancelled"],
        mlflow_run_id: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """End a run; raises Conflict if it has ended before."""
        if status not in lineage.END_STATES:
            raise BadRequest(f"status {status!r} must be one of {list(lineage.END_STATES)}", param="status")
        columns = {"status": status, "mlflow_run_id": mlflow_run_id, "metrics": values.pack_metrics(metrics or {})}
        with self._store.write() as connection:
            lineage.finish(connection, run_id, now=self._now(), **columns)

    def get_run(self, run_id: str) -> Run:
        """With its inputs and outputs; raises NotFound."""
        with self._store.read() as connection:
            return lineage.get(connection, run_id)

    def list_runs(self, kind: str | None = None, status: str | None = None, limit: int = 100) -> list[Run]:
        """Newest first."""
        with self._store.read() as connection:
            return lineage.list_runs(connection, kind, status, limit)

    def runs_that_made(self, kind: str, name: str, version: int | None) -> list[Run]:
        """Oldest first; with version None those that made any version."""
        with self._store.read() as connection:
            return lineage.runs_with(connection, "output", lineage.normalised(kind, name, version))

    def runs_that_used(self, kind: str, name: str, version: int | None) -> list[Run]:
        """Oldest first; with version None those that read any version."""
        with self._store.read() as connection:
            return lineage.runs_with(connection, "input", lineage.normalised(kind, name, version))

    def trace(self, kind: str, name: str, version: int | None, *, max_depth: int = 100) -> LineageNode:
        """What something at a version was made from, and that from what, up to what no recorded run made."""
        if not 0 <= max_depth <= 100:
            raise BadRequest(f"max_depth = {max_depth} must be from 0 to 100", param="max_depth")
        with self._store.read() as connection:
            return lineage.trace(connection, lineage.normalised(kind, name, version), max_depth)

    def _set_alias(self, model: str, alias: str, version: int | None, principal: str) -> None:
        model, alias = names.parse_object(model, "model"), names.parse_alias(alias)
        names.check_principal(principal, "principal")
        with self._store.write() as connection:
            models.set_alias(connection, model, alias, version, principal=principal, now=self._now())

    def _add_edge(self, run_id: str, direction: str, thing: lineage.Thing, detail: Mapping[str, Any] | None) -> None:
        kept = None if detail is None else values.json_object(detail, "detail")
        with self._store.write() as connection:
            lineage.add_edge(connection, run_id, direction, thing, kept)

    def _endpoint_name(self, name: str) -> str:
        return names.parse_object(name if "." in name else f"{self.serving_schema}.{name}", "endpoint")


def _schema(schema: str | None) -> str | None:
    return None if schema is None else names.parse_schema(schema)


def _table_spec(location: str, columns: Sequence[Mapping[str, Any]], primary_key: str | None) -> dict[str, Any]:
    if not location:
        raise BadRequest("a table needs a location", param="location")
    spec = values.json_object({"location": location, "columns": list(columns), "primary_key": primary_key}, "columns")
    column_names = [column.get("name") for column in spec["columns"]]
    if primary_key is not None and primary_key not in column_names:
        raise BadRequest(f"primary_key {primary_key!r} is no column; there are {column_names}", param="primary_key")
    return spec


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _reopen(url: str, serving_schema: str) -> Catalog:
    return Catalog.open(url, serving_schema=serving_schema)
