"""`mosaic function create` from a Python function's source: what is kept means the same, and nothing is run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Mosaic

TYPES = '''
from __future__ import annotations
import datetime as dt
from datetime import date
from decimal import Decimal

def all_types(
    a: str, b: int, c: float, d: bool, e: bytes, f: date, g: dt.datetime, h: Decimal,
    i: list[int], j: dict[str, list[float]], k: "str | None" = None, *, l: int = -3, m: str = "it's", n: bool = True,
) -> None:
    """Takes one of everything."""
    return None
'''
EXPECTED_TYPES = [
    *("string", "bigint", "double", "boolean", "binary", "date", "timestamp", "decimal(38,18)"),
    *("array<bigint>", "map<string,array<double>>", "string", "bigint", "string", "boolean"),
]

SAME = {
    "plain": "def f(a: int, b: int = 2) -> int:\n    return a + b\n",
    "one line": "def f(a: int, b: int = 2) -> int: return a * b\n",
    "docstring and comments": (
        'def f(a: int, b: int = 2) -> int:\n    """Says.\n\n    More.\n    """\n'
        "    # why\n    c = a\n\n    return c - b\n"
    ),
    "tabs": "def f(a: int, b: int = 2) -> int:\n\tif a:\n\t\treturn b\n\treturn a\n",
    "two spaces": "def f(a: int, b: int = 2) -> int:\n  if a:\n    return b\n  return a\n",
    "text over lines": 'def f(a: int, b: int = 2) -> str:\n    return """x\n    y\nz  """ + str(a + b)\n',
    "text over lines, deeper": 'def f(a: int, b: int = 2) -> str:\n        return """x\n          y""" * a\n',
    "imports within": "def f(a: int, b: int = 2) -> float:\n    import math\n    return math.sqrt(a * b)\n",
    "function within": "def f(a: int, b: int = 2) -> int:\n    def g(x):\n        return x + b\n    return g(a)\n",
    "quotes": "def f(a: int, b: int = 2) -> str:\n    return 'it\\'s' + \"\\\"\" * a\n",
    "beside others": "def g() -> int:\n    return 1\n\ndef f(a: int, b: int = 2) -> int:\n    return a\n",
    "umlauts": "def f(a: int, b: int = 2) -> str:\n    return '" + chr(228) + "' * a\n",
}

REFUSED = {
    "def f(a, b: int) -> int:\n    return 1\n": "line 1: parameter 'a' has no type hint",
    "def f(a: int):\n    return 1\n": "line 1: what f returns has no type hint",
    "def f(a: set[int]) -> int:\n    return 1\n": "has the type set[int]; there are str, int",
    "def f(a: 'in t') -> int:\n    return 1\n": "has the type 'in t'",
    "def f(*a: int) -> int:\n    return 1\n": "line 1: f takes * or **",
    "def f(a: list[int] = []) -> int:\n    return 1\n": "line 1: the default of 'a' must be a number, text",
    "def f(a: int = print('run')) -> int:\n    return 1\n": "line 1: the default of 'a' must be",
    "@cache\ndef f(a: int) -> int:\n    return 1\n": "f has a decorator",
    "def f(a: int) -> int:\n    yield 1\n": "line 1: f yields",
    "async def f(a: int) -> int:\n    return 1\n": "must have one function 'f' (def, not async def)",
    "import math\ndef f(a: int) -> float:\n    return math.pi\n": "line 1: f uses 'math', which is outside of it",
    "N = 3\ndef f(a: int) -> int:\n    return a + N\n": "line 1: f uses 'N'",
    'def f(a: int) -> int:\n    """Only words."""\n': "line 1: f has no body but its docstring",
    "def g(a: int) -> int:\n    return 1\n": "must have one function 'f'",
    "def f(a: int -> int:\n    return 1\n": "is no Python",
    "def f(a: int) -> int:\n    return '\0'\n": "is no Python",
    "": "must have one function 'f'",
    "(" * 5000: "is no Python",
}


def call(source: str, name: str, *arguments: Any) -> Any:
    there: dict[str, Any] = {}
    exec(source, there)
    return there[name](*arguments)


def kept(spec: Mapping[str, Any]) -> str:
    """As a runner puts it together again."""
    body = "\n".join(f"    {line}" for line in spec["routine_definition"].split("\n"))
    names = ", ".join(one["name"] for one in spec["input_params"])
    return f"def routine({names}):\n{body}\n"


@pytest.mark.parametrize("case", SAME)
def test_what_is_kept_does_the_same(mosaic: Mosaic, case: str) -> None:
    mosaic.ok("function", "create", "main.docs.f", "--source", "-", "--def", "f", stdin=SAME[case])
    spec = mosaic.catalog.functions.get("main.docs.f").spec
    for a in (0, 1, 3):
        assert call(kept(spec), "routine", a, 2) == call(SAME[case], "f", a, 2)
    assert ("# why" in spec["routine_definition"]) == ("# why" in SAME[case])
    assert spec["input_params"][1]["parameter_default"] == "2"


def test_a_signature_in_the_catalogs_words(mosaic: Mosaic, tmp_path: Path) -> None:
    source = tmp_path / "types.py"
    source.write_text(TYPES)
    made = mosaic.json("function", "create", "main.docs.types", "--source", str(source))
    assert made == mosaic.catalog.functions.get("main.docs.types").model_dump(mode="json")
    params = made["spec"]["input_params"]
    assert [one["type_text"] for one in params] == EXPECTED_TYPES
    assert [one["position"] for one in params] == list(range(14))
    assert [one.get("parameter_default") for one in params[9:]] == [None, "NULL", "-3", "'it''s'", "TRUE"]
    assert (made["comment"], made["spec"]["full_data_type"]) == ("Takes one of everything.", "void")
    assert "array<bigint>" in mosaic.ok("function", "get", "main.docs.types")
    listed = mosaic.ok("function", "list", "main.docs").splitlines()[1].split()
    assert listed[:4] == ["main.docs.types", "void", "PYTHON", "admin"]


def test_the_source_is_never_run(mosaic: Mosaic, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    source = f"open({str(trace)!r}, 'w').close()\n\ndef f(a: int) -> int:\n    return a\n"
    mosaic.ok("function", "create", "main.docs.f", "--source", "-", stdin=source)
    assert not trace.exists()


@pytest.mark.parametrize("source", REFUSED, ids=lambda source: source[:30].encode("unicode_escape").decode())
def test_a_function_that_is_refused(shared: Mosaic, source: str) -> None:
    ended = shared.run("function", "create", "main.docs.f", "--source", "-", "--def", "f", stdin=source)
    assert ended.code == 1 and ended.err.startswith("mosaic: ") and REFUSED[source] in ended.err, ended.err
    assert shared.catalog.functions.find("main.docs.f") is None


def test_source_that_is_no_text(shared: Mosaic) -> None:
    ended = shared.run("function", "create", "main.docs.f", "--source", "-", stdin=b"\xff\xfe")
    assert ended.code == 1 and "is not UTF-8" in ended.err
    ended = shared.run("prompt", "register", "main.docs.p", "--template", "-", stdin=b"\xff\xfe")
    assert ended.code == 1 and "is not UTF-8" in ended.err
