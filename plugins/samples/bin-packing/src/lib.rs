//! Fills nodes up, so that others stay empty and can be given back: the score of a node is how full it would be.

use std::collections::BTreeMap;

use scaleup_plugin_sdk::export;
use scaleup_plugin_sdk::scheduling::{Answer, Input, Node, Placer};
use serde::Deserialize;

/// Nodes fuller than this are left alone, unless the configuration says otherwise.
const EVERYTHING: i64 = 100;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// How much `cpu`, `memory` and extended resources count; `cpu` and `memory` equally by default.
    #[serde(default)]
    weights: BTreeMap<String, u32>,
    /// Share of any of these that a node is filled up to.
    #[serde(default)]
    max_percent: Option<i64>,
}

struct BinPacking(Config);

/// Offered, and requested with the pod.
type Amount = (i64, i64);

impl BinPacking {
    fn amounts(&self, input: &Input, at: usize, node: &Node) -> Vec<(Amount, i64)> {
        let cpu = (node.milli_cpu, node.milli_cpu_used + input.pod.milli_cpu);
        let memory = (node.memory_bytes, node.memory_bytes_used + input.pod.memory_bytes);
        if self.0.weights.is_empty() {
            return vec![(cpu, 1), (memory, 1)];
        }
        let amount = |name: &str| match name {
            "cpu" => Some(cpu),
            "memory" => Some(memory),
            _ => input.resource(name).map(|resource| {
                let (offered, used) = input.extended(at, resource);
                (offered, used + input.pod.resources.get(resource).copied().unwrap_or(0))
            }),
        };
        let weighted = self.0.weights.iter().filter_map(|(name, weight)| Some((amount(name)?, i64::from(*weight))));
        weighted.collect()
    }
}

/// 0 to 100, and more if it does not fit.
fn percent((offered, used): Amount) -> i64 {
    if offered <= 0 { 0 } else { (i128::from(used) * 100 / i128::from(offered)) as i64 }
}

impl Placer for BinPacking {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self(config)
    }

    fn place(&self, input: Input) -> Answer {
        let most = self.0.max_percent.unwrap_or(EVERYTHING);
        Answer::of(input.nodes.iter().enumerate().map(|(at, node)| {
            let amounts = self.amounts(&input, at, node);
            if amounts.iter().any(|(amount, _)| percent(*amount) > most) {
                return Err("the node would be fuller than the policy allows");
            }
            let weights: i64 = amounts.iter().map(|(_, weight)| weight).sum();
            let sum: i64 = amounts.iter().map(|(amount, weight)| percent(*amount) * weight).sum();
            Ok(if weights == 0 { 0 } else { (sum / weights) as i32 })
        }))
    }
}

export! {
    scheduling: BinPacking,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
