"""A DELETE's condition: read by the engine's parser, written again for deltalake, which deletes.

Two engines read SQL differently in the small (case of names, casts, functions), so only what means the same in both
may stand in a condition: columns, constants, comparisons, IN, BETWEEN, LIKE, IS NULL, AND, OR, NOT.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

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
_LIKES = {"~~": "LIKE", "!~~": "NOT LIKE"}
_CASTS = {"DATE": "DATE", "TIMESTAMP": "TIMESTAMP"}


def predicate(parser: Parser, condition: str, columns: Sequence[str], parameters: Mapping[str, Any]) -> str:
    """The condition in deltalake's SQL; raises BadRequest for a column that is not there, and for what is not taken."""
    tree = parser.tree(f"SELECT {condition}")["node"]
    plain = tree["type"] == "SELECT_NODE" and (tree["from_table"] or {}).get("type") == "EMPTY"
    others = ("modifiers", "where_clause", "group_expressions", "group_sets", "having", "sample", "qualify")
    if not plain or tree["cte_map"]["map"] or any(tree[part] for part in others) or len(tree["select_list"]) != 1:
        raise BadRequest("WHERE of a DELETE takes one condition, and nothing may follow it", param="statement")
    try:
        return _Writer(columns, parameters).write(tree["select_list"][0])
    except RecursionError:
        raise too_deep() from None


class _Writer:
    def __init__(self, columns: Sequence[str], parameters: Mapping[str, Any]) -> None:
        self._columns, self._parameters = columns, parameters
        self._by_folded = {column.lower(): column for column in columns}

    def write(self, node: dict[str, Any]) -> str:
        if node["alias"]:
            raise BadRequest(f"a condition has no name, but this one is called {node['alias']!r}", param="statement")
        kind = node["class"]
        if kind == "COLUMN_REF":
            return self._column(node["column_names"])
        if kind == "CONSTANT":
            return _constant(node["literal"])
        if kind == "PARAMETER":
            return self._parameter(node["identifier"])
        if kind == "COMPARISON" and node["type"] in _COMPARISONS:
            return f"({self.write(node['left'])} {_COMPARISONS[node['type']]} {self.write(node['right'])})"
        if kind == "CONJUNCTION":
            word = " AND " if node["type"] == "CONJUNCTION_AND" else " OR "
            return f"({word.join(self.write(child) for child in node['children'])})"
        if kind == "BETWEEN":
            value, lower, upper = (self.write(node[part]) for part in ("input", "lower", "upper"))
            return f"({value} >= {lower} AND {value} <= {upper})"
        if kind == "OPERATOR":
            return self._operator(node["type"], [self.write(child) for child in node["children"]])
        if kind == "FUNCTION" and node["function_name"] in _LIKES:
            value, pattern = (self.write(argument["expression"]) for argument in node["arguments"])
            if "\\" in pattern:
                raise BadRequest("LIKE of a DELETE takes no backslash, which the engines read differently")
            return f"({value} {_LIKES[node['function_name']]} {pattern})"
        if kind == "CAST":
            return self._cast(node)
        raise BadRequest(
            f"a DELETE's condition takes columns, constants, comparisons, IN, BETWEEN, LIKE, IS NULL, AND, OR and NOT, "
            f"but not {node.get('function_name') or node['type']}",
            param="statement",
        )

    def _column(self, names: Sequence[str]) -> str:
        name = self._by_folded.get(names[-1].lower())
        if len(names) != 1 or name is None:
            raise BadRequest(f"no column {'.'.join(names)!r}; there are {list(self._columns)}", param="statement")
        quoted = name.replace('"', '""')
        return f'"{quoted}"'

    def _operator(self, kind: str, children: Sequence[str]) -> str:
        if kind == "OPERATOR_NOT":
            return f"(NOT {children[0]})"
        if kind == "OPERATOR_IS_NULL":
            return f"({children[0]} IS NULL)"
        if kind == "OPERATOR_IS_NOT_NULL":
            return f"({children[0]} IS NOT NULL)"
        if kind == "COMPARE_IN":
            return f"({children[0]} IN ({', '.join(children[1:])}))"
        raise BadRequest(f"a DELETE's condition may not have {kind}", param="statement")

    def _cast(self, node: dict[str, Any]) -> str:
        """Only of constants: `DATE '2026-01-01'`, `TIMESTAMP '2026-01-01 10:00:00'`."""
        target = node["type_expr"]["type_name"].upper()
        if target not in _CASTS or node["child"]["class"] != "CONSTANT" or node["try_cast"]:
            raise BadRequest("a DELETE's condition takes DATE '...' and TIMESTAMP '...', no other CAST")
        return f"CAST({_constant(node['child']['literal'])} AS {_CASTS[target]})"

    def _parameter(self, name: str) -> str:
        if name not in self._parameters:
            raise BadRequest(f"no value for parameter {name!r}", param="parameters")
        return _literal(name, self._parameters[name])


def _constant(literal: dict[str, Any]) -> str:
    kind, text = literal["kind"], literal.get("text", "")
    if kind == "STRING":
        return _quoted(text)
    if kind in ("INTEGER", "NUMERIC", "BOOLEAN"):
        return str(text)
    if kind == "NULL_LITERAL":
        return "NULL"
    raise BadRequest(f"a DELETE's condition may not have a constant of the kind {kind}", param="statement")


def _literal(name: str, value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | Decimal):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dt.datetime):
        return f"CAST({_quoted(value.isoformat(sep=' '))} AS TIMESTAMP)"
    if isinstance(value, dt.date):
        return f"CAST({_quoted(value.isoformat())} AS DATE)"
    raise BadRequest(f"parameter {name!r} of a DELETE may not be a {type(value).__name__}", param="parameters")


def _quoted(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
