"""databricks-sdk's `serving_endpoints`, in the clients' environment: `with_databricks_sdk.py ADDRESS TOKEN`."""

import sys

from databricks.sdk import WorkspaceClient
from databricks.sdk.service import serving as s

workspace = WorkspaceClient(host=sys.argv[1], token=sys.argv[2], auth_type="pat")
endpoints = workspace.serving_endpoints


def entities(*names: str) -> list[s.ServedEntityInput]:
    return [
        s.ServedEntityInput(name=name, entity_name="echo", workload_size="Small", scale_to_zero_enabled=False)
        for name in names
    ]


def routes(**shares: int) -> s.TrafficConfig:
    return s.TrafficConfig(
        routes=[s.Route(served_model_name=name, traffic_percentage=share) for name, share in shares.items()]
    )


config = s.EndpointCoreConfigInput(name="by-sdk", served_entities=entities("a"))
made = endpoints.create_and_wait("by-sdk", config=config)
assert made.state.ready == s.EndpointStateReady.READY and made.config.config_version == 1, made

hi = s.ChatMessage(role=s.ChatMessageRole.USER, content="hi you")
answer = endpoints.query("by-sdk", messages=[hi], max_tokens=5)
assert answer.choices[0].message.content == "hi you", answer

changed = endpoints.update_config_and_wait(
    "by-sdk", served_entities=entities("a", "b"), traffic_config=routes(a=40, b=60)
)
shares = [(one.served_model_name, one.traffic_percentage) for one in changed.config.traffic_config.routes]
assert shares == [("a", 40), ("b", 60)], changed
assert changed.state.config_update == s.EndpointStateConfigUpdate.NOT_UPDATING, changed

assert "by-sdk" in [one.name for one in endpoints.list()]
assert endpoints.get("by-sdk").config.served_entities[1].entity_name == "echo"

limit = s.AiGatewayRateLimit(
    calls=5, key=s.AiGatewayRateLimitKey.USER, renewal_period=s.AiGatewayRateLimitRenewalPeriod.MINUTE
)
block = s.AiGatewayGuardrailPiiBehavior(behavior=s.AiGatewayGuardrailPiiBehaviorBehavior.BLOCK)
rules = s.AiGatewayGuardrails(
    input=s.AiGatewayGuardrailParameters(pii=block, invalid_keywords=["nightjar"]), output=None
)
table = s.AiGatewayInferenceTableConfig(
    enabled=True, catalog_name="main", schema_name="default", table_name_prefix="by_sdk"
)
held = endpoints.put_ai_gateway(
    "by-sdk",
    rate_limits=[limit],
    guardrails=rules,
    fallback_config=s.FallbackConfig(enabled=True),
    inference_table_config=table,
)
assert held.rate_limits == [limit] and held.fallback_config == s.FallbackConfig(enabled=True), held
assert held.inference_table_config == table, held
assert held.guardrails.input.pii == block and held.guardrails.input.invalid_keywords == ["nightjar"], held
endpoints.wait_get_serving_endpoint_not_updating("by-sdk")
shown = endpoints.get("by-sdk")
assert shown.ai_gateway.rate_limits == [limit] and shown.config.config_version == 3, shown

level = s.ServingEndpointPermissionLevel


def levels(held: s.ServingEndpointPermissions) -> dict[str | None, list[s.ServingEndpointPermissionLevel | None]]:
    return {
        one.user_name or one.group_name: [of.permission_level for of in one.all_permissions or ()]
        for one in held.access_control_list or ()
    }


def user(permission: s.ServingEndpointPermissionLevel) -> list[s.ServingEndpointAccessControlRequest]:
    return [s.ServingEndpointAccessControlRequest(user_name="alice", permission_level=permission)]


known = changed.id
assert known is not None
given = endpoints.update_permissions(known, access_control_list=user(level.CAN_QUERY))
assert levels(given)["alice"] == [level.CAN_QUERY], given
assert levels(endpoints.set_permissions(known, access_control_list=user(level.CAN_VIEW)))["alice"] == [level.CAN_VIEW]
endpoints.set_permissions(known, access_control_list=[])
assert "alice" not in levels(endpoints.get_permissions(known))
there = endpoints.get_permission_levels(known).permission_levels or []
assert level.CAN_MANAGE in [one.permission_level for one in there], there

endpoints.delete("by-sdk")
assert "by-sdk" not in [one.name for one in endpoints.list()]
print("done")
