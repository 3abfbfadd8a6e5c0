"""Ray Serve's request router for replicas that cache prompts; imported only where Ray is installed."""

from __future__ import annotations

import importlib
from typing import Any

from outpace.engine.face import Ask
from outpace.server.routing import prefix_of, route

__all__ = ["PrefixRouter"]

_Base: Any = importlib.import_module("ray.serve.request_router").RequestRouter


class PrefixRouter(_Base):  # type: ignore[misc]
    """Sends asks with one beginning to one replica, while that has not many more under way than another."""

    def initialize_state(self, slack: float = 8.0) -> None:
        """Take what `RequestRouterConfig.request_router_kwargs` gives; `slack` is that of `route`."""
        self.slack = slack

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Return the replicas to try, one after the other."""
        if pending_request is None or not candidate_replicas:
            return [list(candidate_replicas)]
        pending_request.routing_context.should_backoff = True  # else a full fleet is asked without a pause
        ask = next((given for given in pending_request.args if isinstance(given, Ask)), None)
        if ask is None:
            return [list(candidate_replicas)]
        known = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        held = self.replica_queue_len_cache
        loads = {name: float(held.get(replica.replica_id) or 0) for name, replica in known.items()}
        return [[known[name]] for name in route(prefix_of(ask.prompt), loads, self.slack)]
