// Everything costs a thousandth for each unit. wit/ says what the input is; numbers are exact up to 2^53.

export { metadata } from "./build/metadata.js";

// Billionths in one, and the price of a unit in billionths.
const NANOS = 1_000_000_000n;
const PRICE = 1_000_000n;

export const pricer = {
    price(input) {
        const charges = input.usage.map((usage, position) => {
            const { units, nanos } = usage.quantity;
            const price = ((BigInt(units) * NANOS + BigInt(nanos)) * PRICE) / NANOS;
            const amount = { units: Number(price / NANOS), nanos: Number(price % NANOS) };
            return { usage: position, amount, description: usage.meter };
        });
        return { charges };
    },
};
