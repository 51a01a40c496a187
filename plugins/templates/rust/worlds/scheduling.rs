//! Spreads pods: the node with the largest share of free CPU is best.

use scaleup_plugin_sdk::NoConfig;
use scaleup_plugin_sdk::scheduling::{Answer, Input, Placer};

struct Policy;

impl Placer for Policy {
    type Config = NoConfig;

    fn new(_: NoConfig) -> Self {
        Self
    }

    fn place(&self, input: Input) -> Answer {
        Answer::of(input.nodes.iter().map(|node| {
            let free = node.milli_cpu - node.milli_cpu_used - input.pod.milli_cpu;
            if free < 0 || node.milli_cpu <= 0 {
                return Err("the node has too little free CPU");
            }
            Ok((free * 100 / node.milli_cpu) as i32)
        }))
    }
}

scaleup_plugin_sdk::export! {
    scheduling: Policy,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
