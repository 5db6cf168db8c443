"""Cleaning a table up: files that no version within the retention needs go, unless something living needs them.

What a model answers with was made from rows at an exact version, and an index answers at one. While an alias points at
that model version, an endpoint names it, or the index is there, a vacuum that would take a file of such a version away
is refused and says who needs it. What is needed comes from the catalog's lineage, and the files from the Delta log, so
that a vacuum which touches none of them goes through.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from pyarrow import fs

from mosaic.catalog import Catalog, RunEdge, Table, names
from mosaic.catalog.names import SYSTEM_OWNER
from mosaic.data.access import Access
from mosaic.data.delta import open_delta
from mosaic.errors import BadRequest, Conflict, NotFound
from mosaic.protocol import Principal, Wire
from mosaic.storage import Storage

PLATFORM = Principal(name=SYSTEM_OWNER, kind="service")

RETENTION_HOURS = 168
"""How long the files of past versions are kept if nothing else is said."""


class Needed(Wire):
    """A version of a table that something living depends on."""

    version: int
    by: str
    """Who needs it, and the run that read it."""
    until: str
    """What has to happen for it not to be needed any more."""
    files: tuple[str, ...] = ()
    """Those of its files that the vacuum takes."""


class Vacuumed(Wire):
    """What a vacuum removed, or would remove."""

    table: str
    dry_run: bool
    files: tuple[str, ...]
    """Paths below the table's place, sorted."""
    needed: tuple[Needed, ...]
    """Versions of which files are among them: with `dry_run` what would have it refused, with `force` what it broke."""


def vacuum(
    access: Access,
    name: str,
    *,
    retention_hours: int = RETENTION_HOURS,
    dry_run: bool = False,
    force: bool = False,
    keep_needed: bool = False,
) -> Vacuumed:
    """See `Tables.vacuum`."""
    writing = access.to_maintain(name, "MANAGE" if force else "MODIFY", "vacuumTable")
    catalog, storage = access.catalog, access.storage
    if isinstance(retention_hours, bool) or not isinstance(retention_hours, int) or retention_hours < 0:
        raise BadRequest(
            f"retention_hours = {retention_hours!r} must be a whole number from 0", param="retention_hours"
        )
    if force and keep_needed:
        raise BadRequest("force removes files that are needed, keep_needed keeps them: say one of them", param="force")
    record, table = writing.record, writing.delta
    there = _files_in(storage, record.location)
    doomed = there & _listed(table, record, retention_hours, None)
    if not doomed:  # a table that only grew: its versions need not be opened, however many are needed
        return Vacuumed(table=record.name, dry_run=dry_run, files=(), needed=())
    files_at = functools.cache(functools.partial(_files_at, storage, record))
    needed = [(one, files) for one in find_needed(catalog, record) if (files := files_at(one.version))]
    versions = sorted({one.version for one, _ in needed})
    if keep_needed and versions:
        doomed = there & _listed(table, record, retention_hours, versions)
    hit = tuple(
        one.model_copy(update={"files": tuple(sorted(files & doomed))}) for one, files in needed if files & doomed
    )
    if dry_run or not doomed:
        return Vacuumed(table=record.name, dry_run=dry_run, files=tuple(sorted(doomed)), needed=hit)
    if hit and not force:
        raise Conflict(_refusal(record.name, hit), code="table_version_needed")
    said = {"retention_hours": str(retention_hours), "force": str(force).lower(), "files": str(len(doomed))}
    named = {"securable_type": "table", "securable_full_name": record.name, **said}
    catalog.audit.note("vacuumTable", named, by=access.principal or PLATFORM)
    try:
        removed = table.vacuum(
            retention_hours,
            dry_run=False,
            enforce_retention_duration=False,
            commit_properties=writing.properties(),
            full=True,
            # Also when none of their files was on the list: it grows with time.
            keep_versions=None if force else versions or None,
        )
    except CommitFailedError as error:
        raise Conflict(f"table {record.name!r} was changed at the same time: {error}") from error
    gone = there & _below(record.location, removed)
    return Vacuumed(table=record.name, dry_run=False, files=tuple(sorted(gone)), needed=hit)


def find_needed(catalog: Catalog, record: Table) -> list[Needed]:
    """The versions of a table that live model aliases, endpoints and indexes depend on, by version."""
    found = [*_by_models(catalog, record), *_by_indexes(catalog, record)]
    return sorted(found, key=lambda one: (one.version, one.by))


def _by_models(catalog: Catalog, record: Table) -> Iterator[Needed]:
    """The model versions that an alias points at or an endpoint names by number."""
    served = _served(catalog)
    for model in catalog.list_models():
        for number in sorted({*model.aliases.values(), *served[model.name]}):
            aliases = sorted(alias for alias, at in model.aliases.items() if at == number)
            endpoints = sorted(served[model.name].get(number, ()))
            live = [*(f"alias {alias!r}" for alias in aliases), *(f"endpoint {name!r}" for name in endpoints)]
            ends = [
                *(f"point {model.name}@{alias} at another version" for alias in aliases),
                *(f"let endpoint {name} serve another version" for name in endpoints),
            ]
            for version, run_id in _versions_behind(catalog, model.name, number, record):
                yield Needed(
                    version=version,
                    by=f"model version {model.name}/{number} ({', '.join(live)}) was made from it by run {run_id}",
                    until=", ".join(ends),
                )


def _served(catalog: Catalog) -> Mapping[str, dict[int, set[str]]]:
    """Of each model the versions that endpoints name by number, each with those endpoints."""
    found: dict[str, dict[int, set[str]]] = defaultdict(dict)
    for endpoint in catalog.endpoints.list():
        for model in endpoint.models:
            if names.is_model_version(model):
                asked = names.parse_model_version(model)
                if asked.version is not None:
                    found[asked.model].setdefault(asked.version, set()).add(endpoint.name)
    return found


def _versions_behind(catalog: Catalog, model: str, number: int, record: Table) -> list[tuple[int, str]]:
    """The versions of the table that a model version came from, each with a run that read it; however long the way."""
    found: dict[int, str] = {}
    for one in catalog.ancestors("model", model, number):
        if one.read.version is not None and _is_of(record, one.read):
            found.setdefault(one.read.version, one.run_id)
    return sorted(found.items())


def _by_indexes(catalog: Catalog, record: Table) -> Iterator[Needed]:
    for index in catalog.list_indexes():
        if index.table != record.name:
            continue
        runs = catalog.runs_that_made("index", index.name, None)
        if runs and any(_is_of(record, edge) for edge in runs[-1].inputs):
            (version,) = (e.version for e in runs[-1].outputs if (e.kind, e.name) == ("index", index.name))
            yield Needed(
                version=version or 0,
                by=f"index {index.name} answers at it, as run {runs[-1].run_id} made it",
                until=f"let index {index.name} follow the table, or delete it",
            )


def _is_of(record: Table, noted: RunEdge) -> bool:
    """Whether lineage means this table, and not one that had its name before."""
    return (noted.kind, noted.name) == ("table", record.name) and noted.securable_id in (None, record.id)


def _listed(table: DeltaTable, record: Table, retention_hours: int, keep: list[int] | None) -> set[str]:
    """What a vacuum would take; deltalake also lists what an earlier one took."""
    listed = table.vacuum(
        retention_hours, dry_run=True, enforce_retention_duration=False, full=True, keep_versions=keep
    )
    return _below(record.location, listed)


def _files_at(storage: Storage, record: Table, version: int) -> set[str]:
    """None for a version that cannot be read any more: there is nothing left to keep."""
    try:
        table = open_delta(storage, record.location, version)
    except NotFound:
        return set()
    return _below(record.location, pa.table(table.get_add_actions(flatten=True))["path"].to_pylist())


def _files_in(storage: Storage, address: str) -> set[str]:
    filesystem, path = storage.filesystem(address)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{path}/") for info in found if info.type == fs.FileType.File}


def _below(address: str, paths: Iterable[str]) -> set[str]:
    """Paths as deltalake writes them, whole or below the table's place."""
    return {unquote(path).removeprefix(f"{address}/") for path in paths}


def _refusal(name: str, hit: tuple[Needed, ...]) -> str:
    reasons = "; ".join(f"{len(one.files)} file(s) of {name}@{one.version}: {one.by}" for one in hit)
    ways = "; ".join(dict.fromkeys(one.until for one in hit))
    return (
        f"vacuum of table {name!r} would take files that are needed: {reasons}. To go on: {ways}; or keep their files "
        "(keep_needed, --keep-needed); or remove them all the same (force, --force)"
    )
