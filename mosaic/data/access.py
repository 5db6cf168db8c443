"""Where a table's name becomes its data: the record, the grant, one version, and the run that reads or writes it.

Every read and every write of `Tables` comes through here: what may not be read is not opened, and what was opened in a
run is in that run's lineage, whoever wrote the code that did it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError

from mosaic.catalog import Catalog, Run, RunEdge, Table
from mosaic.catalog.names import RESERVED_CATALOG, SYSTEM_OWNER, parse_object
from mosaic.catalog.unity.places import contains, is_local, resolved
from mosaic.data.columns import delta_schema
from mosaic.data.delta import (
    CONFIGURATION,
    LOG_IS_KEPT,
    OUTSIDE,
    arrow_schema,
    check_columns,
    commit_lineage,
    commit_properties,
    open_delta,
)
from mosaic.errors import BadRequest, Conflict, MosaicError, NotFound, PermissionDenied
from mosaic.protocol import Principal
from mosaic.storage import Storage

_NOTING = threading.Lock()
_LAST_VERSION = 2**63 - 1

KILL_POINTS = ("after-name", "compacted", "after-commit")
"""A table's name is taken, its Delta log is not there yet; its files are put together, which no commit says yet; rows
are committed, their run does not say so yet."""


class Opened(NamedTuple):
    """A table at one version."""

    record: Table
    delta: DeltaTable


@dataclass(frozen=True)
class Access:
    """For whom tables are opened, and in which run.

    Without a principal nothing is checked: the platform's own actors. Without a run no lineage is written.
    """

    storage: Storage
    catalog: Catalog
    principal: Principal | None = None
    run_id: str | None = None
    at: Callable[[str], None] = lambda point: None
    """Told each of KILL_POINTS."""

    def acting(self, principal: Principal | None, run_id: str | None) -> Self:
        return replace(self, principal=principal, run_id=run_id)

    def to_read(
        self,
        name: str,
        version: int | None = None,
        *,
        columns: Sequence[str] | None = None,
        predicate: str | None = None,
        run_id: str | None = None,
    ) -> Opened:
        """The table at a version (None: the newest now), which the run has as an input from here on.

        Raises PermissionDenied without SELECT, NotFound for an unknown table or version, BadRequest for a column that
        it lacks.
        """
        opened = self.peek(name, version)
        record, delta = opened
        names = arrow_schema(delta).names
        check_columns(arrow_schema(delta), columns, record.name)
        run = self._run(run_id)
        if run is not None:
            self._note_lost_output(record, delta.version())
            seen = {"columns": list(names if columns is None else columns), "predicate": predicate}
            self._note_input(run, record.name, delta.version(), seen)
        return opened

    def peek(self, name: str, version: int | None = None) -> Opened:
        """As `to_read`, to look at the table and not at its rows: no run has read anything."""
        if version is not None and not 0 <= version <= _LAST_VERSION:
            raise NotFound(
                f"table {name!r} has no version {version}; versions start at 0 and end at {_LAST_VERSION}",
                param="version",
                code="table_version_not_found",
            )
        record = self.find(name, "SELECT", "readTable")
        return Opened(record, self._open(record, version))

    def to_write(self, name: str, *, run_id: str | None = None) -> "Writing":
        """A table to commit to, its log made if nobody has yet; raises PermissionDenied without MODIFY."""
        record = self.find_to_write(name)
        try:
            delta = self._open(record, None)
        except NotFound:
            delta = self.make_log(record, delta_schema(record))
        return Writing(self, record, delta, self._run(run_id))

    def to_maintain(self, name: str, privilege: str, action: str) -> "Writing":
        """A table to rewrite or clean without changing its rows; the run of this access is not asked."""
        record = self.find(name, privilege, action)
        return Writing(self, record, self._open(record, None), None)

    def check_create(self, name: str, owner: str) -> Principal | None:
        """Who makes the table (None: the platform itself).

        Raises PermissionDenied unless the principal may make tables in the schema, and for that owner.
        """
        principal = self.principal
        if principal is None:
            return None
        schema = name.rpartition(".")[0]
        by = self.catalog.grants.check(principal, "CREATE TABLE", "schema", schema, action="createTable")
        self._check_not_ours(name, "createTable")
        if owner != principal.name and not principal.is_admin:
            self._deny("createTable", name, f"{principal.name!r} may not make a table that {owner!r} owns")
        return by

    def check(self, name: str, privilege: str, action: str) -> Principal | None:
        """Who may do it with a table; None for the platform itself, which is not asked."""
        if self.principal is None:
            return None
        return self.catalog.grants.check(self.principal, privilege, "table", name, action=action)

    def find(self, name: str, privilege: str, action: str) -> Table:
        """The table's record, the privilege on it checked; a denial is a row of the audit."""
        name = parse_object(name, "table")
        if self.principal is not None:
            self.catalog.grants.check(self.principal, privilege, "table", name, action=action)
        return self.catalog.get_table(name)

    def find_to_write(self, name: str) -> Table:
        record = self.find(name, "MODIFY", "writeTable")
        self._check_not_ours(record.name, "writeTable")
        return record

    def make_log(self, record: Table, schema: Schema) -> DeltaTable:
        """Version 0 of a table that has a name and a place; that of somebody who was faster counts as well."""
        address = record.location
        # The platform's own get a commit every few seconds, and nothing is made from them.
        is_ours = record.name.partition(".")[0] == RESERVED_CATALOG
        try:
            DeltaTable.create(
                address,
                schema=schema,
                mode="ignore",
                name=record.name,
                configuration=CONFIGURATION if is_ours else CONFIGURATION | LOG_IS_KEPT,
                storage_options=self.storage.delta_options(address) or None,
                # Tried again after it has lost, deltalake would make the table anew, in version 1.
                commit_properties=commit_properties(principal=self._principal_name(None), retries=0),
            )
        except CommitFailedError as error:
            try:
                return open_delta(self.storage, address)
            except NotFound:
                raise Conflict(f"the log of table {record.name!r} cannot be made: {error}") from error
        return open_delta(self.storage, address)

    def _open(self, record: Table, version: int | None) -> DeltaTable:
        self._check_place(record)
        try:
            return open_delta(self.storage, record.location, version)
        except NotFound as error:
            if error.code != "table_not_found":
                raise
            raise NotFound(
                f"table {record.name!r} has a name and a place, but no Delta log yet: the first write makes it",
                param="name",
                code="table_not_written",
            ) from None
        except BadRequest as error:
            if error.code != OUTSIDE:
                raise
            raise BadRequest(
                f"table {record.name!r} refers to files outside of its folder, which are not read; rewrite it with "
                "files of its own",
                code=OUTSIDE,
            ) from None

    def _check_place(self, record: Table) -> None:
        """What was outside the root may be a link into it by now, where others' tables are."""
        root, place = self.storage.root, record.location
        if contains(root, place) or not (is_local(root) and is_local(place)):
            return
        if contains(resolved(root), resolved(place)):
            raise Conflict(f"table {record.name!r} is at {place!r}, which leads into the platform's own root by now")

    def _run(self, run_id: str | None) -> Run | None:
        """The run that this happens in; raises NotFound, Conflict if it has ended, PermissionDenied if another's."""
        run_id = run_id or self.run_id
        if run_id is None:
            return None
        principal = self.principal
        try:
            run = self.catalog.get_run(run_id)
        except NotFound:
            if principal is None or principal.is_admin:
                raise
            raise NotFound(f"no run {run_id!r}", param="run_id", code="run_not_found") from None  # not whose there are
        if principal is not None and not principal.is_admin and run.principal != principal.name:
            self._deny("useRun", run_id, f"{principal.name!r} may not act in run {run_id}, which is another's")
        if run.status != "running":
            raise Conflict(f"run {run_id} is already {run.status}; it can read and write nothing more", param="run_id")
        return run

    def _note_lost_output(self, record: Table, version: int) -> None:
        """Whoever wrote the version may have died before its run had it; the commit still says so.

        Not of tables elsewhere: there anybody may write what a commit says.
        """
        if not contains(self.storage.root, record.location):
            return
        if self.catalog.runs_that_made("table", record.name, version):
            return
        with suppress(NotFound, Conflict):  # the commit is no longer in the log; the run is none of ours, or has ended
            said = commit_lineage(self.storage, record.location, version)
            # Whose run it is not has written another's into the commit.
            if said.run_id is not None and said.principal == self.catalog.get_run(said.run_id).principal:
                self.catalog.add_output(said.run_id, "table", record.name, version, detail={"recovered": True})

    def _note_input(self, run: Run, name: str, version: int, seen: Mapping[str, Any]) -> None:
        """Together with what the run is known to have read of that version before."""
        with _NOTING:
            known = [edge for edge in self.catalog.get_run(run.run_id).inputs if _is(edge, name, version)]
            detail = _union(known[0].detail or {}, seen) if known else dict(seen)
            if not known or known[0].detail != detail:
                self.catalog.add_input(run.run_id, "table", name, version, detail=detail)

    def _principal_name(self, run: Run | None) -> str | None:
        if self.principal is not None:
            return self.principal.name
        return None if run is None else run.principal

    def _check_not_ours(self, name: str, action: str) -> None:
        principal = self.principal
        if principal is not None and principal.name != SYSTEM_OWNER and name.partition(".")[0] == RESERVED_CATALOG:
            self._deny(action, name, f"{name!r} is the platform's own; {principal.name!r} may not change it")

    def _deny(self, action: str, name: str, message: str) -> None:
        assert self.principal is not None
        error = PermissionDenied(message, param="name")
        self.catalog.audit.deny(action, {"full_name": name}, error, by=self.principal)
        raise error


@dataclass(frozen=True)
class Writing:
    """One write on its way: what to commit with, and what to say once it is committed."""

    access: Access
    record: Table
    delta: DeltaTable
    run: Run | None

    def properties(
        self,
        write_id: str | None = None,
        *,
        retries: int | None = None,
        transactions: list[Transaction] | None = None,
    ) -> CommitProperties:
        """The commit's metadata: from the Delta log alone one can tell who made it, in which run, from what.

        `retries` = 0 for a write that must not be committed over another which it has not seen; `transactions` are how
        far works have come with it (`once.py`).
        """
        run = self.run
        return commit_properties(
            None if run is None else run.run_id,
            transactions=transactions,
            write_id=write_id,
            principal=self.access._principal_name(run),
            # Read again: the rows that are written may have been read after this write began.
            inputs=None if run is None else [_shown(edge) for edge in self.access.catalog.get_run(run.run_id).inputs],
            retries=retries,
        )

    def committed(self, version: int, mode: str, num_rows: int | None) -> int:
        """Note the version as the run's output, and give it back."""
        if self.run is None:
            return version
        self.access.at("after-commit")
        detail = {"mode": mode, **({} if num_rows is None else {"rows": num_rows})}
        try:
            self.access.catalog.add_output(self.run.run_id, "table", self.record.name, version, detail=detail)
        except MosaicError as error:
            # Not the error itself: whoever tries again on it would write the rows twice.
            raise MosaicError(
                f"the rows are in table {self.record.name!r} at version {version}, whose commit names run "
                f"{self.run.run_id}, but the catalog could not note it: {error.message}",
                code="lineage_not_noted",
            ) from error
        return version


def _is(edge: RunEdge, name: str, version: int) -> bool:
    return (edge.kind, edge.name, edge.version) == ("table", name, version)


def _union(known: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    """All columns that either read, of rows that both named by one predicate or of all; what else is known stays."""
    if "columns" not in known:
        return {**known, **seen}
    columns = [*known["columns"], *(name for name in seen["columns"] if name not in known["columns"])]
    predicate = seen["predicate"] if known.get("predicate") == seen["predicate"] else None
    return {**known, "columns": columns, "predicate": predicate}


def _shown(edge: RunEdge) -> str:
    """`table:main.docs.entries@3`."""
    return f"{edge.kind}:{edge.name}" + ("" if edge.version is None else f"@{edge.version}")
