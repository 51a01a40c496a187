//! Each endpoint has a price: that of its zone, of its latency, of its failures and of its queue. The cheapest one gets the request.

use std::cell::RefCell;
use std::collections::BTreeMap;

use scaleup_plugin_sdk::export;
use scaleup_plugin_sdk::routing::{Decision, Endpoint, Input, Router, mix, topology};
use serde::Deserialize;

/// In any unit, as long as it is the same for all.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// Of a request by zone; a zone that is not named is free.
    zones: BTreeMap<String, f64>,
    /// Of a millisecond until the answer.
    #[serde(default)]
    latency_per_ms: f64,
    /// Of a failed request.
    #[serde(default)]
    failure: f64,
    /// Of each request that is under way there.
    #[serde(default)]
    in_flight: f64,
}

struct CostAware {
    config: Config,
    /// Prices of the zones of the topology with this number.
    zones: RefCell<Option<(u64, Vec<f64>)>>,
}

impl CostAware {
    fn price(&self, endpoint: &Endpoint, zones: &[f64]) -> f64 {
        zones.get(endpoint.zone as usize).copied().unwrap_or(0.0)
            + f64::from(endpoint.latency_us) / 1000.0 * self.config.latency_per_ms
            + f64::from(endpoint.failures) * self.config.failure
            + f64::from(endpoint.in_flight) * self.config.in_flight
    }
}

impl Router for CostAware {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config, zones: RefCell::new(None) }
    }

    fn route(&self, input: Input) -> Decision {
        let mut known = self.zones.borrow_mut();
        if known.as_ref().is_none_or(|(number, _)| *number != input.topology_version) {
            let price = |name: &String| self.config.zones.get(name).copied().unwrap_or(0.0);
            let prices = topology().zones.iter().map(|zone| price(&zone.name)).collect();
            *known = Some((input.topology_version, prices));
        }
        let zones = known.as_ref().map_or(&[][..], |(_, prices)| prices);
        // Equal prices are no reason to send everything to one endpoint.
        let lot = |endpoint: &Endpoint| mix(endpoint.key ^ input.random);
        let cheapest = input.usable().min_by(|(_, a), (_, b)| {
            self.price(a, zones).total_cmp(&self.price(b, zones)).then_with(|| lot(a).cmp(&lot(b)))
        });
        cheapest.map_or(Decision::Default, |(at, _)| Decision::Pick(at))
    }
}

export! {
    routing: CostAware,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
