"""Everything costs a thousandth for each unit. wit/ says what the input is."""

from golden import Metadata
from wit_world import exports
from wit_world.imports.pricing_types import Answer, Charge, Decimal

# Billionths in one, and the price of a unit in billionths.
NANOS = 1_000_000_000
PRICE = 1_000_000


class Pricer(exports.Pricer):
    def price(self, input):
        charges = []
        for position, usage in enumerate(input.usage):
            nanos = (usage.quantity.units * NANOS + usage.quantity.nanos) * PRICE // NANOS
            charges.append(Charge(position, Decimal(nanos // NANOS, nanos % NANOS), usage.meter))
        return Answer(charges)
