"""A DELETE's condition: read by the engine's parser, written again for deltalake, which deletes.

Two engines read SQL differently in the small (case of names, casts, functions), so only what means the same in both
may stand in a condition: columns, constants of their types, comparisons, IN, BETWEEN, LIKE, IS NULL, AND, OR, NOT.
"""

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa

from mosaic.data.sql_tree import Parser, too_deep
from mosaic.errors import BadRequest

_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
_OPERATORS = {
    "OPERATOR_NOT": "(NOT {0})",
    "OPERATOR_IS_NULL": "({0} IS NULL)",
    "OPERATOR_IS_NOT_NULL": "({0} IS NOT NULL)",
}
_LIKES = {"~~": "LIKE", "!~~": "NOT LIKE"}
_CASTS = {"DATE": "date", "TIMESTAMP": "moment"}


class _Term(NamedTuple):
    sql: str
    family: str
    """Of its type; `text constant` fits a date or a moment too, which both engines read in it."""


def predicate(parser: Parser, condition: str, schema: pa.Schema, parameters: Mapping[str, Any]) -> str:
    """The condition in deltalake's SQL; raises BadRequest for a column that is not there, and for what is not taken."""
    tree = parser.tree(f"SELECT {condition}")["node"]
    plain = tree["type"] == "SELECT_NODE" and (tree["from_table"] or {}).get("type") == "EMPTY"
    others = ("modifiers", "where_clause", "group_expressions", "group_sets", "having", "sample", "qualify")
    if not plain or tree["cte_map"]["map"] or any(tree[part] for part in others) or len(tree["select_list"]) != 1:
        raise BadRequest("WHERE of a DELETE takes one condition, and nothing may follow it", param="statement")
    try:
        return _Writer(schema, parameters).condition(tree["select_list"][0])
    except RecursionError:
        raise too_deep() from None


class _Writer:
    def __init__(self, schema: pa.Schema, parameters: Mapping[str, Any]) -> None:
        self._schema, self._parameters = schema, parameters
        self._by_folded = {name.lower(): name for name in schema.names}

    def condition(self, node: dict[str, Any]) -> str:
        """What is true, false or neither."""
        term = self.term(node)
        if term.family != "boolean":
            raise BadRequest(f"a condition is true or false, but {term.sql[:80]} is {term.family}", param="statement")
        return term.sql

    def term(self, node: dict[str, Any]) -> _Term:
        if node["alias"]:
            raise BadRequest(f"a condition has no name, but this one is called {node['alias']!r}", param="statement")
        kind, name = node["class"], node["type"]
        if kind == "COLUMN_REF":
            return self._column(node["column_names"])
        if kind == "CONSTANT":
            return _constant(node["literal"])
        if kind == "PARAMETER":
            return self._parameter(node["identifier"])
        if kind == "COMPARISON" and name in _COMPARISONS:
            left, right = self._alike(node["left"], node["right"])
            return _boolean(f"({left} {_COMPARISONS[name]} {right})")
        if kind == "CONJUNCTION":
            word = " AND " if name == "CONJUNCTION_AND" else " OR "
            return _boolean(f"({word.join(self.condition(child) for child in node['children'])})")
        if kind == "BETWEEN":
            value, lower, upper = self._alike(node["input"], node["lower"], node["upper"])
            return _boolean(f"({value} >= {lower} AND {value} <= {upper})")
        if kind == "OPERATOR" and name == "COMPARE_IN":
            value, *several = self._alike(*node["children"])
            return _boolean(f"({value} IN ({', '.join(several)}))")
        if kind == "OPERATOR" and name in _OPERATORS:
            child = node["children"][0]
            return _boolean(
                _OPERATORS[name].format(self.condition(child) if name == "OPERATOR_NOT" else self.term(child).sql)
            )
        if kind == "FUNCTION" and node["function_name"] in _LIKES:
            return self._like(node)
        if kind == "CAST":
            return self._cast(node)
        raise BadRequest(
            "a DELETE's condition takes columns, constants, comparisons, IN, BETWEEN, LIKE, IS NULL, AND, OR and NOT, "
            f"but not {node.get('function_name') or name}",
            param="statement",
        )

    def _alike(self, *nodes: dict[str, Any]) -> list[str]:
        """Terms of one type; the engines would make one of the other, each in its own way."""
        terms = [self.term(node) for node in nodes]
        families = {term.family for term in terms} - {"text constant"}
        constants = len(families) == 1 and families <= {"text", "date", "moment"}
        if len(families) > 1 or (len(families) == 1 and not constants and any(_is_text(term) for term in terms)):
            shown = ", ".join(f"{term.sql[:80]} ({term.family})" for term in terms)
            raise BadRequest(f"a DELETE's condition compares like with like, not {shown}", param="statement")
        return [term.sql for term in terms]

    def _column(self, names: list[str]) -> _Term:
        name = self._by_folded.get(names[-1].lower())
        if len(names) != 1 or name is None:
            raise BadRequest(f"no column {'.'.join(names)!r}; there are {self._schema.names}", param="statement")
        quoted = name.replace('"', '""')
        return _Term(f'"{quoted}"', _family(self._schema.field(name).type))

    def _like(self, node: dict[str, Any]) -> _Term:
        value, pattern = (self.term(argument["expression"]) for argument in node["arguments"])
        if value.family != "text" or pattern.family != "text constant" or "\\" in pattern.sql:
            raise BadRequest("LIKE of a DELETE takes a column of text and a constant without backslash")
        return _boolean(f"({value.sql} {_LIKES[node['function_name']]} {pattern.sql})")

    def _cast(self, node: dict[str, Any]) -> _Term:
        """Only of constants: `DATE '2026-01-01'`, `TIMESTAMP '2026-01-01 10:00:00'`."""
        family = _CASTS.get(node["type_expr"]["type_name"].upper())
        child = node["child"]
        if family is None or node["try_cast"] or child["class"] != "CONSTANT" or child["literal"]["kind"] != "STRING":
            raise BadRequest("a DELETE's condition takes DATE '...' and TIMESTAMP '...', no other CAST")
        return _moment(child["literal"]["text"], family)

    def _parameter(self, name: str) -> _Term:
        if name not in self._parameters:
            raise BadRequest(f"no value for parameter {name!r}", param="parameters")
        value = self._parameters[name]
        if value is None:
            raise _null()
        if isinstance(value, bool):
            return _boolean(str(value).lower())
        if isinstance(value, int | float | Decimal):
            return _Term(repr(value) if isinstance(value, float) else str(value), "number")
        if isinstance(value, str):
            return _Term(_quoted(value), "text constant")
        if isinstance(value, dt.date):
            return _moment(value.isoformat(), "moment" if isinstance(value, dt.datetime) else "date")
        raise BadRequest(f"parameter {name!r} of a DELETE may not be a {type(value).__name__}", param="parameters")


def _constant(literal: dict[str, Any]) -> _Term:
    kind, text = literal["kind"], str(literal.get("text", ""))
    if kind == "STRING":
        return _Term(_quoted(text), "text constant")
    if kind in ("INTEGER", "NUMERIC"):
        return _Term(text, "number")
    if kind == "BOOLEAN":
        return _boolean(text)
    if kind == "NULL_LITERAL":
        raise _null()
    raise BadRequest(f"a DELETE's condition may not have a constant of the kind {kind}", param="statement")


def _moment(text: str, family: str) -> _Term:
    """As text, which deltalake reads in the column's own unit and zone; by CAST it would compare different ones."""
    try:
        dt.datetime.fromisoformat(text) if family == "moment" else dt.date.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{text[:80]!r} is no {family} in ISO form", param="statement") from None
    return _Term(_quoted(text), family)


def _null() -> BadRequest:
    """Nothing is ever equal to NULL, but deltalake 1.6 takes such a condition for none, and deletes all rows."""
    return BadRequest("a DELETE's condition may not have the constant NULL, which equals nothing; write IS NULL")


def _family(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    return "date" if pa.types.is_date(kind) else "moment" if pa.types.is_timestamp(kind) else str(kind)


def _boolean(sql: str) -> _Term:
    return _Term(sql, "boolean")


def _is_text(term: _Term) -> bool:
    return term.family == "text constant"


def _quoted(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
