"""What the gateway holds an endpoint's callers to, in the words of Databricks' `ai_gateway`: limits and guardrails."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from mosaic.settings import Settings


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


class AiGateway(Settings):
    """Of one endpoint; part of its configuration, so every row of the inference table says by its
    `endpoint_config_version` under which rules it was answered."""

    rate_limits: tuple[RateLimit, ...] = Field(default=(), max_length=20)
    """None: as many requests as come."""

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
