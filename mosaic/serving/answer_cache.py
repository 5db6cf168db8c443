"""Whether an endpoint's answers are kept, and given again to who asks exactly the same."""

from pydantic import Field

from mosaic.settings import Settings


class AnswerCache(Settings):
    """Answers to requests that are the same in everything that changes an answer. Each replica of the gateway has its
    own, in memory."""

    enabled: bool = False
    """Whether answers are kept at all."""
    ttl_seconds: int = Field(default=300, ge=1, le=7 * 86_400)
    """How long an answer is given again."""
    max_mebibytes: int = Field(default=64, ge=1, le=16_384)
    """What the answers of this endpoint may take in each replica; those that were not asked for longest make room."""
    group: str | None = None
    """A group whose members are given one another's answers. Everybody else, and without it everybody, has only their
    own."""
    sampled: bool = False
    """Whether answers are kept too that are drawn: without a temperature of 0, a `top_k` of 1 or a `seed`, who asks
    again may want another."""
