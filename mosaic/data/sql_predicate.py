"""A DELETE's condition: read by the engine's parser, written again for deltalake, which deletes.

Two engines read SQL differently in the small (case of names, casts, functions), so only what means the same in both
may stand in a condition: columns, constants of their types, comparisons, IN, BETWEEN, LIKE, IS NULL, AND, OR, NOT.
"""

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
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
_CASTS = ("DATE", "TIMESTAMP")


class _Term(NamedTuple):
    """A column, a constant (its `value`), or a condition."""

    sql: str
    kind: pa.DataType | None = None
    """Of a column, and of a condition; a constant has that of the column that it is compared with."""
    value: Any = None


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


def comparable(column: str, kind: pa.DataType) -> str:
    """A column (quoted) as deltalake has to compare it, so that no row is missed and all mean what they mean in DuckDB.

    Not the column itself where a file's statistics say too little about it: as JSON they round decimals and leave out
    NaN, and deltalake 1.6 skips files by them. To DataFusion, NaN may also be less than all, and -0.0 less than 0.0.
    """
    if pa.types.is_floating(kind):
        return f"CASE WHEN isnan({column}) THEN CAST('NaN' AS DOUBLE) ELSE CAST({column} AS DOUBLE) + 0.0 END"
    if pa.types.is_decimal(kind):
        return f"CASE WHEN {column} IS NULL THEN NULL ELSE {column} END"
    return column


class _Writer:
    def __init__(self, schema: pa.Schema, parameters: Mapping[str, Any]) -> None:
        self._schema, self._parameters = schema, parameters
        self._by_folded = {name.lower(): name for name in schema.names}

    def condition(self, node: dict[str, Any]) -> str:
        """What is true, false or neither."""
        term = self.term(node)
        if term.kind != pa.bool_() and not isinstance(term.value, bool):
            raise BadRequest(f"a condition is true or false, but {term.sql[:80]} is neither", param="statement")
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
            # DataFusion's own IN misses values of a column that is compared by an expression.
            return _boolean(f"({' OR '.join(f'{value} = {one}' for one in several)})")
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
        """Columns of one type, and constants that are exactly of it.

        deltalake 1.6 makes a constant one of the column's type, whatever is lost by it: to `n = 1.5` it finds 1.
        """
        terms = [self.term(node) for node in nodes]
        kinds = {term.kind for term in terms if term.kind is not None}
        kind = kinds.pop() if len(kinds) == 1 else None
        if (
            kind is None
            or pa.types.is_nested(kind)
            or not all(term.kind == kind or _is_exactly(term.value, kind) for term in terms)
        ):
            shown = ", ".join(term.sql[:80] + (f" ({term.kind})" if term.kind else "") for term in terms)
            raise BadRequest(
                f"a DELETE's condition compares columns of one type with constants of it, not {shown}",
                param="statement",
            )
        if terms[0].kind is not None and terms[0] in terms[1:]:
            # deltalake 1.6 finds NULL for `NOT (n = n)` as it reads, and not as it deletes.
            raise BadRequest(
                f"a DELETE's condition compares no column with itself, as here {terms[0].sql[:80]}; write IS NULL or "
                "IS NOT NULL",
                param="statement",
            )
        return [_compared(term, kind) for term in terms]

    def _column(self, names: list[str]) -> _Term:
        name = self._by_folded.get(names[-1].lower())
        if len(names) != 1 or name is None:
            raise BadRequest(f"no column {'.'.join(names)!r}; there are {self._schema.names}", param="statement")
        quoted = name.replace('"', '""')
        return _Term(f'"{quoted}"', self._schema.field(name).type)

    def _like(self, node: dict[str, Any]) -> _Term:
        value, pattern = (self.term(argument["expression"]) for argument in node["arguments"])
        if value.kind != pa.string() or not isinstance(pattern.value, str) or "\\" in pattern.sql:
            raise BadRequest("LIKE of a DELETE takes a column of text and a constant without backslash")
        return _boolean(f"({value.sql} {_LIKES[node['function_name']]} {pattern.sql})")

    def _cast(self, node: dict[str, Any]) -> _Term:
        """Only of constants: `DATE '2026-01-01'`, `TIMESTAMP '2026-01-01 10:00:00'`."""
        child, target = node["child"], node["type_expr"]["type_name"].upper()
        constant = child["class"] == "CONSTANT" and child["literal"]["kind"] == "STRING"
        if target not in _CASTS or node["try_cast"] or not constant:
            raise BadRequest("a DELETE's condition takes DATE '...' and TIMESTAMP '...', no other CAST")
        text = child["literal"]["text"]
        moment = _moment(text, dt.date if target == "DATE" else dt.datetime)
        if moment is None:
            raise BadRequest(f"{text[:80]!r} is no {target} in ISO form", param="statement")
        return _Term(_quoted(text), value=moment)

    def _parameter(self, name: str) -> _Term:
        if name not in self._parameters:
            raise BadRequest(f"no value for parameter {name!r}", param="parameters")
        value = self._parameters[name]
        if value is None:
            raise _null()
        if isinstance(value, bool):
            return _Term(str(value).lower(), value=value)
        if isinstance(value, int | float | Decimal) and Decimal(value).is_finite():
            return _number(repr(value) if isinstance(value, float) else str(value))
        if isinstance(value, str):
            return _Term(_quoted(value), value=value)
        if isinstance(value, dt.date):
            return _Term(_quoted(value.isoformat()), value=value)
        raise BadRequest(f"parameter {name!r} of a DELETE may not be a {type(value).__name__}", param="parameters")


def _constant(literal: dict[str, Any]) -> _Term:
    kind, text = literal["kind"], str(literal.get("text", ""))
    if kind == "STRING":
        return _Term(_quoted(text), value=text)
    if kind in ("INTEGER", "NUMERIC"):
        return _number(text)
    if kind == "BOOLEAN":
        return _Term(text, value=text == "true")
    if kind == "NULL_LITERAL":
        raise _null()
    raise BadRequest(f"a DELETE's condition may not have a constant of the kind {kind}", param="statement")


def _number(text: str) -> _Term:
    try:
        return _Term(text, value=Decimal(text))
    except InvalidOperation:
        raise BadRequest(f"a DELETE's condition may not have the number {text[:80]}", param="statement") from None


def _compared(term: _Term, kind: pa.DataType) -> str:
    """A side of a comparison; deltalake 1.6 reads a bare number as a float, whatever the column is."""
    if term.kind is not None:
        return comparable(term.sql, kind)
    if pa.types.is_decimal(kind):
        return f"CAST('{term.value:f}' AS DECIMAL({kind.precision},{kind.scale}))"
    if pa.types.is_floating(kind):
        return f"CAST('{float(term.value) + 0.0!r}' AS DOUBLE)"  # of -0.0 there is 0.0 alone
    return term.sql


def _is_exactly(value: Any, kind: pa.DataType) -> bool:
    """Whether a constant is a value of a column's type, nothing lost."""
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(kind))
    if isinstance(value, Decimal):
        if pa.types.is_signed_integer(kind):
            whole = value.as_tuple().exponent == 0
            return bool(whole and -(2 ** (kind.bit_width - 1)) <= value < 2 ** (kind.bit_width - 1))
        if pa.types.is_decimal(kind):
            exponent = value.as_tuple().exponent
            scale = -exponent if isinstance(exponent, int) else kind.scale + 1
            size = value.copy_abs()  # abs() would round to 28 digits
            return bool(0 <= scale <= kind.scale and size < Decimal(10) ** (kind.precision - kind.scale))
        return bool(pa.types.is_float64(kind)) and abs(value) < Decimal("1e300")
    if pa.types.is_date(kind):
        moment = _moment(value, dt.date) if isinstance(value, str) else value
        return isinstance(moment, dt.date) and not isinstance(moment, dt.datetime)
    if pa.types.is_timestamp(kind):
        moment = _moment(value, dt.datetime) if isinstance(value, str) else value
        return isinstance(moment, dt.datetime) and (kind.tz is not None or moment.tzinfo is None)
    return isinstance(value, str) and bool(pa.types.is_string(kind))


def _moment(text: str, kind: type[dt.date]) -> dt.date | None:
    try:
        return kind.fromisoformat(text)
    except ValueError:
        return None


def _null() -> BadRequest:
    """Nothing is ever equal to NULL, but deltalake 1.6 takes such a condition for none, and deletes all rows."""
    return BadRequest("a DELETE's condition may not have the constant NULL, which equals nothing; write IS NULL")


def _boolean(sql: str) -> _Term:
    return _Term(sql, pa.bool_())


def _quoted(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
