"""Does what the built-in autoscaler proposes, but never goes down by more than half at once. wit/ says what the input is."""

from golden import Metadata
from wit_world import exports
from wit_world.imports.scaling_types import Answer


class Scaler(exports.Scaler):
    def scale(self, input):
        half = (input.replicas + 1) // 2
        if input.proposed < half:
            return Answer(max(input.min, min(input.max, half)), "going down by half at most")
        return Answer(max(input.min, min(input.max, input.proposed)), "as proposed")
