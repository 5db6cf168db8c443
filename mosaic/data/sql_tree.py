"""What may stand in a query, and which tables it names: a walk over the tree of the engine's own parser.

There is no second reading of a statement that could differ from the engine's. Only what is on the lists below may
stand in a tree; every table gets the name under which the engine is handed it, if the caller may read it.
"""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb

from mosaic.data import sql_ai
from mosaic.data.sql_tokens import tokenize
from mosaic.errors import BadRequest, PermissionDenied

KINDS = "SELECT, WITH, VALUES, FROM, DESCRIBE, SUMMARIZE, EXPLAIN, SHOW CATALOGS, SHOW SCHEMAS and SHOW TABLES"
WRITING_KINDS = "INSERT INTO, DELETE FROM and CREATE TABLE AS"

TABLE_FUNCTIONS = ("generate_series", "json_each", "json_tree", "range", "unnest")
"""All others read files, settings or the engine's own state."""

_QUERIES = ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE")
_TABLES = ("BASE_TABLE", "JOIN", "SUBQUERY", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT", "SHOW_REF")
_MODIFIERS = ("ORDER_MODIFIER", "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "DISTINCT_MODIFIER")
_ORDERS = ("ORDER_DEFAULT", "ASCENDING", "DESCENDING")
_PARTS = frozenset((*_QUERIES, *_TABLES, *_MODIFIERS, *_ORDERS))

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


MAX_STATEMENT_BYTES = 256 * 1024
MAX_DEPTH = 200
"""Of brackets: the parser takes a time that grows with the square of those that are open."""
MAX_NAME_PARTS = 32
MAX_SET_OPERATIONS = 1_000
_SET_OPERATIONS = ("UNION", "INTERSECT", "EXCEPT")
_LARGEST_VERSION = 2**63 - 1


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
    columns: frozenset[str] | None
    """In lower case, of whichever table; None: perhaps all."""
    endpoints: tuple[str, ...] = ()
    """That it asks by `ai_query`, as they are written."""

    def columns_of(self, names: Sequence[str]) -> list[str]:
        """Which columns of a table the query may read."""
        return [name for name in names if self.columns is None or name.lower() in self.columns]


class Parser:
    """The engine's parser, on a connection that sees nothing, made when it is first needed; safe for threads."""

    def __init__(self, connect: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._connect, self._lock = connect, threading.Lock()
        self._connection: duckdb.DuckDBPyConnection | None = None

    def tree(self, text: str) -> dict[str, Any]:
        """The one SELECT in a text as the parser's tree; raises BadRequest in the engine's words."""
        _check_size(text)
        try:
            answer = json.loads(self._ask("SELECT json_serialize_sql(?)", text))
        except RecursionError:
            raise too_deep() from None
        if answer["error"]:
            raise _not_read(text, answer)
        if len(answer["statements"]) != 1:
            raise BadRequest(f"one statement at a time, not {len(answer['statements'])}", param="statement")
        tree: dict[str, Any] = answer["statements"][0]
        return tree

    def text(self, tree: dict[str, Any]) -> str:
        """The SQL of a tree."""
        return self._ask("SELECT json_deserialize_sql(?)", json.dumps({"error": False, "statements": [tree]}))

    def query(self, text: str, caller: str, table: Callable[[Sequence[str], int | None], TableName]) -> Query:
        """The query in a text, checked, over the engine's names; `table` completes the parts of a name."""
        tree = self.tree(text)
        walk = _Walk(caller, table)
        try:
            walk.over(tree, frozenset())
            _shorten_columns(tree, walk.aliases)
            sql = self.text(tree)
        except RecursionError:
            raise too_deep() from None
        tables = sorted(walk.tables, key=lambda one: one.engine_name)
        columns = None if walk.reads_all else frozenset(walk.columns)
        return Query(sql, tuple(tables), columns, tuple(sorted(walk.endpoints)))

    def _ask(self, question: str, value: str) -> str:
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            try:
                ((answer,),) = self._connection.execute(question, [value]).fetchall()
            except duckdb.SerializationException:  # 256 levels of JSON
                raise too_deep() from None
        return str(answer)


class _Walk:
    """One walk over a tree: refuses what may not stand there, and gives every table the engine's name for it."""

    def __init__(self, caller: str, table: Callable[[Sequence[str], int | None], TableName]) -> None:
        self._caller, self._table = caller, table
        self.tables: set[TableName] = set()
        self.aliases: dict[tuple[str, ...], str] = {}
        """What a table without alias may be called, in two or three parts -> its alias now."""
        self.columns: set[str] = set()
        self.endpoints: set[str] = set()
        self._alone: set[str] = set()
        """Names that stand alone: of a column, or of a table, which is then all of its columns."""
        self._called: set[str] = set()
        """What the tables are called."""
        self._reads_all = False

    @property
    def reads_all(self) -> bool:
        """Whether it is unknown which columns are read."""
        return self._reads_all or bool(self._alone & self._called)

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
        self._reads_all |= kind in ("STAR", "PIVOT", "SHOW_REF", "POSITIONAL_REFERENCE")
        self._reads_all |= node.get("ref_type") == "NATURAL"
        if node.get("class") == "COLUMN_REF" and len(node["column_names"]) == 1:  # not if it was `current_user`
            self._alone.add(node["column_names"][0].lower())
        self.columns.update(name.lower() for name in (node.get("column_names") or node.get("using_columns") or ()))
        if kind == "TABLE_FUNCTION" and node["function"]["function_name"].lower() not in TABLE_FUNCTIONS:
            raise PermissionDenied(
                f"function {node['function']['function_name']!r} may not be used; of those that make tables there are "
                f"{list(TABLE_FUNCTIONS)}",
                param="statement",
            )
        if kind == "SHOW_REF" and (node.get("query") is None or node.get("show_type") not in ("DESCRIBE", "SUMMARY")):
            raise BadRequest("only DESCRIBE and SUMMARIZE of a table or query may stand in a query", param="statement")

    def _check_expression(self, node: dict[str, Any]) -> None:
        function = str(node.get("function_name", "")).lower()
        names: list[str] = node.get("column_names") or []
        if function in _CALLER or (len(names) == 1 and names[0].lower() in _CALLER):
            kept = {key: node[key] for key in ("query_location", "query_location_length")}
            kept["alias"] = node.get("alias") or function or names[0].lower()
            node.clear()
            node.update({"class": "CONSTANT", "type": "VALUE_CONSTANT", **kept})
            node["literal"] = {"kind": "STRING", "text": self._caller}
        elif function == sql_ai.NAME:
            self.endpoints.add(sql_ai.read_call(node))
        elif function in _REFUSED_FUNCTIONS or function.startswith(_REFUSED_PREFIXES):
            raise PermissionDenied(
                f"function {function!r} may not be used: it tells about the engine, or changes it", param="statement"
            )

    def _name(self, node: dict[str, Any], within: frozenset[str]) -> None:
        parts = list(node["qualified_name"]["path"])
        if len(parts) == 1 and parts[0].lower() in within:
            if node["at_clause"] is not None:
                raise BadRequest(f"WITH query {parts[0]!r} has no versions", param="statement")
            return
        table = self._table(parts, _at(node["at_clause"]))
        self.tables.add(table)
        self._reads_all |= bool(node.get("column_name_alias"))  # its columns go by other names
        alias = parts[-1].partition("@")[0]
        self._called.add((node["alias"] or alias).lower())
        if not node["alias"]:
            node["alias"] = alias
            whole = tuple(table.name.split("."))
            self.aliases[whole] = self.aliases[whole[1:]] = alias
        node.update({"catalog_name": "", "schema_name": "", "table_name": table.engine_name, "at_clause": None})
        node["qualified_name"] = {"path": [table.engine_name]}


def too_deep() -> BadRequest:
    return BadRequest("the statement is nested too deep", param="statement")


def _check_size(text: str) -> None:
    """The parser works in this process: it is asked nothing that takes it long, or much memory."""
    if len(text.encode()) > MAX_STATEMENT_BYTES:
        raise BadRequest(f"the statement is longer than {MAX_STATEMENT_BYTES:,} bytes", param="statement")
    tokens = tokenize(text)
    depth = deepest = parts = longest = operations = 0
    for before, token in zip([None, *tokens], tokens, strict=False):
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        parts = parts + 1 if token.text == "." else parts if before is not None and before.text == "." else 0
        operations += token.word in _SET_OPERATIONS
        deepest, longest = max(deepest, depth), max(longest, parts)
    if deepest > MAX_DEPTH:
        raise BadRequest(
            f"the statement is nested too deep: a depth of {deepest:,} brackets, not {MAX_DEPTH}", param="statement"
        )
    for count, most, what in (
        (longest + 1, MAX_NAME_PARTS, "parts in a name"),
        (operations, MAX_SET_OPERATIONS, "UNION, INTERSECT and EXCEPT"),
    ):
        if count > most:
            raise BadRequest(f"the statement has {count:,} {what}; there may be {most:,}", param="statement")


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
    if len(literal["text"]) > len(str(_LARGEST_VERSION)) or int(literal["text"]) > _LARGEST_VERSION:
        raise BadRequest(f"version {literal['text'][:40]} is more than {_LARGEST_VERSION}, the largest of a table")
    return int(literal["text"])


def _not_read(text: str, answer: dict[str, Any]) -> BadRequest:
    if answer.get("error_type") == "not implemented":
        first = next(iter(tokenize(text)), None)
        word = first.word if first is not None else "this"
        return BadRequest(
            f"{word} may not be run; {KINDS} may, and {WRITING_KINDS} where writing is asked for", param="statement"
        )
    where = f" (at character {int(answer['position']) + 1})" if "position" in answer else ""
    hint = "; has a parameter no value?" if answer["error_message"].endswith('near ":"') else ""
    return BadRequest(f"{answer['error_message']}{where}{hint}", param="statement")
