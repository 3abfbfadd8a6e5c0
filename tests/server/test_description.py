"""What the server says of itself (OpenAPI) is what it does: requests made from it are answered, or refused as told."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from scripted import Scripted

from outpace.server.app import create_app

app = create_app({"scripted": Scripted(["a "], ends=True)}, closes_engines=False)
schema = schemathesis.openapi.from_asgi("/openapi.json", app)


@schema.exclude(path_regex="abort").parametrize()
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_a_mistake_of_the_server(case: schemathesis.Case) -> None:
    answer = case.call_and_validate(checks=[not_a_server_error], timeout=60)
    if answer.status_code >= 400 and case.path.startswith("/v1") and "messages" not in case.path:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_every_route_is_described() -> None:
    paths = set(app.openapi()["paths"])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize"} <= paths
    assert {"/health", "/version", "/v1/models/{name}"} <= paths
