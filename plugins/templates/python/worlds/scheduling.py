"""Spreads pods: the node with the largest share of free CPU is best. wit/ says what the input is."""

from golden import Metadata
from wit_world import exports
from wit_world.imports.scheduling_types import Answer


class Placer(exports.Placer):
    def place(self, input):
        verdicts = []
        for node in input.nodes:
            free = node.milli_cpu - node.milli_cpu_used - input.pod.milli_cpu
            verdicts.append(-1 if free < 0 or node.milli_cpu <= 0 else free * 100 // node.milli_cpu)
        return Answer(verdicts, ["the node has too little free CPU"])
