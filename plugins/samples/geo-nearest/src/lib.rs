//! The zone nearest to the client gets the request; when its endpoints are busy, the next nearest one.

use std::cell::RefCell;

use scaleup_plugin_sdk::routing::{Decision, Endpoint, Input, Place, Router, Topology, topology};
use scaleup_plugin_sdk::{count, export};
use serde::Deserialize;

/// Mean radius of the earth.
const EARTH_KM: f64 = 6371.0;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// Requests under way from which an endpoint counts as busy.
    #[serde(default = "default_busy")]
    busy: u32,
    /// Distance beyond which requests do not spill over; busy endpoints are taken instead.
    #[serde(default)]
    max_km: Option<f64>,
}

fn default_busy() -> u32 {
    64
}

struct GeoNearest {
    config: Config,
    topology: RefCell<Option<(u64, Topology)>>,
}

/// Great-circle distance (haversine).
fn distance_km(a: Place, b: Place) -> f64 {
    let (north, east) = ((b.latitude - a.latitude).to_radians(), (b.longitude - a.longitude).to_radians());
    let (from, to) = (a.latitude.to_radians(), b.latitude.to_radians());
    let chord = (north / 2.0).sin().powi(2) + from.cos() * to.cos() * (east / 2.0).sin().powi(2);
    2.0 * EARTH_KM * chord.sqrt().min(1.0).asin()
}

impl GeoNearest {
    /// How far each zone is; infinitely if nobody knows.
    fn distances(&self, version: u64, client: Place) -> Vec<f64> {
        let mut known = self.topology.borrow_mut();
        if known.as_ref().is_none_or(|(number, _)| *number != version) {
            *known = Some((version, topology()));
        }
        let zones = known.iter().flat_map(|(_, topology)| &topology.zones);
        zones.map(|zone| zone.place.map_or(f64::INFINITY, |place| distance_km(client, place))).collect()
    }
}

impl Router for GeoNearest {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config, topology: RefCell::new(None) }
    }

    fn route(&self, input: Input) -> Decision {
        // Where the client is unknown, the platform knows what is near the load balancer.
        let Some(client) = input.request.place else { return Decision::Default };
        let distances = self.distances(input.topology_version, client);
        let distance = |endpoint: &Endpoint| distances.get(endpoint.zone as usize).copied().unwrap_or(f64::INFINITY);
        let by_distance =
            |a: &Endpoint, b: &Endpoint| distance(a).total_cmp(&distance(b)).then(a.in_flight.cmp(&b.in_flight));
        let nearest = input.usable().min_by(|(_, a), (_, b)| by_distance(a, b));
        let Some((at, endpoint)) = nearest else { return Decision::Default };
        if endpoint.in_flight < self.config.busy {
            return Decision::Pick(at);
        }
        let near_enough = |endpoint: &Endpoint| self.config.max_km.is_none_or(|most| distance(endpoint) <= most);
        let free = input.usable().filter(|(_, other)| other.in_flight < self.config.busy && near_enough(other));
        match free.min_by(|(_, a), (_, b)| by_distance(a, b)) {
            Some((other, _)) => {
                count("spilled_over", 1);
                Decision::Pick(other)
            }
            None => Decision::Pick(at),
        }
    }
}

export! {
    routing: GeoNearest,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
