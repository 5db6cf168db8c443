"""One SQL statement, read: what it does, which tables it names, and the same statement over names of our own.

The engine's own parser says what a statement is, so there is no second reading of it that could differ. Only what is
on the lists below may stand in one: kinds of statements, of parts of queries, and of functions that make tables.
"""

import json
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import duckdb

from mosaic.catalog.names import parse_object, parse_schema, parse_table_version
from mosaic.errors import BadRequest, PermissionDenied

MAX_STATEMENT_BYTES = 256 * 1024

KINDS = "SELECT, WITH, VALUES, FROM, DESCRIBE, SUMMARIZE, EXPLAIN, SHOW CATALOGS, SHOW SCHEMAS and SHOW TABLES"
WRITING_KINDS = "INSERT INTO, DELETE FROM and CREATE TABLE AS"

TABLE_FUNCTIONS = ("generate_series", "json_each", "json_tree", "range", "unnest")
"""All others read files, settings or the engine's own state."""

_QUERY_NODES = ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE")
_TABLES = ("BASE_TABLE", "JOIN", "SUBQUERY", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT", "SHOW_REF")
_MODIFIERS = ("ORDER_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "DISTINCT_MODIFIER")
_ORDERS = ("ORDER_DEFAULT", "ASCENDING", "DESCENDING")
_PARTS = frozenset((*_QUERY_NODES, *_TABLES, *_MODIFIERS, *_ORDERS))

_REFUSED_FUNCTIONS = frozenset(
    (
        *("col_description", "current_catalog", "current_connection_id", "current_database", "current_query"),
        *("current_query_id", "current_role", "current_schema", "current_schemas", "current_setting"),
        *("current_transaction_id", "currval", "get_block_size", "getenv", "getvariable", "in_search_path"),
        *("json_deserialize_sql", "json_execute_serialized_sql", "json_serialize_plan", "json_serialize_sql"),
        *("nextval", "obj_description", "parse_duckdb_log_message", "query", "query_table", "setseed", "setval"),
        *("shobj_description", "sleep_ms", "stats", "txid_current", "user", "vector_type", "version"),
        *("which_secret", "write_log"),
    )
)
_REFUSED_PREFIXES = ("__internal", "duckdb_", "has_", "inet_", "pg_", "pragma_")
"""They tell about the engine and its host, or have effects; reviewed for the locked version of DuckDB."""

_CALLER = ("current_user", "session_user")


class TableName(NamedTuple):
    """A table as a statement names it."""

    name: str
    """`catalog.schema.table`."""
    version: int | None
    """None: the newest."""

    @property
    def engine_name(self) -> str:
        """What the table is called in the engine, where only the tables of the statement are."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Query:
    """A statement that reads: what the engine is given, and the tables that it may know."""

    sql: str
    tables: tuple[TableName, ...]


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
    predicate: str | None
    """None: all rows."""


@dataclass(frozen=True)
class Create:
    target: str
    query: Query


Statement = Query | Show | Insert | Delete | Create


class Token(NamedTuple):
    start: int
    """In bytes."""
    text: str
    is_word: bool

    @property
    def end(self) -> int:
        return self.start + len(self.text.encode())

    @property
    def word(self) -> str:
        """In upper case if it is a bare word, otherwise as it stands."""
        return self.text.upper() if self.is_word else self.text


class Reader:
    """Reads statements for one caller; `catalog` and `schema` complete names of fewer than three parts."""

    def __init__(
        self, parser: "Parser", *, caller: str, catalog: str | None, schema: str | None, parameters: Collection[str]
    ) -> None:
        self._parser, self._caller, self._parameters = parser, caller, parameters
        self._catalog, self._schema = catalog, schema

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
        text = _between(text, tokens[0].start, tokens[-1].end)
        tokens = tokenize(text)
        first = tokens[0].word
        if first == "SHOW":
            return self._show(tokens)
        if first == "EXPLAIN":
            query = self._query(_between(text, tokens[0].end, None))
            return Query(f"EXPLAIN {query.sql}", query.tables)
        if first == "INSERT":
            return self._insert(text, tokens)
        if first == "DELETE":
            return self._delete(text, tokens)
        if first == "CREATE":
            return self._create(text, tokens)
        return self._query(text)

    def _show(self, tokens: Sequence[Token]) -> Show:
        words = [token.word for token in tokens]
        if words == ["SHOW", "CATALOGS"]:
            return Show("catalogs", "metastore")
        if len(words) >= 2 and words[1] in ("SCHEMAS", "DATABASES", "TABLES"):
            wants_schema = words[1] == "TABLES"
            if len(words) == 2:
                given = [part for part in (self._catalog, self._schema if wants_schema else None) if part]
            elif words[2] in ("IN", "FROM"):
                given, end = _name(tokens, 3)
                if end != len(tokens):
                    raise BadRequest(f"{tokens[end].text!r} after {' '.join(words[:end])} is not understood")
                if wants_schema and len(given) == 1 and self._catalog:
                    given = [self._catalog, *given]
            else:
                given = []
            if len(given) == (2 if wants_schema else 1):
                parent = ".".join(given).lower()
                return Show("tables", parse_schema(parent)) if wants_schema else Show("schemas", parent)
        raise BadRequest("SHOW takes CATALOGS, SCHEMAS IN catalog, or TABLES IN catalog.schema", param="statement")

    def _insert(self, text: str, tokens: Sequence[Token]) -> Insert:
        """`INSERT INTO name [(column, ...)] query`; whatever else INSERT knows does not read as a query."""
        _expect(tokens, 1, "INTO", "INSERT INTO table SELECT ... or VALUES ...")
        parts, at = _name(tokens, 2)
        columns: list[str] = []
        if at < len(tokens) and tokens[at].text == "(" and not _begins_query(tokens, at + 1):
            while tokens[at].text in ("(", ","):
                if at + 2 >= len(tokens):
                    raise BadRequest("the list of columns of INSERT does not end", param="statement")
                columns.append(_unquoted(tokens[at + 1].text))
                at += 2
            _expect(tokens, at, ")", "INSERT INTO table (column, ...) query")
            at += 1
        if at >= len(tokens):
            raise BadRequest("INSERT needs rows: SELECT ... or VALUES ...", param="statement")
        query = self._query(_between(text, tokens[at].start, None))
        return Insert(self._table(parts).name, tuple(columns), query)

    def _delete(self, text: str, tokens: Sequence[Token]) -> Delete:
        _expect(tokens, 1, "FROM", "DELETE FROM table WHERE condition")
        parts, at = _name(tokens, 2)
        target = self._table(parts).name
        if at == len(tokens):
            return Delete(target, None)
        _expect(tokens, at, "WHERE", "DELETE FROM table WHERE condition")
        if at + 1 == len(tokens):
            raise BadRequest("WHERE needs a condition", param="statement")
        return Delete(target, _between(text, tokens[at].end, None))

    def _create(self, text: str, tokens: Sequence[Token]) -> Create:
        usage = "CREATE TABLE table AS SELECT ..."
        _expect(tokens, 1, "TABLE", usage)
        parts, at = _name(tokens, 2)
        _expect(tokens, at, "AS", usage)
        if at + 1 == len(tokens):
            raise BadRequest(f"AS needs a query: {usage}", param="statement")
        return Create(self._table(parts).name, self._query(_between(text, tokens[at].end, None)))

    def _query(self, text: str) -> Query:
        tree = self._parser.tree(_rewritten(text, self._parameters))
        try:
            walk = _Walk(self)
            walk.over(tree, frozenset())
            _shorten_columns(tree, walk.aliases)
            return Query(self._parser.text(tree), tuple(sorted(walk.tables, key=lambda table: table.engine_name)))
        except RecursionError:
            raise BadRequest("the statement is nested too deep", param="statement") from None

    def _table(self, parts: Sequence[str], version: int | None = None) -> TableName:
        """The name that a statement means, whole; raises BadRequest."""
        shown = ".".join(parts)
        if any("." in part for part in parts):
            raise BadRequest(f"table {shown!r}: quote each part of a name by itself", param="statement")
        above = [part for part in (self._catalog, self._schema) if part]
        missing = 3 - len(parts)
        if missing > 0:
            whole = len(above) == 2 or (missing == 1 and self._catalog is not None)
            if not whole:
                raise BadRequest(
                    f"table {shown!r} has {len(parts)} part(s), but needs three: catalog.schema.table, "
                    "unless a catalog and a schema are given",
                    param="statement",
                )
            parts = [*above[:missing], *parts]
        name, written = parse_table_version(".".join(parts))
        if written is not None and version is not None and written != version:
            raise BadRequest(f"table {shown!r} is named at two versions, {written} and {version}", param="statement")
        return TableName(parse_object(name, "table"), written if version is None else version)

    @property
    def caller(self) -> str:
        return self._caller


class Parser:
    """The engine's parser, on a connection that sees nothing, made when it is first needed; safe for threads."""

    def __init__(self, connect: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._connect, self._lock = connect, threading.Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None

    def tree(self, text: str) -> Any:
        """The one SELECT in a text as the parser's tree; raises BadRequest in the engine's words."""
        try:
            answer = json.loads(self._ask("SELECT json_serialize_sql(?)", text))
        except RecursionError:
            raise BadRequest("the statement is nested too deep", param="statement") from None
        if answer["error"]:
            raise _not_read(text, answer)
        if len(answer["statements"]) != 1:
            raise BadRequest(f"one statement at a time, not {len(answer['statements'])}", param="statement")
        return answer["statements"][0]

    def text(self, tree: Any) -> str:
        """The SQL of a tree."""
        return self._ask("SELECT json_deserialize_sql(?)", json.dumps({"error": False, "statements": [tree]}))

    def _ask(self, question: str, value: str) -> str:
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            ((answer,),) = self._connection.execute(question, [value]).fetchall()
        return str(answer)


class _Walk:
    """One walk over a tree: refuses what may not stand there, and gives every table the engine's name for it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.tables: set[TableName] = set()
        self.aliases: dict[tuple[str, ...], str] = {}
        """What a table without alias was called, in two parts or more -> its alias now."""

    def over(self, node: Any, within: frozenset[str]) -> None:
        """`within` are the names of the WITH queries that are visible here."""
        if isinstance(node, list):
            for child in node:
                self.over(child, within)
        elif isinstance(node, dict):
            self._check(node)
            if node.get("type") == "BASE_TABLE":
                self._name(node, within)
                return
            if "cte_name" in node:
                within |= {node["cte_name"].lower()}
            if "cte_map" in node:
                within = self._with(node["cte_map"]["map"], within)
            for key, child in node.items():
                if key != "cte_map":
                    self.over(child, within)

    def _with(self, queries: Sequence[dict[str, Any]], within: frozenset[str]) -> frozenset[str]:
        """Each query sees those before it; itself only if it is recursive, which its node then says."""
        for query in queries:
            name = query["key"]
            if "." in name or "@" in name:
                raise BadRequest(f"name {name!r} of a WITH query may not have '.' or '@'", param="statement")
            self.over(query["value"], within)
            within |= {name.lower()}
        return within

    def _check(self, node: dict[str, Any]) -> None:
        kind = node.get("type")
        if "class" in node:
            self._check_expression(node)
        elif isinstance(kind, str) and kind not in _PARTS:
            raise BadRequest(f"{kind} may not stand in a query", param="statement")
        if kind == "TABLE_FUNCTION" and "function" in node:
            name = node["function"].get("function_name", "").lower()
            if name not in TABLE_FUNCTIONS:
                raise PermissionDenied(f"function {name!r} may not be used; of those that make tables there are "
                                       f"{list(TABLE_FUNCTIONS)}")  # fmt: skip
        if kind == "SHOW_REF" and (node.get("query") is None or node.get("show_type") not in ("DESCRIBE", "SUMMARY")):
            raise BadRequest("only DESCRIBE and SUMMARIZE of a table or query may stand in a query", param="statement")

    def _check_expression(self, node: dict[str, Any]) -> None:
        name = str(node.get("function_name", "")).lower()
        called = name or (node["column_names"][0].lower() if len(node.get("column_names") or ()) == 1 else "")
        if called in _CALLER:
            alias = node.get("alias") or called
            place = {key: node[key] for key in ("query_location", "query_location_length")}
            node.clear()
            node.update({"class": "CONSTANT", "type": "VALUE_CONSTANT", "alias": alias, **place})
            node["literal"] = {"kind": "STRING", "text": self._reader.caller}
        elif name in _REFUSED_FUNCTIONS or name.startswith(_REFUSED_PREFIXES):
            raise PermissionDenied(f"function {name!r} may not be used: it tells about the engine or changes it")

    def _name(self, node: dict[str, Any], within: frozenset[str]) -> None:
        parts = list(node["qualified_name"]["path"])
        if len(parts) == 1 and parts[0].lower() in within:
            if node["at_clause"] is not None:
                raise BadRequest(f"WITH query {parts[0]!r} has no versions", param="statement")
            return
        table = self._reader._table(parts, _at(node["at_clause"]))
        self.tables.add(table)
        alias = parts[-1].partition("@")[0]
        if not node["alias"]:
            node["alias"] = alias
            written = tuple(part.lower() for part in (*parts[:-1], alias))
            for start in range(len(written) - 1):
                self.aliases[written[start:]] = alias
        node.update({"catalog_name": "", "schema_name": "", "table_name": table.engine_name, "at_clause": None})
        node["qualified_name"] = {"path": [table.engine_name]}


def tokenize(text: str) -> list[Token]:
    """The engine's tokens, without comments."""
    raw = text.encode()
    found = duckdb.tokenize(text)
    ends = [start for start, _ in found[1:]] + [len(raw)]
    tokens = []
    for (start, kind), end in zip(found, ends, strict=True):
        if kind != duckdb.token_type.comment:
            piece = raw[start:end].decode(errors="replace").rstrip()
            is_word = kind in (duckdb.token_type.keyword, duckdb.token_type.identifier) and piece[:1] not in '"`'
            tokens.append(Token(start, piece, is_word))
    return tokens


def _rewritten(text: str, parameters: Collection[str]) -> str:
    """Spellings that the engine does not know: `t@3` and `t VERSION AS OF 3` (a quoted name), `:name` (`$name`)."""
    raw, tokens = text.encode(), tokenize(text)
    changes: list[tuple[int, int, str]] = []
    nested = 0
    for at, token in enumerate(tokens):
        nested += (token.text in ("[", "{")) - (token.text in ("]", "}"))
        after = tokens[at + 1 : at + 5]
        if _is_name(token) and after:
            words = [one.word for one in after]
            is_next = after[0].start == token.end
            if words[0] == "@" and is_next and len(after) > 1 and _is_version(after[0], after[1]):
                changes.append((token.start, after[1].end, _versioned(token.text, after[1].text)))
            elif words[:3] == ["VERSION", "AS", "OF"] and len(after) == 4 and after[3].text.isdecimal():
                changes.append((token.start, after[3].end, _versioned(token.text, after[3].text)))
        elif token.text == ":" and nested == 0 and _is_parameter(token, after, parameters):
            changes.append((token.start, token.end, "$"))
    for start, end, new in reversed(changes):
        raw = raw[:start] + new.encode() + raw[end:]
    return raw.decode()


def _shorten_columns(node: Any, aliases: dict[tuple[str, ...], str]) -> None:
    """`main.docs.entries.id` -> `entries.id`, since the engine knows the table by its alias alone."""
    if isinstance(node, list):
        for child in node:
            _shorten_columns(child, aliases)
    elif isinstance(node, dict):
        names = node.get("column_names")
        if isinstance(names, list) and node.get("class") == "COLUMN_REF":
            for length in (3, 2):
                alias = aliases.get(tuple(name.lower() for name in names[:length]))
                if alias is not None and len(names) > length:
                    node["column_names"] = [alias, *names[length:]]
                    break
        for child in node.values():
            _shorten_columns(child, aliases)


def _at(clause: dict[str, Any] | None) -> int | None:
    """The version of `AT (VERSION => 3)`."""
    if clause is None:
        return None
    literal = clause["expr"].get("literal") or {}
    if clause["unit"].upper() != "VERSION" or literal.get("kind") != "INTEGER":
        raise BadRequest("AT takes (VERSION => 3), a whole number", param="statement")
    return int(literal["text"])


def _not_read(text: str, answer: dict[str, Any]) -> BadRequest:
    if answer.get("error_type") == "not implemented":
        first = next(iter(tokenize(text)), None)
        word = first.word if first is not None else ""
        return BadRequest(
            f"{word} may not be run as a query; {KINDS} may (and {WRITING_KINDS}, where writing is asked for)",
            param="statement",
        )
    where = f" (at character {int(answer['position']) + 1})" if "position" in answer else ""
    return BadRequest(f"{answer['error_message']}{where}", param="statement")


def _name(tokens: Sequence[Token], at: int) -> tuple[list[str], int]:
    """The parts of a name that stands at a token, and where it ends."""
    parts: list[str] = []
    while at < len(tokens) and _is_name(tokens[at]):
        parts.append(_unquoted(tokens[at].text))
        at += 1
        if at >= len(tokens) or tokens[at].text != ".":
            return parts, at
        at += 1
    shown = tokens[at].text if at < len(tokens) else "the end"
    raise BadRequest(f"a name such as catalog.schema.table must stand before {shown!r}", param="statement")


def _expect(tokens: Sequence[Token], at: int, word: str, usage: str) -> None:
    if at >= len(tokens) or tokens[at].word != word:
        shown = tokens[at].text if at < len(tokens) else "the end"
        raise BadRequest(f"{shown!r} where {word} must stand: {usage}", param="statement")


def _begins_query(tokens: Sequence[Token], at: int) -> bool:
    return at < len(tokens) and tokens[at].word in ("SELECT", "WITH", "VALUES", "FROM", "TABLE", "(")


def _is_name(token: Token) -> bool:
    return token.is_word or token.text[:1] in ('"', "`")


def _is_version(at: Token, number: Token) -> bool:
    return number.text.isdecimal() and number.start == at.end


def _is_parameter(colon: Token, after: Sequence[Token], parameters: Collection[str]) -> bool:
    return bool(after) and after[0].start == colon.end and after[0].text in parameters


def _versioned(name: str, number: str) -> str:
    quoted = _unquoted(name).replace('"', '""')
    return f'"{quoted}@{int(number)}"'


def _unquoted(text: str) -> str:
    for quote in ('"', "`"):
        if len(text) >= 2 and text[0] == text[-1] == quote:
            return text[1:-1].replace(quote * 2, quote)
    return text


def _between(text: str, start: int, end: int | None) -> str:
    return text.encode()[start:end].decode()
