"""What the gateway holds an endpoint's callers to, and what it looks for in what is asked and answered.

The shape is that of Databricks' `ai_gateway` (`rate_limits`, `guardrails.input.pii.behavior`, `invalid_keywords`), with
more in it.
"""

import re
from typing import Annotated, Literal, Self, get_args

import re2
from pydantic import BeforeValidator, Field, field_validator, model_validator

from mosaic.catalog.names import parse_version
from mosaic.catalog.policies import POLICY
from mosaic.errors import BadRequest
from mosaic.serving.answer_cache import AnswerCache
from mosaic.serving.guard_settings import JsonSchema, Judge, OnFailure
from mosaic.serving.images import ImageRules
from mosaic.serving.prefixes import open_ends
from mosaic.settings import Settings

PiiType = Literal["CREDIT_CARD", "US_SSN", "EMAIL_ADDRESS", "PHONE_NUMBER", "IBAN_CODE", "IP_ADDRESS", "API_KEY"]
PII_TYPES: tuple[PiiType, ...] = get_args(PiiType)


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Pii(Settings):
    """Personal data and secrets that are recognized by their form, with checksums where they have one."""

    behavior: Annotated[Literal["BLOCK", "MASK", "NONE"], BeforeValidator(_upper)] = "NONE"
    """BLOCK refuses the text, MASK puts the type in place of what was found (`<EMAIL_ADDRESS>`), NONE does not look."""
    types: tuple[PiiType, ...] = Field(default=PII_TYPES, min_length=1)
    """What is looked for."""
    on_failure: OnFailure = "closed"
    """Whether the text passes ("open") or the request fails ("closed") when the rule itself fails."""


class Pattern(Settings):
    """A regular expression of one's own, in RE2's syntax, which is matched in linear time."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")
    """How outcomes and errors call it; with MASK it stands, as `<name>`, in place of what was found."""
    regex: str = Field(min_length=1, max_length=500)
    """What is looked for. It may not match the empty text."""
    behavior: Annotated[Literal["BLOCK", "MASK"], BeforeValidator(_upper)]
    """BLOCK refuses the text, MASK puts `<name>` in place of what was found."""
    on_failure: OnFailure = "closed"
    """Whether the text passes ("open") or the request fails ("closed") when the rule itself fails."""

    @field_validator("regex")
    @classmethod
    def _linear(cls, regex: str) -> str:
        options = re2.Options()
        options.log_errors = False
        try:
            compiled = re2.compile(regex, options)
            re2.compile(open_ends(regex), options)
        except re2.error as error:
            told = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
            raise ValueError(f"RE2 does not take it ({told}); look-around and back-references are not linear") from None
        if compiled.search("") is not None:
            raise ValueError("it matches the empty text, and would everywhere")
        return regex


MOST_KEYWORD_CHARACTERS = 10_000
"""Of all keywords together; they become one expression, which takes RE2 half a second at this size."""
Keyword = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]


class GuardrailRules(Settings):
    """What is looked for on one side, in each message's text, each tool call's arguments and all reasoning."""

    pii: Pii | None = None
    """Personal data and secrets."""
    invalid_keywords: tuple[Keyword, ...] = ()
    """Whole words, or words in a row, that refuse a text; upper and lower case are alike. All together have at most
    10,000 characters."""
    patterns: tuple[Pattern, ...] = Field(default=(), max_length=50)
    """Regular expressions of one's own."""
    max_characters: int | None = Field(default=None, ge=1)
    """The most that one text (a message, a call's arguments, an answer) may have; a longer one is refused."""
    judge: Judge | None = None
    """A model that says what the text is about, and whether it is safe."""
    json_schema: JsonSchema | None = None
    """What an answer must follow; only on the output."""

    @field_validator("invalid_keywords")
    @classmethod
    def _size(cls, keywords: tuple[str, ...]) -> tuple[str, ...]:
        if (size := sum(map(len, keywords))) > MOST_KEYWORD_CHARACTERS:
            raise ValueError(f"they have {size} characters; at most {MOST_KEYWORD_CHARACTERS} together")
        return keywords

    @model_validator(mode="after")
    def _names(self) -> Self:
        taken = {*PII_TYPES, "invalid_keywords", "max_characters", "topics", "safety", "json_schema"}
        for pattern in self.patterns:
            if pattern.name in taken:
                raise ValueError(f"patterns: the name {pattern.name!r} is taken by another rule")
            taken.add(pattern.name)
        return self


class Guardrails(Settings):
    """On what is asked, and on what is answered."""

    input: GuardrailRules | None = None
    """On the messages or the prompt, before a model reads them."""
    output: GuardrailRules | None = None
    """On the answer, streamed or whole, before a byte of it leaves."""
    policies: tuple[str, ...] = Field(default=(), max_length=10, exclude_if=lambda policies: not policies)
    """Policies of the catalog, by version (`main.default.pii_strict/3`), by alias (`main.default.pii_strict@prod`), or
    the newest; their rules hold beside the endpoint's own, the strictest of them."""

    @field_validator("policies")
    @classmethod
    def _policies(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        try:
            named = [parse_version(one, POLICY).model for one in policies]
        except BadRequest as error:
            raise ValueError(error.message) from None
        if len(set(named)) != len(named):
            raise ValueError("a policy is attached once, in one version")
        return policies

    @model_validator(mode="after")
    def _of_its_side(self) -> Self:
        if self.input is not None and self.input.json_schema is not None:
            raise ValueError("input.json_schema: a schema is for what is answered, not for what is asked")
        return self

    @property
    def sides(self) -> tuple[GuardrailRules, ...]:
        """Those of the two that have rules."""
        return tuple(side for side in (self.input, self.output) if side is not None)

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Of both sides."""
        return tuple(side.judge for side in self.sides if side.judge is not None)


class RateLimit(Settings):
    """So many requests, or tokens, a minute, for whom. All that apply to a request hold at once."""

    calls: int | None = Field(default=None, ge=0)
    """Requests in any minute; 0 shuts out."""
    tokens: int | None = Field(default=None, ge=0)
    """Tokens of prompts and answers in any minute."""
    key: Literal["user", "user_group", "service_principal", "endpoint"] = "endpoint"
    """Who shares it: each user (and service) has its own, all members of a group have one, or all callers of the
    endpoint."""
    principal: str | None = None
    """The group; or one user or service alone, for which it takes the place of those of `user` for everybody."""
    renewal_period: Literal["minute"] = "minute"
    """Over how long; any minute, not those of the clock."""

    @field_validator("key", "renewal_period", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.calls is None and self.tokens is None:
            raise ValueError("a rate limit needs calls or tokens")
        if self.key in ("user_group", "service_principal") and self.principal is None:
            raise ValueError(f"a rate limit with key = {self.key!r} needs principal, its name")
        if self.key == "endpoint" and self.principal is not None:
            raise ValueError("a rate limit with key = 'endpoint' is for all callers: leave principal out")
        return self


class Fallback(Settings):
    """Asking another served entity when one fails, as long as nothing of the answer has left."""

    enabled: bool = False
    """The others are asked in their order, those with a share of 0 too."""


class InferenceTableConfig(Settings):
    """A table of the endpoint's own, `<catalog>.<schema>.<prefix>_payload`, which belongs to whoever configures it; and
    what is kept of texts, there and in the platform's own table, which has a row for every request in any case."""

    enabled: bool = False
    """Whether the endpoint has a table of its own."""
    catalog_name: str | None = None
    """The catalog of the table."""
    schema_name: str | None = None
    """The schema of the table."""
    table_name_prefix: str | None = Field(default=None, min_length=1)
    """What stands before `_payload` in the table's name; the endpoint's own name if it is not said."""
    sampling_fraction: float = Field(default=1.0, ge=0, le=1)
    """Of how many requests texts are kept, and rows are in the endpoint's own table. Which ones is drawn from their
    ids."""
    redact: Literal["none", "texts"] = "none"
    """`texts`: what is asked and answered is kept nowhere."""
    retention_days: int | None = Field(default=None, ge=1)
    """After so many days rows go from the endpoint's own table, and texts from the platform's; None keeps them."""

    @model_validator(mode="after")
    def _place(self) -> Self:
        missing = [name for name in ("catalog_name", "schema_name") if getattr(self, name) is None]
        if self.enabled and missing:
            raise ValueError(f"enabled needs {' and '.join(missing)}, where the table is to be")
        return self

    def table_of(self, endpoint: str) -> str | None:
        """The whole name of the table of an endpoint; None without one."""
        if not self.enabled:
            return None
        prefix = self.table_name_prefix or re.sub(r"[^A-Za-z0-9_]", "_", endpoint.rpartition(".")[2])
        return f"{self.catalog_name}.{self.schema_name}.{prefix}_payload"


class AiGateway(Settings):
    """Of one endpoint; part of its configuration, so every row of the inference table says by its
    `endpoint_config_version` under which rules it was answered."""

    rate_limits: tuple[RateLimit, ...] = Field(default=(), max_length=20)
    """None: as many requests as come."""
    guardrails: Guardrails = Guardrails()
    """None: what is asked and answered is passed on as it is."""
    fallback_config: Fallback = Fallback()
    """What happens when a served entity does not answer."""
    inference_table_config: InferenceTableConfig = InferenceTableConfig()
    """What is kept of requests, and where."""
    images: ImageRules = ImageRules()
    """What images a chat may have beside text."""
    cache: AnswerCache = AnswerCache()
    """Whether answers are kept for who asks exactly the same again."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        seen = set()
        for limit in self.rate_limits:
            for unit in ("calls", "tokens"):
                this = (unit, limit.key, limit.principal)
                if getattr(limit, unit) is not None and this in seen:
                    whom = limit.key if limit.principal is None else f"{limit.key} {limit.principal!r}"
                    raise ValueError(f"two rate limits on {unit} for {whom}")
                seen |= {this} if getattr(limit, unit) is not None else set()
        return self
