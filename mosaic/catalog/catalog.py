"""The catalog: start reading here. Every method checks its input, then runs one transaction of small functions."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mosaic.catalog import drops, lineage, models, names, principals, securables, tables, tokens, values
from mosaic.catalog.audit import ACCOUNTS_SERVICE, Audit, Change, change, of_securable
from mosaic.catalog.bearers import Bearer, list_bearers
from mosaic.catalog.budgets import Budgets
from mosaic.catalog.connections import Connections
from mosaic.catalog.endpoints import Endpoints
from mosaic.catalog.grants import Grants
from mosaic.catalog.identity import ALL_APIS, check_scopes, identify
from mosaic.catalog.namespaces import Catalogs, Schemas
from mosaic.catalog.objects import Securables, function_spec, volume_spec
from mosaic.catalog.policies import Policies
from mosaic.catalog.prices import Prices
from mosaic.catalog.principals import ADMIN, Caller, Principals, as_principal
from mosaic.catalog.prompts import Prompts
from mosaic.catalog.records import (
    AliasEvent,
    Dropped,
    Found,
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
from mosaic.catalog.search import search
from mosaic.catalog.store import Store, StoreSettings
from mosaic.catalog.tags import Tags, check_tags, set_tags
from mosaic.catalog.updates import update
from mosaic.errors import BadRequest, Conflict, PermissionDenied
from mosaic.protocol import Principal

_LONGEST_PATH = 500


class Catalog:
    """What exists, whose it is, and where it came from.

    Safe for threads; several processes may open the same database. Pickles as its URL. Writes are durable when a method
    returns. All names are without regard to case. Who may do what is in `principals` and `grants`, what was changed and
    what was refused in `audit`.
    """

    def __init__(
        self,
        store: Store,
        url: str,
        *,
        serving_schema: str = "main.serving",
        key_file: Path | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self.url = url
        self._key_file = key_file
        self.serving_schema = names.parse_schema(serving_schema)
        self._store = store
        self._now = now or _utc_now
        self.catalogs, self.schemas = Catalogs(store, self._now), Schemas(store, self._now)
        self.registry = Registry(store, self._now)
        self.audit = Audit(store, self._now)
        self.principals = Principals(store, self._now)
        self.grants = Grants(store, self._now, serving_schema=self.serving_schema)
        self.volumes = Securables(store, self._now, "volume", volume_spec)
        self.functions = Securables(store, self._now, "function", function_spec)
        self.agents = Securables(store, self._now, "agent", values.json_object)
        self.connections = Connections(store, self._now, key_file)
        self.prompts = Prompts(store, self._now)
        self.policies = Policies(store, self._now)
        self.tags = Tags(store, self._now)
        self.endpoints = Endpoints(store, self._now, self.serving_schema)
        self.prices = Prices(store, self._now)
        self.budgets = Budgets(store, self._now, self.endpoints.full_name)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        serving_schema: str = "main.serving",
        key_file: Path | None = None,
        store: StoreSettings | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> "Catalog":
        """Open the database at `url`, made or migrated if needed; `sqlite:////absolute/path.db` or `postgresql+...`.

        `serving_schema` holds the endpoints that are named by one word; the key in `key_file` (made if it is not there)
        encrypts the secrets of connections; `store` says how long to wait for the database. Raises BadRequest for a
        wrong URL, Conflict for a database that a newer version has written, Unavailable if it cannot be reached.
        """
        names.parse_schema(serving_schema)
        return cls(Store(url, store), url, serving_schema=serving_schema, key_file=key_file, now=now)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.url, self.serving_schema, self._key_file, self._store.settings))

    def close(self) -> None:
        """Give the idle connections back."""
        self._store.close()

    def revision(self) -> int:
        """A number that grows with every write, so that who keeps a copy can ask cheaply whether it is old."""
        with self._store.read() as connection:
            return int(connection.execute(revision.select()).one().number)

    # Schemas and tables

    def ensure_schema(self, name: str, *, owner: str = ADMIN, by: Caller | None = None) -> Schema:
        """The schema, made with its catalog if it is not there; catalog `system` only for the owner `system`."""
        name, caller = names.parse_schema(name), as_principal(by or owner)
        names.check_principal(owner)
        with self._store.read() as connection:
            row = securables.find(connection, "schema", name)
            if row is not None:
                return securables.as_schema(row)
        with self._change("createSchema", "schema", name, caller) as going:
            return securables.ensure_schema(going.connection, name, owner=owner, now=self._now())

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
        by: Caller | None = None,
    ) -> Table:
        """Register a table whose schema exists; raises AlreadyExists, NotFound."""
        name = names.parse_object(name, "table")
        names.check_principal(owner)
        spec = _table_spec(location, columns, primary_key)
        described: dict[str, Any] = {"comment": comment, "spec": spec}
        described["properties"] = values.texts(properties or {}, "properties")
        caller = as_principal(by or owner)
        with self._change("createTable", "table", name, caller) as going:
            stamped: dict[str, Any] = {"owner": owner, "created_by": caller.name, "now": self._now()}
            securables.insert(going.connection, "table", name, **stamped, **described)
            return tables.as_table(securables.get(going.connection, "table", name))

    def update_table(
        self,
        name: str,
        *,
        columns: Sequence[Mapping[str, Any]] | None = None,
        comment: str | None = None,
        properties: Mapping[str, str] | None = None,
        owner: str | None = None,
        by: Caller = ADMIN,
        expected_etag: str | None = None,
    ) -> Table:
        """Change what is given: columns and properties as a whole. Raises NotFound, StaleEtag."""
        name, caller = names.parse_object(name, "table"), as_principal(by)
        changed: dict[str, Any] = {} if comment is None else {"comment": comment}
        if properties is not None:
            changed["properties"] = values.texts(properties, "properties")
        with self._change("updateTable", "table", name, caller) as going:
            row = securables.get(going.connection, "table", name, lock=True)
            if columns is not None:
                changed["spec"] = _table_spec(row.spec["location"], columns, row.spec["primary_key"])
            now = self._now()
            return tables.as_table(update(going, row, expected_etag, owner=owner, by=caller, now=now, **changed))

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

    def delete_table(self, name: str, *, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the table's name away; `undrop` brings it back, until `data/retention.py` removes a managed one's files.

        Raises NotFound, StaleEtag, and Conflict while an index is over it.
        """
        name, caller = names.parse_object(name, "table"), as_principal(by)
        with self._change("deleteTable", "table", name, caller) as going:
            tables.check_unused(going.connection, name)
            self._delete(going, "table", name, caller, expected_etag)

    # Models

    def create_model(
        self,
        name: str,
        *,
        owner: str,
        comment: str = "",
        tags: Mapping[str, str] | None = None,
        by: Caller | None = None,
    ) -> Model:
        """A name for versions to come, with tags; raises AlreadyExists, NotFound for its schema."""
        name, caller = names.parse_object(name, "model"), as_principal(by or owner)
        names.check_principal(owner)
        check_tags(tags or {})
        with self._change("createRegisteredModel", "model", name, caller) as going:
            stamped: dict[str, Any] = {"owner": owner, "created_by": caller.name, "now": self._now()}
            made = securables.insert(going.connection, "model", name, comment=comment, **stamped)
            set_tags(going, made["id"], None, tags or {}, by=caller, now=stamped["now"])
            return models.as_models(going.connection, [securables.get(going.connection, "model", name)])[0]

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

    def delete_model(self, name: str, *, by: Caller = ADMIN) -> None:
        """Take the model's name away; its versions stay for lineage, its files too. Raises NotFound."""
        self.registry.delete_model(name, force=True, by=by)

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
        by: Caller = ADMIN,
    ) -> ModelVersion:
        """The next version of a model that exists; versions count 1, 2, 3 without gaps, whoever registers at once.

        It becomes an output of the run, if that is still running.
        """
        name, caller = names.parse_object(name, "model"), as_principal(by)
        names.check_edge_kind(kind, "kind")
        if not source:
            raise BadRequest(f"a version of model {name!r} needs a source, the address of its folder", param="source")
        columns: dict[str, Any] = {"source": source, "kind": kind, "base_model": base_model, "run_id": run_id}
        columns |= {"spec": values.json_object(spec or {}, "spec"), "checksums": values.checksums(checksums or {})}
        with self._change("createModelVersion", "model", name, caller) as going:
            run = None if run_id is None else lineage.get(going.connection, run_id)
            made = models.add_version(going.connection, name, now=self._now(), created_by=caller.name, **columns)
            if run is not None and run.status == "running":
                lineage.add_edge(
                    going.connection, run.run_id, "output", lineage.Thing("model", name, made.version), None
                )
            going.params["version"] = str(made.version)
            return made

    def get_model_version(self, reference: str) -> ModelVersion:
        """By number (`main.ml.bot/3`) or by alias (`main.ml.bot@champion`); raises NotFound with what exists."""
        asked = names.parse_model_version(reference)
        with self._store.read() as connection:
            return models.get_version(connection, asked)

    def list_model_versions(self, name: str) -> list[ModelVersion]:
        """Oldest first; raises NotFound."""
        with self._store.read() as connection:
            return models.list_versions(connection, names.parse_object(name, "model"))

    def set_alias(self, model: str, alias: str, version: int, *, principal: Caller = ADMIN) -> None:
        """Point an alias at a version that exists."""
        self._set_alias(model, alias, names.parse_number(str(version), model), principal)

    def delete_alias(self, model: str, alias: str, *, principal: Caller = ADMIN) -> None:
        """Remove an alias; its history stays. Raises NotFound."""
        self._set_alias(model, alias, None, principal)

    def alias_history(self, model: str, alias: str | None = None, *, at: datetime | None = None) -> list[AliasEvent]:
        """Every change of a model's aliases, or of one, oldest first.

        With `at` of the model that bore the name at that moment, also if it was dropped. Raises NotFound.
        """
        at = None if at is None else values.aware(at, "at")
        with self._store.read() as connection:
            asked = None if alias is None else names.parse_alias(alias)
            return models.alias_history(connection, names.parse_object(model, "model"), asked, at=at)

    def alias_at(self, model: str, alias: str, moment: datetime) -> ModelVersion:
        """Which version an alias pointed at in a past moment; raises NotFound if at none."""
        moment = values.aware(moment, "moment")
        with self._store.read() as connection:
            return models.alias_at(connection, names.parse_object(model, "model"), names.parse_alias(alias), moment)

    # Indexes

    def put_index(
        self,
        name: str,
        *,
        table: str,
        spec: Mapping[str, Any],
        owner: str,
        expected_config_version: int | None = None,
        by: Caller | None = None,
    ) -> Index:
        """Make or change an index over a table that exists; only a real change makes a new config version."""
        name, table = names.parse_object(name, "index"), names.parse_object(table, "table")
        names.check_principal(owner)
        wanted = {"table": table, "spec": values.json_object(spec, "spec")}
        caller = as_principal(by or owner)
        with self._change("createVectorIndex", "index", name, caller) as going:
            securables.get(going.connection, "table", table)
            row = tables.put(
                going,
                "index",
                name,
                spec=wanted,
                owner=owner,
                expected=expected_config_version,
                now=self._now(),
                by=caller.name,
            )
            return tables.as_index(row)

    def get_index(self, name: str) -> Index:
        """Raises NotFound."""
        with self._store.read() as connection:
            return tables.as_index(securables.get(connection, "index", names.parse_object(name, "index")))

    def list_indexes(self, schema: str | None = None) -> list[Index]:
        """By name; of one schema if given, which must exist."""
        with self._store.read() as connection:
            return [tables.as_index(row) for row in securables.list_rows(connection, "index", _schema(schema))]

    def delete_index(self, name: str, *, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Raises NotFound, StaleEtag."""
        name, caller = names.parse_object(name, "index"), as_principal(by)
        with self._change("deleteVectorIndex", "index", name, caller) as going:
            self._delete(going, "index", name, caller, expected_etag)

    # Tokens

    def create_token(
        self,
        principal: str,
        *,
        kind: Literal["user", "service"] = "user",
        is_admin: bool = False,
        comment: str = "",
        expires_at: datetime | None = None,
        scopes: Sequence[str] = (ALL_APIS,),
        by: Caller = ADMIN,
    ) -> tuple[Token, str]:
        """A token and its secret `mosaic_...`, which is shown only here; a new name becomes a principal.

        `scopes` are the surfaces that it opens (`identity.SCOPES`). Who comes with a token makes one that ends with
        that: PermissionDenied for an end after its end.
        """
        names.check_principal(principal, "principal")
        now, caller = self._now(), as_principal(by)
        if kind not in ("user", "service"):
            raise BadRequest(f"kind {kind!r} of a token must be 'user' or 'service'", param="kind")
        if principal == names.SYSTEM_OWNER and kind != "service":
            raise BadRequest(f"principal {principal!r} is the platform's own; only a token of kind 'service' has it")
        if expires_at is not None and values.aware(expires_at, "expires_at") <= now:
            raise BadRequest(f"expires_at = {expires_at.isoformat()} is not in the future", param="expires_at")
        columns: dict[str, Any] = {"principal": principal, "kind": kind, "is_admin": is_admin, "comment": comment}
        columns["scopes"] = opened = check_scopes(scopes)
        params = {"principal": principal, "is_admin": str(is_admin).lower(), "scopes": ", ".join(opened)}
        with change(self._store, "generateDbToken", params, by=caller, now=now, service_name=ACCOUNTS_SERVICE) as going:
            principals.ensure(going.connection, principal, kind=kind, now=now)
            parent = caller.token_id
            made, secret = tokens.create(going.connection, now=now, expires_at=expires_at, parent_id=parent, **columns)
            going.params["token_id"] = made.id
            return made, secret

    def check_token(self, secret: str) -> Principal:
        """Who presents it; raises Unauthenticated if it is unknown, expired or revoked. See `identity.py`."""
        return identify(self._store, secret, now=self._now())

    def deny_token(self, principal: Principal, path: str, error: PermissionDenied) -> None:
        """Write down that a token was used for a path that it was not made for."""
        self.audit.deny("useToken", {"path": path[:_LONGEST_PATH]}, error, by=principal)

    def revoke_token(self, token_id: str, *, by: Caller = ADMIN) -> None:
        """Refuse a token from now on, and those that were made with it; again is fine. Raises NotFound."""
        params, caller, now = {"token_id": token_id}, as_principal(by), self._now()
        with change(self._store, "revokeDbToken", params, by=caller, now=now, service_name=ACCOUNTS_SERVICE) as going:
            revoked = tokens.revoke(going.connection, token_id, now=now)
            going.happened = revoked > 0
            if revoked > 1:
                going.params["num_tokens"] = str(revoked)

    def get_token(self, token_id: str) -> Token:
        """Also a revoked or expired one; raises NotFound."""
        with self._store.read() as connection:
            return tokens.get(connection, token_id)

    def list_tokens(self) -> list[Token]:
        """All of them, also revoked and expired ones, oldest first."""
        with self._store.read() as connection:
            return tokens.list_all(connection)

    # Across kinds

    def search(
        self,
        words: str = "",
        *,
        principal: Caller = ADMIN,
        kinds: Sequence[str] = (),
        tags: Mapping[str, str | None] | None = None,
        limit: int = 100,
    ) -> list[Found]:
        """What a principal may BROWSE whose name or comment has all `words`, and all `tags` (None: any value)."""
        return search(self._store, as_principal(principal), words, kinds=kinds, tags=tags or {}, limit=limit)

    def undrop(self, kind: str, name: str, *, by: Caller = ADMIN, expected_id: str | None = None) -> None:
        """Bring back what was dropped within 7 days, with all that was dropped with it.

        With `expected_id` raises Conflict if something else of that name was dropped since.
        Raises NotFound if nothing of that name was dropped, AlreadyExists if the name was taken again, Conflict if what
        it stands in is dropped too, or its time is over.
        """
        name, caller, now = names.parse_securable(kind, name), as_principal(by), self._now()
        with self._change(f"undrop{kind.capitalize()}", kind, name, caller) as going:
            if expected_id is not None:
                same = [one.id for one in drops.list_dropped(going.connection, before=None) if _is(one, kind, name)]
                if same[-1:] != [expected_id]:
                    raise Conflict(f"another {kind} {name!r} was dropped or brought back meanwhile; look again")
            undropped = drops.undrop(going.connection, kind, name, now=now, by=caller.name)
            if undropped:
                going.params["with"] = ", ".join(undropped)

    def dropped(self, *, before: datetime | None = None) -> list[Dropped]:
        """What was dropped, and is not purged; `before` a moment, or at all. Oldest first."""
        with self._store.read() as connection:
            return drops.list_dropped(connection, before=None if before is None else values.aware(before, "before"))

    def mark_purged(self, securable_id: str, *, before: datetime | None = None, by: Caller = ADMIN) -> None:
        """Write down that the data of something that was dropped (`before` a moment, or at all) goes from storage.

        Raises NotFound.
        """
        before = None if before is None else values.aware(before, "before")
        caller, now = as_principal(by), self._now()
        with change(self._store, "purge", {"securable_id": securable_id}, by=caller, now=now) as going:
            going.params |= drops.mark_purged(going.connection, securable_id, now=now, before=before)

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

    def list_runs(
        self,
        kind: str | None = None,
        status: str | None = None,
        limit: int = 100,
        *,
        before: str | None = None,
        edge_kind: str | None = None,
    ) -> list[Run]:
        """Newest first: those older than the run `before`, and with an edge to something of `edge_kind`."""
        with self._store.read() as connection:
            return lineage.list_runs(connection, kind, status, limit, before, edge_kind)

    def runs_that_made(self, kind: str, name: str, version: int | None) -> list[Run]:
        """Oldest first; with version None those that made any version."""
        with self._store.read() as connection:
            return lineage.runs_with(connection, "output", lineage.normalised(kind, name, version))

    def runs_that_used(self, kind: str, name: str, version: int | None) -> list[Run]:
        """Oldest first; with version None those that read any version."""
        with self._store.read() as connection:
            return lineage.runs_with(connection, "input", lineage.normalised(kind, name, version))

    def trace(
        self, kind: str, name: str, version: int | None, *, max_depth: int = 100, at: datetime | None = None
    ) -> LineageNode:
        """What something at a version was made from, and that from what, up to what no recorded run made.

        A name that was taken again means what bore it `at` a moment (None: what bears it, or bore it last).
        """
        at = None if at is None else values.aware(at, "at")
        if not 0 <= max_depth <= 100:
            raise BadRequest(f"max_depth = {max_depth} must be from 0 to 100", param="max_depth")
        with self._store.read() as connection:
            return lineage.trace(connection, lineage.normalised(kind, name, version), max_depth, at)

    def ancestors(self, kind: str, name: str, version: int | None, *, at: datetime | None = None) -> list[lineage.Read]:
        """Every read of every run that something was made by, directly or by way of others; `at` as in `trace`."""
        at = None if at is None else values.aware(at, "at")
        with self._store.read() as connection:
            return lineage.ancestors(connection, lineage.normalised(kind, name, version), at)

    def bearers(self, kind: str, name: str) -> list[Bearer]:
        """All that ever had a name, dropped or not, oldest first."""
        with self._store.read() as connection:
            return list_bearers(connection, kind, names.parse_securable(kind, name))

    def descendants(
        self,
        kind: str,
        name: str,
        version: int | None,
        *,
        max_depth: int = 100,
        without: Collection[tuple[str, int | None]] = (),
    ) -> lineage.Descendants:
        """What was made from something at a version (None: at any), and from that, down to what no recorded run read.

        `without` leaves uses of the thing itself out: pairs of a run's id and the version that it read.
        """
        if not 0 <= max_depth <= 100:
            raise BadRequest(f"max_depth = {max_depth} must be from 0 to 100", param="max_depth")
        with self._store.read() as connection:
            return lineage.descendants(connection, lineage.normalised(kind, name, version), max_depth, without)

    def _set_alias(self, model: str, alias: str, version: int | None, by: Caller) -> None:
        model, alias, caller = names.parse_object(model, "model"), names.parse_alias(alias), as_principal(by)
        names.check_principal(caller.name, "principal")
        action = "setRegisteredModelAlias" if version is not None else "deleteRegisteredModelAlias"
        with self._change(action, "model", model, caller, alias=alias) as going:
            if version is not None:
                going.params["version"] = str(version)
            going.happened = models.set_alias(
                going.connection, model, alias, version, principal=caller.name, now=self._now()
            )

    def _change(
        self, action: str, kind: str, name: str, by: Principal, **params: str
    ) -> "AbstractContextManager[Change, bool | None]":
        return change(self._store, action, of_securable(kind, name, **params), by=by, now=self._now())

    def _delete(self, going: Change, kind: str, name: str, by: Principal, expected_etag: str | None) -> None:
        securables.delete(going.connection, kind, name, now=self._now(), by=by.name, expected_etag=expected_etag)

    def _add_edge(self, run_id: str, direction: str, thing: lineage.Thing, detail: Mapping[str, Any] | None) -> None:
        kept = None if detail is None else values.json_object(detail, "detail")
        with self._store.write() as connection:
            lineage.add_edge(connection, run_id, direction, thing, kept)


def _is(dropped: Dropped, kind: str, name: str) -> bool:
    return (dropped.kind, dropped.name) == (kind, name)


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


def _reopen(url: str, serving_schema: str, key_file: Path | None, store: StoreSettings) -> Catalog:
    return Catalog.open(url, serving_schema=serving_schema, key_file=key_file, store=store)
