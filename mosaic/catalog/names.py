"""Names in the catalog: `catalog.schema.object`, `model/3`, `model@alias`, `table@12`; letters' case does not matter.

Names are folded to lower case when they come in, so what is stored, compared and shown is one spelling.
"""

import re
from typing import NamedTuple

from mosaic.errors import BadRequest

RESERVED_CATALOG = "system"
"""The platform's own catalog; only the owner `system` makes things in it."""
SYSTEM_OWNER = "system"

INTERNAL = "mosaic-internal"
"""The principal of the platform's own calls."""

METASTORE = "metastore"
"""Kind and name of the one root above the catalogs."""

_PART = re.compile(r"[A-Za-z0-9_-]{1,255}")
_EDGE_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")
_PRINCIPAL = re.compile(r"[!-~]{1,255}")
_LARGEST_VERSION = 2**31 - 1


class ModelReference(NamedTuple):
    """A model version by number or by alias; exactly one of them is set (of what may be named without a version at
    most one)."""

    model: str
    version: int | None
    alias: str | None


def parse_catalog(text: str) -> str:
    """`Main` -> `main`; raises BadRequest."""
    return _parse(text, 1, "catalog", "catalog")


def parse_schema(text: str) -> str:
    """`Main.Docs` -> `main.docs`; raises BadRequest."""
    return _parse(text, 2, "schema", "catalog.schema")


def parse_object(text: str, kind: str) -> str:
    """`Main.Docs.Entries` -> `main.docs.entries`; `kind` is for the message of the BadRequest."""
    return _parse(text, 3, kind, "catalog.schema.name")


def parse_securable(kind: str, text: str) -> str:
    """The name of a thing of any kind, with as many parts as the kind has; raises BadRequest."""
    if kind == METASTORE:
        if text.lower() != METASTORE:
            raise BadRequest(f"there is one metastore, and its name is {METASTORE!r}, not {text!r}", param="name")
        return METASTORE
    if kind in ("catalog", "connection"):
        return _parse(text, 1, kind, kind)
    return parse_schema(text) if kind == "schema" else parse_object(text, kind)


def parse_model_version(text: str) -> ModelReference:
    """`main.ml.bot/3` or `main.ml.bot@champion`; raises BadRequest if it names no version."""
    model, slash, number = text.partition("/")
    if slash:
        return ModelReference(parse_object(model, "model"), parse_number(number, text), None)
    model, at, alias = text.partition("@")
    if at and alias.isdigit():
        raise BadRequest(f"{text!r} has a number for an alias, which is none; version {alias} is {model}/{alias}")
    if at:
        return ModelReference(parse_object(model, "model"), None, parse_alias(alias))
    raise BadRequest(
        f"{text!r} names no version of a model; write {text}/3 for a version or {text}@champion for an alias"
    )


def parse_version(text: str, kind: str) -> ModelReference:
    """As `parse_model_version`, of what else has versions; the name alone, with neither, means the newest. Raises
    BadRequest."""
    if "/" in text or "@" in text:
        return parse_model_version(text)
    return ModelReference(parse_object(text, kind), None, None)


def is_model_version(text: str) -> bool:
    """Whether a text has the form of a model version's name."""
    try:
        parse_model_version(text)
    except BadRequest:
        return False
    return True


def parse_table_version(text: str) -> tuple[str, int | None]:
    """`main.docs.entries@12` -> its name and 12; without `@` the version is None. Raises BadRequest."""
    name, at, number = text.partition("@")
    table = parse_object(name, "table")
    if not at:
        return table, None
    if not re.fullmatch(r"0|[1-9][0-9]{0,15}", number):
        raise BadRequest(f"version {number!r} of table {text!r} must be a whole number such as 12")
    return table, int(number)


def parse_number(number: str, whole: str) -> int:
    """A model version's number, 1 or more; raises BadRequest."""
    if not re.fullmatch(r"[1-9][0-9]{0,9}", number) or int(number) > _LARGEST_VERSION:
        raise BadRequest(f"version {number!r} of {whole!r} must be a whole number from 1, such as main.ml.bot/3")
    return int(number)


def parse_alias(alias: str) -> str:
    """An alias in lower case; a number would look like a version and is refused. Raises BadRequest."""
    if not _PART.fullmatch(alias) or alias.isdigit():
        raise BadRequest(
            f"alias {alias!r} must be letters, digits, '_' or '-', and not only digits, such as 'champion'"
        )
    return alias.lower()


def check_edge_kind(kind: str, field: str) -> None:
    """What a run or its edge is: lower-case words with underscores."""
    if not _EDGE_KIND.fullmatch(kind):
        raise BadRequest(f"{field} {kind!r} must be lower-case letters, digits and '_', such as 'table'", param=field)


def check_principal(name: str, field: str = "owner") -> None:
    """A user's or service's name: printable ASCII without spaces."""
    if not _PRINCIPAL.fullmatch(name):
        raise BadRequest(f"{field} {name!r} must be 1 to 255 printable characters without spaces", param=field)


def _parse(text: str, levels: int, kind: str, form: str) -> str:
    parts = text.split(".")
    if len(parts) != levels:
        raise BadRequest(f"{kind} name {text!r} has {len(parts)} part(s), but needs {levels}: {form}", param="name")
    for part in parts:
        if not _PART.fullmatch(part):
            raise BadRequest(
                f"{kind} name {text!r}: part {part!r} must be 1 to 255 letters, digits, '_' or '-'", param="name"
            )
    return text.lower()
