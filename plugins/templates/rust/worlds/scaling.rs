//! Does what the built-in autoscaler proposes, but never goes down by more than half at once.

use scaleup_plugin_sdk::NoConfig;
use scaleup_plugin_sdk::scaling::{Answer, Input, Scaler};

struct Policy;

impl Scaler for Policy {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Self {
        Self
    }

    fn scale(&self, input: Input) -> Answer {
        let half = input.replicas.div_ceil(2);
        if input.proposed < half {
            return Answer::replicas(input.within(half), "going down by half at most");
        }
        Answer::replicas(input.within(input.proposed), "as proposed")
    }
}

scaleup_plugin_sdk::export! {
    scaling: Policy,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
