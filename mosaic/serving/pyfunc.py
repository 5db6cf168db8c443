"""The replica of a custom model: any MLflow model by its python_function flavor, asked in MLflow's scoring protocol."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from typing import Any

from ray import serve

from mosaic.errors import BadRequest, EngineFailed, MosaicError, Unprocessable
from mosaic.protocol import EngineRequest
from mosaic.serving import packages
from mosaic.serving.scoring import input_of
from mosaic.serving.whole import AnswersWhole

_BATCH_WAIT_SECONDS = 0.005


class Pyfunc(AnswersWhole):
    """Answers from the folder of an MLflow model, whose signature every request is held against.

    With `max_batch_size` over 1 that many requests of one shape are predicted from at once, as one table: only for
    models that answer row by row. A batch waits at most 5 ms for more to come. Where the protocol is from: MLflow's
    documentation, "Local inference spec".
    """

    def __init__(self, folder: str, name: str, *, max_batch_size: int = 1, pip: Sequence[str] = ()) -> None:
        packages.use(pip)  # before anything is imported
        import mlflow  # seconds, which a driver that only names this class does not wait for
        from mlflow.models import Model

        self._name, self._batches = name, max_batch_size > 1
        self._model = mlflow.pyfunc.load_model(folder)
        self._schema = self._model.metadata.get_input_schema()
        self._example = Model.load(folder).load_input_example(folder) if _has_example(self._model) else None
        # One at a time, since models are not known to be safe for threads; also those that nobody waits for any more.
        self._turns = ThreadPoolExecutor(1)
        if self._batches:
            self._in_batches.set_max_batch_size(max_batch_size)

    async def answer(self, request: EngineRequest) -> AsyncIterator[dict[str, Any]]:
        """See `mosaic.protocol.Engine`."""
        if request.task != "predict":
            raise Unprocessable(f"{self._name!r} predicts; it does not {request.task}")
        if not request.body:
            if self._example is not None:
                await self._predict(self._example, None)
            yield {"predictions": []}
            return
        table, params = await asyncio.to_thread(self._read, request.body)
        if self._batches and params is None:
            answer = await self._in_batches(table)
            if isinstance(answer, MosaicError):
                raise answer
            yield answer
        else:
            yield await self._predict(table, params)

    def _read(self, body: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
        from mlflow.exceptions import MlflowException
        from mlflow.models import validate_schema
        from mlflow.pyfunc.scoring_server import infer_and_parse_data

        name, value = input_of(body)
        try:
            table = infer_and_parse_data({name: value}, self._schema)
            if self._schema is not None:
                validate_schema(table, self._schema)
        except (MlflowException, ValueError, TypeError, KeyError) as error:
            told = str(getattr(error, "message", error))
            raise BadRequest(f"{name} is not what {self._name!r} predicts from: {told}", param=name) from None
        return table, body.get("params")

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def _in_batches(self, tables: list[Any]) -> Sequence[dict[str, Any] | MosaicError]:
        return await together(tables, lambda table: self._predict(table, None))

    async def _predict(self, table: Any, params: dict[str, Any] | None) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(self._turns, self._predicted, table, params)

    def _predicted(self, table: Any, params: dict[str, Any] | None) -> dict[str, Any]:
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc.scoring_server import predictions_to_json

        try:
            found = self._model.predict(table, params=params)
        except MlflowException as error:
            raise BadRequest(f"{self._name!r} refuses: {error.message}", param="params" if params else None) from None
        except Exception as error:
            raise EngineFailed(f"{self._name!r} failed: {type(error).__name__}: {error}") from error
        try:
            written = StringIO()
            predictions_to_json(found, written)
            # JSON has no word for NaN and infinity.
            answered: dict[str, Any] = json.loads(written.getvalue(), parse_constant=lambda name: None)
        except Exception as error:
            raise EngineFailed(f"{self._name!r} answers what is no JSON: {type(error).__name__}: {error}") from error
        return answered


async def together(
    tables: Sequence[Any], predict: Callable[[Any], Awaitable[dict[str, Any]]]
) -> list[dict[str, Any] | MosaicError]:
    """The answer to each of several requests, or why there is none, of one prediction over all rows of the same shape.

    What cannot be predicted together (other columns or types, an error, other than one prediction for each row) is
    predicted apart, so that no request meets what is wrong with another's.
    """
    answers: dict[int, dict[str, Any] | MosaicError] = {}
    groups: dict[Any, list[int]] = {}
    for place, table in enumerate(tables):
        groups.setdefault(_shape(table) or place, []).append(place)
    for places in groups.values():
        found = await _of_group([tables[place] for place in places], predict) if len(places) > 1 else None
        for number, place in enumerate(places):
            answers[place] = found[number] if found else await _alone(tables[place], predict)
    return [answers[place] for place in range(len(tables))]


def _shape(table: Any) -> tuple[Any, ...] | None:
    """Columns and types, which must be equal for rows to be put together unchanged; None for what is no table."""
    import pandas as pd

    return (*table.columns, *map(str, table.dtypes)) if isinstance(table, pd.DataFrame) else None


async def _of_group(
    tables: Sequence[Any], predict: Callable[[Any], Awaitable[dict[str, Any]]]
) -> list[dict[str, Any]] | None:
    import pandas as pd

    rows = [len(table) for table in tables]
    try:
        predictions = (await predict(pd.concat(tables, ignore_index=True)))["predictions"]
    except MosaicError:
        return None
    if not isinstance(predictions, list) or len(predictions) != sum(rows):
        return None
    ends = itertools.accumulate(rows)
    return [{"predictions": predictions[end - count : end]} for count, end in zip(rows, ends, strict=True)]


async def _alone(table: Any, predict: Callable[[Any], Awaitable[dict[str, Any]]]) -> dict[str, Any] | MosaicError:
    try:
        return await predict(table)
    except MosaicError as error:
        return error


def _has_example(model: Any) -> bool:
    return model.metadata.saved_input_example_info is not None
