"""One SQL statement, read: what it does, to which table, with which query. Nothing is looked up and nothing is run."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mosaic.catalog.names import METASTORE, parse_catalog, parse_schema, parse_table_version
from mosaic.data.sql_tokens import Token, between, expect, name_at, rewritten, shown, tokenize
from mosaic.data.sql_tree import MAX_STATEMENT_BYTES, Parser, Query, TableName
from mosaic.errors import BadRequest

_INSERT = "INSERT INTO table [(column, ...)] SELECT ... or VALUES ..."
_DELETE = "DELETE FROM table [WHERE condition]"
_CREATE = "CREATE TABLE table AS SELECT ..."
_SHOW = "SHOW CATALOGS, SHOW SCHEMAS IN catalog, or SHOW TABLES IN catalog.schema"


@dataclass(frozen=True)
class Show:
    """`SHOW CATALOGS`, `SHOW SCHEMAS IN main`, `SHOW TABLES IN main.docs`."""

    what: Literal["catalogs", "schemas", "tables"]
    parent: str


@dataclass(frozen=True)
class Insert:
    target: str
    columns: tuple[str, ...]
    """Empty: those of the table, in their order."""
    query: Query


@dataclass(frozen=True)
class Delete:
    target: str
    condition: str | None
    """None: all rows."""


@dataclass(frozen=True)
class Create:
    target: str
    query: Query


Statement = Query | Show | Insert | Delete | Create


class Reader:
    """Reads statements for one caller; `catalog` and `schema` complete names of fewer than three parts."""

    def __init__(
        self, parser: Parser, *, caller: str, catalog: str | None, schema: str | None, parameters: Collection[str]
    ) -> None:
        if schema is not None and catalog is None:
            raise BadRequest(f"schema = {schema!r} needs a catalog too", param="catalog")
        self._parser, self._caller, self._parameters = parser, caller, parameters
        self._above = [part for part in (catalog, schema) if part is not None]

    def read(self, text: str) -> Statement:
        """Raises BadRequest for what is no statement, or none that may be run; PermissionDenied for a function."""
        if any(one == "\0" or "\ud800" <= one <= "\udfff" for one in text):
            raise BadRequest("the statement has a NUL or a lone surrogate", param="statement")
        if len(text.encode()) > MAX_STATEMENT_BYTES:
            raise BadRequest(f"the statement is longer than {MAX_STATEMENT_BYTES:,} bytes", param="statement")
        tokens = tokenize(text)
        while tokens and tokens[-1].text == ";":
            tokens.pop()
        if not tokens:
            raise BadRequest("the statement is empty", param="statement")
        if any(token.text == ";" for token in tokens):
            raise BadRequest("one statement at a time; ';' may only end it", param="statement")
        text = between(text, tokens[0].start, tokens[-1].end)
        tokens = tokenize(text)
        match tokens[0].word:
            case "SHOW":
                return self._show(tokens)
            case "EXPLAIN":
                measured = len(tokens) > 1 and tokens[1].word == "ANALYZE"
                query = self._query(between(text, tokens[measured].end))
                return replace(query, sql=f"EXPLAIN {'ANALYZE ' if measured else ''}{query.sql}")
            case "INSERT":
                return self._insert(text, tokens)
            case "DELETE":
                return self._delete(text, tokens)
            case "CREATE":
                return self._create(text, tokens)
        return self._query(text)

    def _show(self, tokens: Sequence[Token]) -> Show:
        what = tokens[1].word if len(tokens) > 1 else ""
        if what == "CATALOGS" and len(tokens) == 2:
            return Show("catalogs", METASTORE)
        if what not in ("SCHEMAS", "DATABASES", "TABLES"):
            raise BadRequest(f"SHOW takes {_SHOW}", param="statement")
        wanted = 2 if what == "TABLES" else 1
        if len(tokens) == 2:
            parts = self._above[:wanted]
        else:
            if tokens[2].word not in ("IN", "FROM"):
                raise BadRequest(f"{shown(tokens, 2)} where IN must stand: {_SHOW}", param="statement")
            parts, end = name_at(tokens, 3)
            if end < len(tokens):
                raise BadRequest(f"{shown(tokens, end)} where SHOW {what} must end", param="statement")
            parts = [*self._above[: wanted - len(parts)], *parts]
        if len(parts) != wanted:
            raise BadRequest(f"SHOW {what} needs {'catalog.schema' if wanted == 2 else 'a catalog'}: {_SHOW}")
        parent = ".".join(parts)
        return Show("tables", parse_schema(parent)) if wanted == 2 else Show("schemas", parse_catalog(parent))

    def _insert(self, text: str, tokens: Sequence[Token]) -> Insert:
        """Whatever else INSERT knows (OR REPLACE, BY NAME, ON CONFLICT, RETURNING) does not read as a query."""
        expect(tokens, 1, "INTO", _INSERT)
        parts, at = name_at(tokens, 2)
        columns: list[str] = []
        if at < len(tokens) and tokens[at].text == "(" and not _begins_query(tokens, at + 1):
            while at < len(tokens) and tokens[at].text in ("(", ","):
                name, at = name_at(tokens, at + 1)
                columns.append(".".join(name))
            expect(tokens, at, ")", _INSERT)
            at += 1
        if at >= len(tokens):
            raise BadRequest(f"INSERT needs rows: {_INSERT}", param="statement")
        if len({column.lower() for column in columns}) < len(columns):
            raise BadRequest(f"INSERT names a column twice: {columns}", param="statement")
        return Insert(self._target(parts), tuple(columns), self._query(between(text, tokens[at].start)))

    def _delete(self, text: str, tokens: Sequence[Token]) -> Delete:
        expect(tokens, 1, "FROM", _DELETE)
        parts, at = name_at(tokens, 2)
        if at == len(tokens):
            return Delete(self._target(parts), None)
        expect(tokens, at, "WHERE", _DELETE)
        if at + 1 == len(tokens):
            raise BadRequest(f"WHERE needs a condition: {_DELETE}", param="statement")
        return Delete(self._target(parts), rewritten(between(text, tokens[at].end), self._parameters))

    def _create(self, text: str, tokens: Sequence[Token]) -> Create:
        expect(tokens, 1, "TABLE", _CREATE)
        parts, at = name_at(tokens, 2)
        expect(tokens, at, "AS", _CREATE)
        if at + 1 == len(tokens):
            raise BadRequest(f"AS needs a query: {_CREATE}", param="statement")
        return Create(self._target(parts), self._query(between(text, tokens[at].end)))

    def _query(self, text: str) -> Query:
        return self._parser.query(rewritten(text, self._parameters), self._caller, self._table)

    def _target(self, parts: Sequence[str]) -> str:
        table = self._table(parts, None)
        if table.version is not None:
            raise BadRequest(f"table {table.engine_name!r} is written at its newest version", param="statement")
        return table.name

    def _table(self, parts: Sequence[str], version: int | None) -> TableName:
        """The whole name of the table that a statement means; raises BadRequest."""
        written = ".".join(parts)
        if any("." in part for part in parts):
            raise BadRequest(f"table {written!r}: a part of a name may not have '.'", param="statement")
        missing = 3 - len(parts)
        if missing > len(self._above):
            raise BadRequest(
                f"table {written!r} has {len(parts)} part(s), but needs three, catalog.schema.table, unless catalog "
                "and schema are given beside the statement",
                param="statement",
            )
        # One part that is missing is the catalog, two are catalog and schema.
        name, number = parse_table_version(".".join([*self._above[: max(missing, 0)], *parts]))
        if number is not None and version is not None and number != version:
            raise BadRequest(f"table {written!r} is named at two versions, {number} and {version}", param="statement")
        return TableName(name, number if version is None else version)


def _begins_query(tokens: Sequence[Token], at: int) -> bool:
    return at < len(tokens) and tokens[at].word in ("SELECT", "WITH", "VALUES", "FROM", "TABLE", "(")
