//! Chooses the endpoint with the fewest requests under way.

use scaleup_plugin_sdk::routing::{Decision, Input, Router};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// Endpoints with as many requests under way get no more.
    max_in_flight: Option<u32>,
}

struct Policy(Config);

impl Router for Policy {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self(config)
    }

    fn route(&self, input: Input) -> Decision {
        let most = self.0.max_in_flight.unwrap_or(u32::MAX);
        let free = input.usable().filter(|(_, endpoint)| endpoint.in_flight < most);
        match free.min_by_key(|(_, endpoint)| endpoint.in_flight) {
            Some((position, _)) => Decision::Pick(position),
            None => Decision::Default,
        }
    }
}

scaleup_plugin_sdk::export! {
    routing: Policy,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
