"""MLflow's scoring protocol as our own replicas read it: the four ways to say what is predicted from."""

from collections.abc import Mapping, Sequence
from typing import Any

from mosaic.errors import BadRequest
from mosaic.protocol import PREDICT_INPUTS


def input_of(body: Mapping[str, Any]) -> tuple[str, Any]:
    """The one input of a body, by name; raises BadRequest for none, several, or a field beside it and `params`."""
    given = [name for name in PREDICT_INPUTS if name in body]
    unknown = sorted(body.keys() - {*PREDICT_INPUTS, "params"})
    if unknown or len(given) != 1:
        raise BadRequest(
            f"the body must have exactly one of {list(PREDICT_INPUTS)}, and may have params; it has {sorted(body)}",
            param=unknown[0] if unknown else None,
        )
    return given[0], body[given[0]]


def read_rows(body: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, list[Any]]:
    """The input's name and its rows, each an object unless there is one column, whose values may stand for themselves.

    What is in the rows is not looked at. Raises BadRequest for another shape.
    """
    name, value = input_of(body)
    if name == "dataframe_split":
        return name, _split(value)
    if name != "dataframe_records" and isinstance(value, dict):
        return name, _by_column(name, value)
    if name != "dataframe_records" and len(columns) == 1:
        value = value if isinstance(value, list) else [value]
        return name, [row if isinstance(row, dict) else {columns[0]: row} for row in value]
    if not isinstance(value, list):
        raise BadRequest(f"{name} must be a list of rows, not {type(value).__name__}", param=name)
    return name, value


def _split(value: Any) -> list[dict[str, Any]]:
    name = "dataframe_split"
    columns, data = (value.get("columns"), value.get("data")) if isinstance(value, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(data, list) or value.keys() - {"columns", "data", "index"}:
        raise BadRequest('dataframe_split must be {"columns": [...], "data": [[...], ...]}', param=name)
    if not all(isinstance(column, str) for column in columns) or len(set(columns)) != len(columns):
        raise BadRequest("dataframe_split.columns must be texts, each once", param=name)
    for place, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            raise BadRequest(f"{name}.data[{place}] must be a list of {len(columns)} values", param=name)
    return [dict(zip(columns, row, strict=True)) for row in data]


def _by_column(name: str, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not all(isinstance(one, list) for one in value.values()) or len({len(one) for one in value.values()}) > 1:
        raise BadRequest(f"{name} must have a list for each column, all of one length", param=name)
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def check_rows(name: str, rows: Sequence[Any], columns: Mapping[str, str]) -> None:
    """Raises BadRequest for a row that has not exactly these columns, with values of their types."""
    for place, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != columns.keys():
            has = sorted(map(str, row))[:20] if isinstance(row, dict) else type(row).__name__
            raise BadRequest(f"{name}[{place}] must have the columns {sorted(columns)}; it has {has}", param=name)
        for column, kind in columns.items():
            if not _is(row[column], kind):
                told = f"{name}[{place}].{column} must be a {kind}, not {str(row[column])[:100]!r}"
                raise BadRequest(told, param=name)


def _is(value: Any, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "long":
            return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        case "double":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            return kind == "any"
