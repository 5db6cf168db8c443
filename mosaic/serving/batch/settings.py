"""What a batch job is to do: which rows, who answers, what is asked, where the answers go."""

import json
import string
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from mosaic.catalog.names import parse_object, parse_table_version
from mosaic.errors import BadRequest
from mosaic.serving.flag_table import CHAT_FLAGS
from mosaic.serving.settings import EngineSettings
from mosaic.settings import Settings

_LONGEST_SCHEMA = 65_536
_OF_ENDPOINTS = ("scaling", "routing", "max_replicas_per_node", "max_batch_size", "health_timeout_seconds")
"""Engine settings that mean nothing in a job."""
TEMPLATE_FLAGS = ("chat_template", "default_chat_template_kwargs")
NOT_IN_A_JOB = frozenset(CHAT_FLAGS) - frozenset(TEMPLATE_FLAGS)
"""vLLM's flags about how its server answers chats."""


class Sampling(Settings):
    """How a chat model draws its tokens, in OpenAI's words; what is not said is as the model's own files say."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 always takes the likeliest token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only the likeliest tokens that together have this probability."""
    stop: tuple[str, ...] = Field(default=(), max_length=4)
    """Texts that end an answer."""
    seed: int | None = None
    """For the same draws again; the same for every row."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Against tokens that have come before."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Against tokens by how often they have come before."""

    def given(self) -> dict[str, Any]:
        """What was said, as a request's fields."""
        said = self.model_dump(exclude_none=True)
        stop = said.pop("stop")
        return {**said, **({"stop": list(stop)} if stop else {})}


class BatchSettings(Settings):
    """A batch job: one answer for each row of a table's version."""

    table: str
    """The rows, as `catalog.schema.table@version`; without a version the newest as the job starts, kept when it
    resumes."""
    where: str | None = None
    """Only the rows for which this holds, as in a DELETE: columns compared with constants."""
    model: str | None = None
    """A chat model that runs in the job itself: a packaged name, or a version, alias or adapter of the catalog."""
    endpoint: str | None = None
    """In place of `model`: an endpoint of the platform, asked through the gateway."""
    prompt: str | None = None
    """What is asked, from the row's columns: `Summarise: {text}`; `{{` is a brace."""
    system_prompt: str | None = None
    """The system message before it, a template too; only for chats."""
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """In place of `prompt`: the columns that a `predict` endpoint gets as a record, or the one that is embedded."""
    output_table: str
    """Where the answers go: a table of the job's own, which it makes."""
    keep: tuple[str, ...] | None = None
    """The input's columns that the output has too, such as its key; None: all of them."""
    max_tokens: int = Field(default=256, ge=1, le=1_000_000)
    """Longest answer of a chat; prompt and answer together have to fit the model."""
    sampling: Sampling = Sampling()
    """How the tokens of a chat are drawn."""
    json_schema: dict[str, Any] | None = None
    """Every answer of a chat is JSON of this schema."""
    piece_rows: int = Field(default=256, ge=1, le=100_000)
    """Rows that are committed together; after a kill the pieces on their way, a few of each engine, are done again."""
    engine: EngineSettings | None = None
    """How the model's engine runs; None: as the platform's settings say for it. `num_replicas` engines share the
    pieces."""
    concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests that an endpoint has at the same time; or batches of texts to embed or records to predict from."""
    stall_seconds: float = Field(default=900, gt=0)
    """The job ends with an error when no piece is done for so long; what was done stays done."""

    @field_validator("prompt", "system_prompt")
    @classmethod
    def _is_template(cls, template: str | None) -> str | None:
        if template is not None:
            columns_of(template)
        return template

    @field_validator("engine")
    @classmethod
    def _is_a_jobs(cls, engine: EngineSettings | None) -> EngineSettings | None:
        if engine is None:
            return None
        plain = EngineSettings()
        given = [f"engine.{name}" for name in _OF_ENDPOINTS if getattr(engine, name) != getattr(plain, name)]
        given += [f"engine.engine_kwargs.{name}" for name in engine.engine_kwargs if name in NOT_IN_A_JOB]
        if given:
            raise ValueError(f"{given[0]} is for endpoints, and a job would ignore it; leave it out")
        if engine.runner == "pooling":
            raise ValueError("engine.runner is 'pooling', and a model that runs in a job chats; ask an endpoint of it")
        return engine

    @field_validator("json_schema")
    @classmethod
    def _is_small(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            size = len(json.dumps(schema))
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"is no JSON: {type(error).__name__}") from None
        if size > _LONGEST_SCHEMA:
            raise ValueError(f"has {size:,} characters of JSON, more than {_LONGEST_SCHEMA:,}")
        return schema

    @model_validator(mode="after")
    def _agree(self) -> Self:
        try:
            parse_table_version(self.table)
            parse_object(self.output_table, "table")
        except BadRequest as error:
            raise ValueError(error.message) from None
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("give either model (runs in the job) or endpoint (asked through the gateway)")
        if (self.prompt is None) == (self.columns is None):
            raise ValueError("give either prompt (a template) or columns (for predictions and embeddings)")
        if self.model is not None and self.prompt is None:
            raise ValueError("a model chats, which takes a prompt; columns are for endpoints")
        if self.columns is not None and (self.system_prompt is not None or self.json_schema is not None):
            raise ValueError("system_prompt and json_schema are for chats, which take a prompt in place of columns")
        if self.engine is not None and self.model is None:
            raise ValueError("engine says how a model runs in the job; an endpoint has its own")
        return self

    @property
    def reads(self) -> list[str]:
        """The input's columns that the question is made from."""
        named = list(self.columns or ())
        for template in (self.system_prompt, self.prompt):
            named += columns_of(template) if template is not None else []
        return list(dict.fromkeys(named))

    @property
    def served_by(self) -> str:
        """`model 'smollm2-135m-instruct'`, for messages."""
        return f"model {self.model!r}" if self.model is not None else f"endpoint {self.endpoint!r}"


def columns_of(template: str) -> list[str]:
    """The columns that a template names; raises ValueError for what is no plain `{column}`."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"is no template: {error}; a brace of its own is written twice") from None
    found = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name.isdecimal():
            raise ValueError(f"{{{name}}} is a number, which names no column here; rename the column, or use a view")
        if not name or spec or conversion or any(mark in name for mark in "[]."):
            raise ValueError(f"{{{name}}} must be the name of a column, such as {{text}}, without more")
        found.append(name)
    return found
