"""A Python function's source to what the catalog keeps of a function; parsed, never imported."""

import ast
from typing import Any, NamedTuple

from mosaic.errors import BadRequest

_TYPES = {
    "str": "string",
    "int": "bigint",
    "float": "double",
    "bool": "boolean",
    "bytes": "binary",
    "date": "date",
    "datetime": "timestamp",
    "Decimal": "decimal(38,18)",
    "None": "void",
}
_ENUM = {
    "string": "STRING",
    "bigint": "LONG",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    "binary": "BINARY",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "void": "NULL",
}
_HINTS = f"{', '.join(_TYPES)}, list[...] or dict[str, ...]"


class Read(NamedTuple):
    """What the source says."""

    spec: dict[str, Any]
    """As `catalog.functions` takes it."""
    comment: str


def read_function(source: str, name: str | None = None) -> Read:
    """The only function of a module, or that of this name; raises BadRequest with the line that does not fit."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        raise BadRequest(f"the source is no Python: {error}" + ("" if line is None else f" in line {line}")) from None
    found = _chosen(module, name)
    parameters = _parameters(found)
    result = _type(found.returns, f"what {found.name} returns", found.lineno)
    return Read(
        spec={
            "input_params": parameters,
            "data_type": _enum(result),
            "full_data_type": result,
            "routine_body": "EXTERNAL",
            "external_language": "PYTHON",
            "routine_definition": _body(source, found),
        },
        comment=ast.get_docstring(found) or "",
    )


def _chosen(module: ast.Module, name: str | None) -> ast.FunctionDef:
    functions = [one for one in module.body if isinstance(one, ast.FunctionDef)]
    if name is not None:
        functions = [one for one in functions if one.name == name]
    if len(functions) != 1:
        there = [one.name for one in module.body if isinstance(one, ast.FunctionDef)]
        wanted = "one function" if name is None else f"one function {name!r} (def, not async def)"
        raise BadRequest(f"the source must have {wanted} at its top, and has {there}; --def chooses one")
    (found,) = functions
    if found.decorator_list:
        raise BadRequest(f"line {found.lineno}: {found.name} has a decorator, which would be lost; leave it out")
    if any(isinstance(one, ast.Yield | ast.YieldFrom) for one in ast.walk(found)):
        raise BadRequest(f"line {found.lineno}: {found.name} yields; a function of the catalog returns one value")
    _check_alone(module, found)
    return found


def _check_alone(module: ast.Module, found: ast.FunctionDef) -> None:
    """Only the body is kept, so what it uses of the rest of the file would be missing when it runs."""
    used = {one.id for part in found.body for one in ast.walk(part) if isinstance(one, ast.Name)}
    for statement in module.body:
        lost = sorted(_bound(statement) & used) if statement is not found else []
        if lost:
            raise BadRequest(
                f"line {statement.lineno}: {found.name} uses {lost[0]!r}, which is outside of it; move that into it"
            )


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module makes."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(one.asname or one.name).partition(".")[0] for one in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    return {one.id for one in ast.walk(statement) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _parameters(found: ast.FunctionDef) -> list[dict[str, Any]]:
    given = found.args
    if given.vararg or given.kwarg:
        raise BadRequest(f"line {found.lineno}: {found.name} takes * or **; name each parameter")
    several = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(several) - len(given.defaults))
    pairs = [*zip(several, [*defaults, *given.defaults], strict=True)]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return [_parameter(one, default, position) for position, (one, default) in enumerate(pairs)]


def _parameter(one: ast.arg, default: ast.expr | None, position: int) -> dict[str, Any]:
    text = _type(one.annotation, f"parameter {one.arg!r}", one.lineno)
    made = {"name": one.arg, "type_text": text, "type_name": _enum(text), "position": position}
    return made if default is None else {**made, "parameter_default": _literal(default, one.arg)}


def _type(hint: ast.expr | None, what: str, line: int) -> str:
    """In Spark's words."""
    if hint is None:
        raise BadRequest(f"line {line}: {what} has no type hint; there are {_HINTS}")
    if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
        written = hint.value
        try:
            hint = ast.parse(written, mode="eval").body
        except (SyntaxError, ValueError):
            raise BadRequest(f"line {line}: {what} has the type {written!r}; there are {_HINTS}") from None
    if isinstance(hint, ast.BinOp) and isinstance(hint.op, ast.BitOr):
        sides = [side for side in (hint.left, hint.right) if ast.unparse(side) != "None"]
        if len(sides) == 1:  # every value may be null
            return _type(sides[0], what, line)
    if isinstance(hint, ast.Subscript):
        container, within = ast.unparse(hint.value), hint.slice
        if container == "list":
            return f"array<{_type(within, what, line)}>"
        if container == "dict" and isinstance(within, ast.Tuple) and len(within.elts) == 2:
            key, value = within.elts
            return f"map<{_type(key, what, line)},{_type(value, what, line)}>"
    text = _TYPES.get(ast.unparse(hint).rpartition(".")[2])
    if text is None:
        raise BadRequest(f"line {line}: {what} has the type {ast.unparse(hint)}; there are {_HINTS}")
    return text


def _enum(text: str) -> str:
    return _ENUM.get(text, text.partition("<")[0].partition("(")[0].upper())


def _literal(default: ast.expr, parameter: str) -> str:
    """As SQL writes it."""
    try:
        value = ast.literal_eval(default)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        value = ...
    if value is None or isinstance(value, bool):
        return {None: "NULL", True: "TRUE", False: "FALSE"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    raise BadRequest(
        f"line {default.lineno}: the default of {parameter!r} must be a number, text, True, False or None, "
        f"not {ast.unparse(default)}"
    )


def _body(source: str, found: ast.FunctionDef) -> str:
    """The statements after the docstring, which mean the same when they are indented into a function again."""
    has_docstring = ast.get_docstring(found, clean=False) is not None
    statements = found.body[1:] if has_docstring else found.body
    if not statements:
        raise BadRequest(f"line {found.lineno}: {found.name} has no body but its docstring")
    first = statements[0]
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # as `ast` counts them
    start, above = first.lineno, found.body[0].end_lineno if has_docstring else found.lineno
    if not lines[start - 1].encode()[: first.col_offset].strip():  # not beside the def
        while start - 1 > (above or 0) and lines[start - 2].lstrip().startswith("#"):
            start -= 1  # comments above it belong to it
        margin = first.col_offset
        moved = [
            line if line[:margin].strip() else line[margin:] for line in lines[start - 1 : statements[-1].end_lineno]
        ]
        if _means("\n".join(moved), statements):
            return "\n".join(moved)
    body = "\n".join(map(ast.unparse, statements))
    if _means(body, statements):
        return body
    raise BadRequest(
        f"line {first.lineno}: the body has text over several lines that cannot be moved; write it with \\n"
    )


def _means(body: str, statements: list[ast.stmt]) -> bool:
    """Whether a body, indented by four as the catalog does, is these statements."""
    again = "def routine():\n" + "\n".join(f"    {line}" for line in body.split("\n")) + "\n"
    try:
        parsed = ast.parse(again).body[0]
    except SyntaxError:
        return False
    assert isinstance(parsed, ast.FunctionDef)
    return [ast.dump(one) for one in parsed.body] == [ast.dump(one) for one in statements]
