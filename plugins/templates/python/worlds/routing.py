"""Chooses the endpoint with the fewest requests under way. wit/ says what the input is."""

import json

from golden import Metadata
from wit_world import exports
from wit_world.imports import config
from wit_world.imports.routing_types import Decision_Default, Decision_Pick, Health

# An instance lives for many decisions: the configuration is parsed once.
most = None


class Router(exports.Router):
    def route(self, input):
        global most
        if most is None:
            most = json.loads(config.get()).get("maxInFlight", float("inf"))
        best = None
        for position, endpoint in enumerate(input.endpoints):
            usable = endpoint.health == Health.HEALTHY and not endpoint.tried and endpoint.in_flight < most
            if usable and (best is None or endpoint.in_flight < input.endpoints[best].in_flight):
                best = position
        return Decision_Default() if best is None else Decision_Pick(best)
