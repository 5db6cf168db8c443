"""Connections: an external provider with its options and its secrets.

Secrets are encrypted with a key that is not in the database (Fernet: AES-128-CBC with HMAC-SHA256), never leave over
HTTP, and are in no record and no audit row. `secrets` gives them to the platform's own code.
"""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from cryptography.fernet import Fernet, InvalidToken

from mosaic.catalog import names, securables, values
from mosaic.catalog.audit import change, of_securable
from mosaic.catalog.objects import Securables, as_securable
from mosaic.catalog.principals import ADMIN, Caller, as_principal
from mosaic.catalog.records import Securable
from mosaic.catalog.schema import secret
from mosaic.catalog.store import Store
from mosaic.catalog.updates import update
from mosaic.errors import BadRequest, Conflict, Unavailable

SECRET_OPTIONS = (
    *("api_key", "token", "password", "client_secret", "secret_access_key", "private_key", "access_key"),
    *("dsn", "connection_string", "headers"),
)
"""Options whose values are secrets: kept encrypted, and shown as names alone; so is what sounds like one."""
_SOUNDS_SECRET = re.compile(
    r"passw|passphrase|pwd|secret|token|key|credential|private|bearer|authorization|conn(ection)?_?str"
    r"|(^|_)(sas|pat|auth|[a-z]*pass|dsn|headers?|cookies?|jwt|sig|signature)(_|$)"
)
_NEW_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
"""Where a word ends in githubPat, APIKey and client-secret."""
_OPEN = ("token_endpoint", "token_url", "token_uri", "access_key_id", "private_key_id", "client_key_id", "key_id")
_USER_IN_URL = re.compile(r"://[^/?#]*@")
_HAS_SECRET = re.compile(
    r"(passw(or)?d|passphrase|(?<![a-z])pass|pwd|secret|token|credentials?|signature"
    r"|(api|access|account|auth|client|private|secret|shared|subscription|shared.?access)[ _-]?key)[\"']?\s*[=:]"
    r"|[?&;](key|sig|code|auth)=|(?<![a-z])(bearer|basic)\s+\S|(?<![a-z0-9])eyj[a-z0-9_-]{8,}\.",
    re.IGNORECASE,
)
"""`Server=x;Password=...`, `?api_key=...`, `Authorization: Bearer ...`, `{"token": ...}`, a JWT."""


class Connections:
    """`catalog.connections`. A connection stands under the metastore, so its name has one part."""

    def __init__(self, store: Store, now: Callable[[], datetime], key_file: Path | None) -> None:
        self._store, self._now, self._key_file = store, now, key_file
        self._things = Securables(store, now, "connection", values.json_object)
        self.get, self.find, self.get_by_id = self._things.get, self._things.find, self._things.get_by_id

    def create(
        self,
        name: str,
        *,
        connection_type: str,
        options: Mapping[str, str],
        owner: str,
        comment: str = "",
        properties: Mapping[str, str] | None = None,
        by: Caller | None = None,
    ) -> Securable:
        """`options` as the provider wants them (base_url, ...); those of SECRET_OPTIONS are kept encrypted.

        Raises AlreadyExists, and Unavailable if there are secrets and no key to keep them with.
        """
        name, caller, now = names.parse_securable("connection", name), as_principal(by or owner), self._now()
        names.check_principal(owner)
        if not connection_type:
            raise BadRequest("connection_type must say what is connected, such as OPENAI", param="connection_type")
        open_options, secrets = _parted(options)
        described: dict[str, Any] = {"comment": comment, "properties": values.texts(properties or {}, "properties")}
        spec = {"connection_type": connection_type.upper(), "options": open_options, "secrets": sorted(secrets)}
        sealed = self._seal(secrets)
        with change(self._store, "createConnection", of_securable("connection", name), by=caller, now=now) as going:
            stamped: dict[str, Any] = {"owner": owner, "created_by": caller.name, "now": now, "spec": spec}
            made = securables.insert(going.connection, "connection", name, **stamped, **described)
            self._keep(going.connection, made["id"], sealed, now)
            return as_securable(securables.get(going.connection, "connection", name))

    def list(self) -> list[Securable]:
        """By name."""
        return self._things.list()

    def update(
        self,
        name: str,
        *,
        by: Caller,
        options: Mapping[str, str] | None = None,
        comment: str | None = None,
        owner: str | None = None,
        expected_etag: str | None = None,
    ) -> Securable:
        """Change what is given, options and secrets as a whole. Raises NotFound, StaleEtag."""
        name, caller, now = names.parse_securable("connection", name), as_principal(by), self._now()
        open_options, secrets = _parted(options or {})
        sealed = self._seal(secrets)
        with change(self._store, "updateConnection", of_securable("connection", name), by=caller, now=now) as going:
            row = securables.get(going.connection, "connection", name, lock=True)
            changed: dict[str, Any] = {} if comment is None else {"comment": comment}
            if options is not None:
                changed["spec"] = {**row.spec, "options": open_options, "secrets": sorted(secrets)}
            after = update(going, row, expected_etag, owner=owner, by=caller, now=now, **changed)
            if options is not None:
                self._keep(going.connection, row.id, sealed, now)
                if not going.happened:  # what is secret may be another all the same
                    after, going.happened = securables.touch(going.connection, row, now=now, by=caller.name), True
            return as_securable(after)

    def delete(self, name: str, *, by: Caller = ADMIN, expected_etag: str | None = None) -> None:
        """Take the name away, and the secrets at once: what comes back by undrop needs them given again."""
        name, caller, now = names.parse_securable("connection", name), as_principal(by), self._now()
        with change(self._store, "deleteConnection", of_securable("connection", name), by=caller, now=now) as going:
            row = securables.get(going.connection, "connection", name, lock=True)
            going.connection.execute(secret.delete().where(secret.c.securable_id == row.id))
            securables.delete(
                going.connection, "connection", name, now=now, by=caller.name, expected_etag=expected_etag
            )

    def secrets(self, name: str, *, by: Caller) -> dict[str, str]:
        """The secret options, for the platform's own calls; that they were taken is a row of the audit.

        Raises NotFound, and Conflict if the key is not the one that they were encrypted with.
        """
        name, caller, now = names.parse_securable("connection", name), as_principal(by), self._now()
        with change(self._store, "getConnectionSecrets", of_securable("connection", name), by=caller, now=now) as going:
            row = securables.get(going.connection, "connection", name)
            query = sa.select(secret.c.ciphertext).where(secret.c.securable_id == row.id)
            sealed = going.connection.execute(query).scalar_one_or_none()
        if sealed is None:
            return {}
        try:
            opened = self._fernet().decrypt(sealed.encode())
        except InvalidToken:
            raise Conflict(
                f"the secrets of connection {name!r} were encrypted with another key than that of {self._key_file}"
            ) from None
        return values.loaded(opened)

    def _seal(self, secrets: Mapping[str, str]) -> str | None:
        return self._fernet().encrypt(values.dumped(secrets)).decode() if secrets else None

    def _keep(self, connection: sa.Connection, securable_id: str, sealed: str | None, now: datetime) -> None:
        connection.execute(secret.delete().where(secret.c.securable_id == securable_id))
        if sealed is not None:
            connection.execute(secret.insert().values(securable_id=securable_id, ciphertext=sealed, set_at=now))

    def _fernet(self) -> Fernet:
        if self._key_file is None:
            raise Unavailable("this catalog was opened without a key file, so it keeps no secrets")
        return Fernet(_read_or_make_key(self._key_file))


def _parted(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    given = values.texts(options, "options")
    secrets = {key: value for key, value in given.items() if _is_secret(key)}
    for key, value in given.items():
        if key not in secrets and _USER_IN_URL.search(value):
            raise BadRequest(
                f"option {key!r} is an address with a user in it, and would be shown; say user and password apart",
                param="options",
            )
        if key not in secrets and _HAS_SECRET.search(unquote(value)):
            raise BadRequest(
                f"option {key!r} reads as if a secret were in it, and would be shown; say the secret in an option of "
                f"its own, or all of it in one of {list(SECRET_OPTIONS)}",
                param="options",
            )
    return {key: value for key, value in given.items() if key not in secrets}, secrets


def _is_secret(option: str) -> bool:
    name = _NEW_WORD.sub("_", option).lower()
    return name not in _OPEN and _SOUNDS_SECRET.search(name) is not None


def _read_or_make_key(file: Path) -> bytes:
    """Readable by its owner alone; of several that make it at once, one wins and all use its key."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=f"{file.name}.", dir=file.parent)  # mode 0600
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(Fernet.generate_key())
            opened.flush()
            os.fsync(opened.fileno())
        try:
            os.link(fresh, file)
        except FileExistsError:
            pass
        finally:
            os.unlink(fresh)
    return file.read_bytes()
