"""A model run in the job itself: vLLM's own engine, in the process of a Ray Data actor, asked with a piece's rows.

Not `ray.data.llm`: docs/decisions.md says why, with the figures.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic.errors import BadRequest
from mosaic.ids import new_id
from mosaic.serving.batch.prompts import Answer, Unaskable, messages
from mosaic.serving.batch.settings import BatchSettings
from mosaic.serving.deploy import vllm_config
from mosaic.serving.flag_table import CHAT_FLAGS
from mosaic.serving.plan import EnginePlan
from mosaic.serving.settings import EngineSettings

logger = logging.getLogger(__name__)

_AHEAD = 32
"""Rows beyond those that the engine computes at once, so that it never waits for one."""


@dataclass(frozen=True)
class EngineSetup:
    """What an engine is started from; pickles."""

    model: str
    """The engine's model: of an adapter the base."""
    adapter: str | None
    answered_by: str
    engine: EngineSettings
    plan: EnginePlan
    resolve: Callable[[str], Path]
    """A model's name to a local folder, on the node where this runs."""

    def asker(self, settings: BatchSettings) -> "EngineAsker":
        return EngineAsker(self, settings)


class EngineAsker:
    """Answers rows by one vLLM engine. A death of the engine is a death of this process: Ray starts both again."""

    def __init__(self, setup: EngineSetup, settings: BatchSettings) -> None:
        from transformers import AutoTokenizer

        self._settings, self._answered_by = settings, setup.answered_by
        folder = setup.resolve(setup.model)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        if self._tokenizer.chat_template is None:
            raise BadRequest(f"model {setup.model!r} has no chat template, so that it cannot be asked by chats")
        self._written = template_flags(setup.plan.engine_kwargs)
        self._template_is_new = True
        self._engine, config = start_engine(setup.model, str(folder), setup.engine, setup.plan)
        self._most_tokens = config.model_config.max_model_len
        self._turns = asyncio.Semaphore(config.scheduler_config.max_num_seqs + _AHEAD)
        self._params = sampling_params(settings, config.model_config.get_diff_sampling_param())
        self._schema_is_new = settings.json_schema is not None
        self._adapter = None
        if setup.adapter is not None:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest(setup.adapter, 1, str(setup.resolve(setup.adapter)))

    async def answer(self, rows: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """One for each row, in their order. Raises BadRequest for a json_schema that the engine does not take, and a
        system_prompt that the model's chat template does not."""
        if self._template_is_new:
            try_template(self._tokenizer, self._settings, self._written)
            self._template_is_new = False
        if self._schema_is_new:
            await self._try_schema()
        asked = await asyncio.to_thread(lambda: [self._tokens(row) for row in rows])
        return list(await asyncio.gather(*(self._one(tokens) for tokens in asked)))

    async def _try_schema(self) -> None:
        """Once, with one token: it is the job's fault, and not that of each row."""
        tried = self._params.clone()
        tried.max_tokens = 1
        prompt = {"prompt_token_ids": self._tokenizer("a", add_special_tokens=False)["input_ids"]}
        try:
            async for _ in self._engine.generate(prompt, tried, new_id("row")):
                pass
        except ValueError as error:
            raise BadRequest(f"json_schema: the engine refuses it: {error}"[:2000], param="json_schema") from None
        self._schema_is_new = False

    def _tokens(self, row: Mapping[str, Any]) -> list[int] | str:
        """The prompt, or why there is none."""
        try:
            chat = messages(self._settings, row)
        except Unaskable as error:
            return str(error)
        try:
            text = rendered(self._tokenizer, chat, self._written)
        except Exception as error:
            # A template raises what it likes.
            return f"the model's chat template refuses the row: {error}"[:2000]
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) + self._settings.max_tokens > self._most_tokens:
            return (
                f"the prompt has {len(tokens)} tokens, and {self._settings.max_tokens} are asked for (max_tokens): "
                f"together more than the {self._most_tokens} of the model (max_model_len)"
            )
        return tokens

    async def _one(self, tokens: list[int] | str) -> Answer:
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(tokens, str):
            return Answer(error=tokens)
        last: Any = None
        try:
            async with self._turns:
                prompt = {"prompt_token_ids": tokens}
                asked = {"request_id": new_id("row"), "lora_request": self._adapter}
                async for output in self._engine.generate(prompt, self._params, **asked):
                    last = output
        except EngineDeadError as error:
            # Ray Data would ask this process again and again; its end is what starts another with an engine.
            logger.error("the engine died: %s", error)
            os._exit(1)
        except ValueError as error:  # vLLM's own check of a request
            return Answer(error=f"the engine refuses the row: {error}"[:2000])
        (made,) = last.outputs
        return Answer(
            response=made.text,
            prompt_tokens=len(tokens),
            completion_tokens=len(made.token_ids),
            model=self._answered_by,
        )


def start_engine(model: str, folder: str, settings: EngineSettings, plan: EnginePlan) -> tuple[Any, Any]:
    """vLLM's asynchronous engine with the arguments that a served one has, and its configuration."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    given = vllm_config(model, folder, settings, plan)
    os.environ.update(given["runtime_env"]["env_vars"])
    # The context decides how many rows are computed at once: as many as vLLM's own offline `LLM` takes.
    context = UsageContext.LLM_CLASS
    flags = engine_flags(given["engine_kwargs"])
    config = AsyncEngineArgs(model=folder, **flags).create_engine_config(usage_context=context)
    if current_platform.is_cpu():
        from mosaic.serving.engine_process import cpu_environment

        os.environ.update(cpu_environment(settings.threads))
        if config.parallel_config.world_size == 1:
            config.parallel_config.distributed_executor_backend = "uni"  # as vllm_cpu.py says
    return AsyncLLM.from_vllm_config(config, usage_context=context, disable_log_stats=True), config


def engine_flags(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Without those of vLLM's server, such as a preset's tool parser, which the engine's own arguments do not have."""
    return {name: value for name, value in kwargs.items() if name not in CHAT_FLAGS}


def template_flags(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """How a plan's flags have conversations written, as a tokenizer takes it."""
    more = dict(kwargs.get("default_chat_template_kwargs") or {})
    if kwargs.get("chat_template") is not None:
        from vllm.entrypoints.chat_utils import load_chat_template

        more["chat_template"] = load_chat_template(kwargs["chat_template"])
    return more


def rendered(tokenizer: Any, chat: list[dict[str, str]], more: Mapping[str, Any]) -> str:
    """A conversation as the model reads it."""
    made: str = tokenizer.apply_chat_template(chat, **{**more, "add_generation_prompt": True, "tokenize": False})
    return made


def try_template(tokenizer: Any, settings: BatchSettings, more: Mapping[str, Any]) -> None:
    """Raises BadRequest if the template refuses every conversation of the job: that is its fault, not each row's."""
    chat, field = [{"role": "user", "content": "a"}], "model"
    if settings.system_prompt is not None:
        chat, field = [{"role": "system", "content": "a"}, *chat], "system_prompt"
    try:
        rendered(tokenizer, chat, more)
    except Exception as error:
        # A template raises what it likes.
        raise BadRequest(
            f"{field}: the model's chat template refuses the conversation: {error}"[:2000], param=field
        ) from None


def sampling_params(settings: BatchSettings, default: Mapping[str, Any]) -> Any:
    """vLLM's parameters for every row; `default` are those of the model's own files."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    more: dict[str, Any] = {}
    if settings.json_schema is not None:
        more["structured_outputs"] = StructuredOutputsParams(json=settings.json_schema)
    given = {**default, **settings.sampling.given(), "max_tokens": settings.max_tokens}
    # Only the end of an answer is of interest: no output for each of its tokens.
    return SamplingParams(**given, **more, output_kind=RequestOutputKind.FINAL_ONLY)
