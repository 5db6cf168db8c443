"""Tables by name for `ray.data`'s own readers: `ray.data.read_delta("main.docs.entries", catalog=MosaicCatalog(...))`.

Over HTTP it asks the platform in Unity Catalog's protocol, with a token; the server checks the grants. In a driver of
the cluster it asks the platform's own tables. What opens the files goes to the reader as storage options alone: Ray's
own Unity Catalog connector puts credentials into the process's environment, where every later read finds them.
"""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import httpx
from ray.data.catalog import Catalog, CatalogAccessMode, ReaderFormat, ResolvedSource

from mosaic.catalog.names import parse_object
from mosaic.catalog.unity.places import to_address
from mosaic.data.delta import open_delta
from mosaic.data.tables import Tables
from mosaic.errors import (
    BadRequest,
    Conflict,
    MosaicError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from mosaic.storage import Storage

_BY_STATUS: dict[int, type[MosaicError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    501: Unimplemented,
}
_TIMEOUT_SECONDS = 60


class Place(NamedTuple):
    """Where a table's files are, and what opens them, in deltalake's spelling."""

    address: str
    options: dict[str, str]


class Source(Protocol):
    """Who knows the tables; raises PermissionDenied, NotFound."""

    def place(self, table: str, *, write: bool) -> Place: ...

    def pin(self, table: str, version: int | None) -> int:
        """A version that is there (None: the newest), noted as an input of the run if there is one."""
        ...


class MosaicCatalog(Catalog):
    """A platform's catalog, as `ray.data` asks for it.

    With a run every table that is resolved is an input of it. Ray opens the log after it has resolved the name; to read
    exactly the version that is noted, name it:

        version = catalog.pin("main.docs.entries")
        rows = ray.data.read_delta("main.docs.entries", version=version, catalog=catalog)

    Without `pin` the newest version is noted as the name is resolved. Writing through it checks MODIFY and notes
    nothing; `Tables.append` does.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        run_id: str | None = None,
        region: str | None = None,
        allow_http: bool = False,
    ) -> None:
        """`url` is the platform's (`http://127.0.0.1:8000`); `region` is the bucket's, where AWS needs it; `allow_http`
        lets files come from an object store without encryption."""
        options = {"AWS_REGION": region} if region else {}
        self._start(_Server(url, token, run_id, options | ({"AWS_ALLOW_HTTP": "true"} if allow_http else {})), run_id)

    @classmethod
    def of(cls, tables: Tables) -> "MosaicCatalog":
        """In this process: within the grants of the principal, and in the run, that `tables` acts for."""
        made = cls.__new__(cls)
        made._start(_InProcess(tables), tables.run_id)
        return made

    def _start(self, source: Source, run_id: str | None) -> None:
        self._source, self._run_id = source, run_id
        self._pinned: dict[str, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}  # Ray's writer takes its catalog along to the workers

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return f"MosaicCatalog({self._source!r})"

    def resolve(
        self, table: str, *, reader: ReaderFormat, mode: CatalogAccessMode = CatalogAccessMode.READ
    ) -> ResolvedSource:
        """Where a table is and what opens it. Raises PermissionDenied, NotFound, BadRequest for another reader."""
        if reader is not ReaderFormat.DELTA:
            raise BadRequest(
                f"table {table!r} is a Delta table, whose {reader.value} files are not its rows: use read_delta"
            )
        name, write = parse_object(table, "table"), mode is CatalogAccessMode.WRITE
        if self._run_id is not None and not write:
            with self._lock:
                pinned = self._pinned.pop(name, None)
            if pinned is None:
                self._source.pin(name, None)
        place = self._source.place(name, write=write)
        return ResolvedSource(path=place.address, storage_options=place.options or None, data_format=ReaderFormat.DELTA)

    def pin(self, table: str, version: int | None = None) -> int:
        """A version of the table (None: the newest now), noted as an input of the run, for the next read of it."""
        name = parse_object(table, "table")
        pinned = self._source.pin(name, version)
        with self._lock:
            self._pinned[name] = pinned
        return pinned


class _InProcess:
    """The platform's tables in this process, with the platform's own keys to its storage."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def __repr__(self) -> str:
        return "in process"

    def place(self, table: str, *, write: bool) -> Place:
        return Place(*self._tables.place(table, write=write))

    def pin(self, table: str, version: int | None) -> int:
        return self._tables.open(table, version).delta.version()


class _Server:
    """A platform over HTTP, in Unity Catalog's protocol."""

    def __init__(self, url: str, token: str, run_id: str | None, options: Mapping[str, str]) -> None:
        self._url, self._token, self._run_id, self._options = url.rstrip("/"), token, run_id, dict(options)

    def __repr__(self) -> str:
        return repr(self._url)  # without the token

    def place(self, table: str, *, write: bool) -> Place:
        known = self._ask("GET", f"/api/2.1/unity-catalog/tables/{table}")
        asked = {"table_id": known["table_id"], "operation": "READ_WRITE" if write else "READ"}
        given = self._ask("POST", "/api/2.1/unity-catalog/temporary-table-credentials", asked)
        return Place(to_address(given["url"]), self._opened_by(given))

    def pin(self, table: str, version: int | None) -> int:
        if self._run_id is None:
            place = self.place(table, write=False)
            return _version_at(place, version)
        path = f"/api/2.0/mosaic/runs/{quote(self._run_id, safe='')}/inputs"
        return int(self._ask("POST", path, {"table": table, "version": version})["version"])

    def _opened_by(self, given: Mapping[str, Any]) -> dict[str, str]:
        if given.get("gcp_oauth_token"):
            raise Unimplemented("deltalake takes no OAuth token for Google's storage, so the table cannot be read")
        if (aws := given.get("aws_temp_credentials")) is not None:
            keys = ("access_key_id", "secret_access_key", "session_token")
            options = {f"AWS_{key.upper()}": aws[key] for key in keys if aws.get(key)}
            if given.get("endpoint_url"):
                options["AWS_ENDPOINT_URL"] = given["endpoint_url"]
            return {**options, **self._options}
        if (sas := given.get("azure_user_delegation_sas")) is not None:
            return {"AZURE_STORAGE_SAS_TOKEN": sas["sas_token"]}
        return {}

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self._token}"}
        try:
            answer = httpx.request(method, self._url + path, json=body, headers=headers, timeout=_TIMEOUT_SECONDS)
        except httpx.TransportError as error:
            raise Unavailable(f"no platform answers at {self._url}: {error}") from None
        if answer.status_code == 200:
            said: dict[str, Any] = answer.json()
            return said
        raise _BY_STATUS.get(answer.status_code, Unavailable)(_message(answer))


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.request.url} answered {answer.status_code}: {answer.text[:200]}"


def _version_at(place: Place, version: int | None) -> int:
    return open_delta(Storage(place.address, place.options), place.address, version).version()
