"""Python classes as models: what a folder of one holds, and the replica that answers from it.

    class Shout:
        def load(self, folder: Path) -> None: ...                         # once; `folder` has the files given
        def predict(self, rows: list[dict]) -> list: ...                  # one answer for each row

The folder has the module's source as `model.py` and `mosaic-model.json`, which names the class and its columns. The
code runs when it is loaded, so that a registered one needs what a pickle needs (EXECUTE UNSAFE).
"""

import asyncio
import hashlib
import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from mosaic.errors import BadRequest, EngineFailed, MosaicError, Unprocessable
from mosaic.protocol import EngineRequest, Wire
from mosaic.serving import packages
from mosaic.serving.batches import Batches
from mosaic.serving.scoring import check_rows, read_rows
from mosaic.serving.whole import AnswersWhole
from mosaic.settings import explain

DESCRIPTION, MODULE, FILES = "mosaic-model.json", "model.py", "files"
_IMPORT_SECONDS = 120


class Described(Wire):
    """`mosaic-model.json`."""

    format: Literal[1] = 1
    class_name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    """A class of the module, made without arguments."""
    columns: dict[str, Literal["string", "long", "double", "boolean", "any"]] = Field(min_length=1)
    """What each row has, by MLflow's names of types; `any` is any JSON."""
    example: list[dict[str, Any]] = Field(default_factory=list)
    """Rows that a rollout asks about before the model takes traffic."""

    @field_validator("example")
    @classmethod
    def _json(cls, example: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            json.dumps(example)
        except (TypeError, ValueError) as error:
            raise ValueError(f"is no JSON: {error}") from None
        return example


def write_model(
    model: type | str,
    to: Path,
    *,
    columns: Mapping[str, str],
    example: Sequence[Mapping[str, Any]] = (),
    files: Path | None = None,
) -> None:
    """Write the folder of a class, which is given itself or as `module.py:Class`.

    The whole module is copied by value, so it may import what is installed, and nothing that lies beside it. Raises
    BadRequest for a class without a source, columns or an example that are none, and a module that cannot be imported
    alone, with the reason.
    """
    source, class_name = _source_of(model)
    try:
        given = {"class_name": class_name, "columns": dict(columns), "example": [dict(row) for row in example]}
        described = Described.model_validate(given)
    except ValidationError as error:
        raise BadRequest(explain(error, Described)) from None
    check_rows("example", described.example, described.columns)
    to.mkdir(parents=True)
    (to / MODULE).write_text(source, encoding="utf-8")
    (to / DESCRIPTION).write_text(described.model_dump_json(indent=2))
    if files is not None:
        if not files.is_dir():
            raise BadRequest(f"files must be a folder; {str(files)!r} is none", param="files")
        shutil.copytree(files, to / FILES)
    # In a process of its own, where nothing is there that only this one has.
    tried = [sys.executable, "-P", "-m", "mosaic.serving.python_model", str(to)]
    try:
        ended = subprocess.run(tried, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BadRequest(f"importing the module of {class_name!r} took over {_IMPORT_SECONDS} s") from None
    if ended.returncode != 0:
        told = (ended.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise BadRequest(
            f"the module of {class_name!r} cannot be loaded on its own: {told}; what only `engine.pip` brings is to be "
            "imported in load()",
            param="source",
        )


def _source_of(model: type | str) -> tuple[str, str]:
    if isinstance(model, str):
        file, _, class_name = model.rpartition(":")
        path = Path(file)
        if not path.is_file():
            raise BadRequest(f"no file {file!r} of the class {class_name!r}", param="source")
    else:
        class_name = model.__qualname__
        found = inspect.getsourcefile(model) if model.__module__ != "builtins" else None
        if found is None or not Path(found).is_file() or "." in class_name:
            raise BadRequest(
                f"class {class_name!r} must stand at the top of a module that is a file, whose source can be copied",
                param="source",
            )
        path = Path(found)
    try:
        return path.read_text(encoding="utf-8"), class_name
    except UnicodeDecodeError as error:
        raise BadRequest(f"{str(path)!r} is no UTF-8: {error}", param="source") from None


def load_class(folder: Path) -> tuple[type, Described]:
    """The class of a model's folder; its module's code runs. Raises EngineFailed for one without `predict`."""
    described = Described.model_validate_json((folder / DESCRIPTION).read_text())
    name = f"mosaic_model_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, folder / MODULE)
    assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where pickle and dataclasses look for it
    spec.loader.exec_module(module)
    found = getattr(module, described.class_name, None)
    if not isinstance(found, type) or not callable(getattr(found, "predict", None)):
        raise EngineFailed(f"{MODULE} has no class {described.class_name!r} with a method predict(self, rows)")
    return found, described


class PythonModel(AnswersWhole):
    """Answers by a class of the user's own, in MLflow's scoring protocol: rows are checked before the class sees them.

    One call at a time, in a thread. With `max_batch_size` over 1 requests that come while a call runs are answered by
    the next one together, up to so many rows; if that fails each is asked apart, so that no request meets another's
    error.
    """

    def __init__(self, folder: str, name: str, *, max_batch_size: int = 1, pip: Sequence[str] = ()) -> None:
        packages.use(pip)
        self._name, self._at_once = name, max_batch_size
        made, self._described = load_class(Path(folder))
        self._model = made()
        if callable(getattr(self._model, "load", None)):
            self._model.load(Path(folder) / FILES)
        self._turns = ThreadPoolExecutor(1)
        self._batches: Batches[list[dict[str, Any]], list[Any]] = Batches(self._together, max_batch_size, len)

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        if request.task != "predict":
            raise Unprocessable(f"{self._name!r} predicts; it does not {request.task}")
        columns = self._described.columns
        if not request.body:
            rows = self._described.example
        else:
            if request.body.get("params"):
                raise BadRequest(f"{self._name!r} takes no params", param="params")
            name, rows = read_rows(request.body, list(columns))
            check_rows(name, rows, columns)
        yield {"predictions": await self._batches.ask(rows) if rows else []}

    async def _together(self, asked: list[list[dict[str, Any]]]) -> Sequence[list[Any] | MosaicError]:
        run = asyncio.get_running_loop().run_in_executor
        try:
            found = iter(await run(self._turns, self._predict, [row for rows in asked for row in rows]))
            return [[next(found) for _ in rows] for rows in asked]
        except MosaicError as error:
            return [error] if len(asked) == 1 else [(await self._together([rows]))[0] for rows in asked]

    def _predict(self, rows: list[dict[str, Any]]) -> list[Any]:
        try:
            found = self._model.predict(rows)
        except Exception as error:
            raise EngineFailed(f"{self._name!r} failed: {type(error).__name__}: {error}") from error
        found = found if isinstance(found, list) else getattr(found, "tolist", lambda: found)()
        if not isinstance(found, list) or len(found) != len(rows):
            what = f"{len(found)} of them" if isinstance(found, list) else type(found).__name__
            raise EngineFailed(
                f"{self._name!r} must answer a list with one answer for each of {len(rows)} rows: {what}"
            )
        try:
            # JSON has no word for NaN and infinity; what numpy counts with becomes Python's.
            told = json.dumps(found, default=lambda one: one.tolist())
            answers: list[Any] = json.loads(told, parse_constant=lambda name: None)
        except Exception as error:
            raise EngineFailed(f"{self._name!r} answers what is no JSON: {type(error).__name__}: {error}") from error
        return answers


if __name__ == "__main__":
    try:
        load_class(Path(sys.argv[1]))
    except MosaicError as refused:
        sys.exit(refused.message)
