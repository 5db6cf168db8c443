"""The replica of a custom model: any MLflow model by its python_function flavor, asked in MLflow's scoring protocol."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from io import StringIO
from typing import Any

from ray import serve

from mosaic.errors import BadRequest, EngineFailed, Unprocessable
from mosaic.protocol import EngineRequest

INPUTS = ("dataframe_split", "dataframe_records", "inputs", "instances")
"""MLflow's four ways to say what is to be predicted from; a request has exactly one."""
_BATCH_WAIT_SECONDS = 0.005


class Pyfunc:
    """Answers from the folder of an MLflow model, whose signature every request is held against.

    With `max_batch_size` over 1 that many requests are predicted from at once, as one table: only for models that
    answer row by row. A batch waits at most 5 ms for more to come. Where the protocol is from: MLflow's documentation,
    "Local inference spec".
    """

    def __init__(self, folder: str, name: str, *, max_batch_size: int = 1) -> None:
        import mlflow  # seconds, which a driver that only names this class does not wait for
        from mlflow.models import Model

        self._name, self._batches = name, max_batch_size > 1
        self._model = mlflow.pyfunc.load_model(folder)
        self._schema = self._model.metadata.get_input_schema()
        self._example = Model.load(folder).load_input_example(folder) if _has_example(self._model) else None
        self._turn = asyncio.Lock()
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
            yield await self._in_batches(table)
        else:
            yield await self._predict(table, params)

    def _read(self, body: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
        from mlflow.exceptions import MlflowException
        from mlflow.models import validate_schema
        from mlflow.pyfunc.scoring_server import infer_and_parse_data

        given = [name for name in INPUTS if name in body]
        unknown = sorted(body.keys() - {*INPUTS, "params"})
        if unknown or len(given) != 1:
            raise BadRequest(
                f"the body must have exactly one of {list(INPUTS)}, and may have params; it has {sorted(body)}",
                param=unknown[0] if unknown else None,
            )
        try:
            table = infer_and_parse_data({given[0]: body[given[0]]}, self._schema)
            if self._schema is not None:
                validate_schema(table, self._schema)
        except (MlflowException, ValueError, TypeError, KeyError) as error:
            told = str(getattr(error, "message", error))
            raise BadRequest(f"{given[0]} is not what {self._name!r} predicts from: {told}", param=given[0]) from None
        return table, body.get("params")

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def _in_batches(self, tables: list[Any]) -> Sequence[dict[str, Any]]:
        return await together(self._name, tables, lambda table: self._predict(table, None))

    async def _predict(self, table: Any, params: dict[str, Any] | None) -> dict[str, Any]:
        async with self._turn:  # models are not known to be safe for threads
            return await asyncio.to_thread(self._predicted, table, params)

    def _predicted(self, table: Any, params: dict[str, Any] | None) -> dict[str, Any]:
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc.scoring_server import predictions_to_json

        try:
            found = self._model.predict(table, params=params)
        except MlflowException as error:
            raise BadRequest(f"{self._name!r} refuses: {error.message}", param="params" if params else None) from None
        except Exception as error:
            raise EngineFailed(f"{self._name!r} failed: {type(error).__name__}: {error}") from error
        written = StringIO()
        predictions_to_json(found, written)
        answered: dict[str, Any] = json.loads(written.getvalue())
        return answered


async def together(
    name: str, tables: list[Any], predict: Callable[[Any], Awaitable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The answer to each of several requests, of one prediction over all their rows.

    Raises EngineFailed for a model that does not answer with one prediction for each row.
    """
    import pandas as pd

    if len(tables) == 1 or not all(isinstance(one, pd.DataFrame) for one in tables):
        return [await predict(table) for table in tables]
    rows = [len(table) for table in tables]
    predictions = (await predict(pd.concat(tables, ignore_index=True)))["predictions"]
    if not isinstance(predictions, list) or len(predictions) != sum(rows):
        raise EngineFailed(
            f"{name!r} does not answer row by row, and cannot be asked in batches; set max_batch_size to 1"
        )
    ends = list(itertools.accumulate(rows))
    return [{"predictions": predictions[end - count : end]} for count, end in zip(rows, ends, strict=True)]


def _has_example(model: Any) -> bool:
    return model.metadata.saved_input_example_info is not None
