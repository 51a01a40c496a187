//! Everything costs a thousandth for each unit.

use scaleup_plugin_sdk::NoConfig;
use scaleup_plugin_sdk::pricing::{Answer, Charge, Decimal, Input, Pricer};

/// Price of one unit.
const PRICE: Decimal = Decimal { units: 0, nanos: 1_000_000 };

struct Policy;

impl Pricer for Policy {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Self {
        Self
    }

    fn price(&self, input: Input) -> Answer {
        let charge = |(position, usage): (usize, &scaleup_plugin_sdk::pricing::Usage)| Charge {
            usage: position as u32,
            amount: usage.quantity.times(PRICE).expect("an amount that can be charged"),
            description: usage.meter.clone(),
        };
        Answer { charges: input.usage.iter().enumerate().map(charge).collect() }
    }
}

scaleup_plugin_sdk::export! {
    pricing: Policy,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
