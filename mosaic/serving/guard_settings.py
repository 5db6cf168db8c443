"""Guardrails that look at a whole text rather than for something in it: a judge model, and a JSON schema."""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from mosaic.serving.json_schemas import check_answer_schema
from mosaic.settings import Settings

OnFailure = Literal["open", "closed"]

SafetyCategory = Literal["violence", "hate", "harassment", "sexual", "self_harm", "crime", "weapons", "jailbreak"]
SAFE, OTHER = "safe", "other"
"""What a judge says of a text in which it found nothing of what it was asked about."""
MOST_TOPICS = 50
Topic = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]


class Topics(Settings):
    """What may be talked about, or what may not; one of the two."""

    allow: tuple[Topic, ...] = Field(default=(), max_length=MOST_TOPICS)
    """All else is refused."""
    deny: tuple[Topic, ...] = Field(default=(), max_length=MOST_TOPICS)
    """These are refused, and nothing else is."""

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if bool(self.allow) == bool(self.deny):
            raise ValueError("topics needs either allow or deny, with at least one topic")
        folded = [topic.strip().lower() for topic in self.listed]
        if OTHER in folded or len(set(folded)) != len(folded):
            raise ValueError(f"each topic stands once, and none is called {OTHER!r}")
        return self

    @property
    def listed(self) -> tuple[str, ...]:
        return self.allow or self.deny

    def refuses(self, said: str) -> bool:
        """Whether a text about that, one of the listed or `other`, is refused."""
        return said == OTHER if self.allow else said != OTHER


class Judge(Settings):
    """A model that reads the whole text and says what it is about, in a form that leaves it no other words."""

    endpoint: str
    """Another endpoint of this platform, whose task is `chat`, and which has no judge itself."""
    topics: Topics | None = None
    """What the text may be about."""
    safety: bool | tuple[SafetyCategory, ...] = False
    """Whether harm is looked for, of any category or of these."""
    prompt: str | None = Field(default=None, min_length=1, max_length=20_000)
    """In place of the judge's own instructions; the text follows as a message of its own, and the form of the verdict
    is held either way."""
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    """The most that the judge may write; without it as many as a verdict can have. One that thinks before it answers
    needs more."""
    timeout_seconds: float = Field(default=10, gt=0, le=120)
    """How long the judge may take, all tries together."""
    on_failure: OnFailure = "closed"
    """Whether the text passes ("open") or the request fails ("closed") when there is no verdict."""

    @model_validator(mode="after")
    def _asked(self) -> Self:
        if self.topics is None and not self.safety:
            raise ValueError("a judge needs topics or safety, or nothing is asked of it")
        return self

    @property
    def categories(self) -> tuple[str, ...]:
        """The kinds of harm that it looks for."""
        if self.safety is True:
            return SafetyCategory.__args__  # type: ignore[attr-defined,no-any-return]
        return self.safety or ()


class JsonSchema(Settings):
    """Every text that is answered must be JSON that follows the schema; an answer that only calls tools has none."""

    # The name that everybody writes is one of pydantic's own.
    model_config = ConfigDict(serialize_by_alias=True)

    schema_: dict[str, Any] = Field(alias="schema")
    """The schema: JSON Schema 2020-12, or what its `$schema` says; its patterns are RE2's."""
    on_failure: OnFailure = "closed"
    """Whether the answer passes ("open") or the request fails ("closed") when the rule itself fails."""

    @field_validator("schema_")
    @classmethod
    def _is_one(cls, schema: dict[str, Any]) -> dict[str, Any]:
        check_answer_schema(schema)
        return schema
