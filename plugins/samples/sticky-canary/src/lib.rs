//! A share of users goes to the canary, and each of them always: a header decides, otherwise a hash of what users are told apart by.

use std::cell::Cell;

use scaleup_plugin_sdk::routing::{Decision, Input, Router, hash, topology};
use scaleup_plugin_sdk::{count, export};
use serde::Deserialize;

/// Shares are kept in hundredths of a percent.
const WHOLE: u64 = 10_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// `namespace/service:port` of the canary, one of the rule's backends.
    canary: String,
    /// Share of users, 0 to 100.
    percent: f64,
    /// Header that sends a request to the canary with `always` and away from it with `never`.
    #[serde(default = "default_header")]
    header: String,
    /// Header that users are told apart by.
    #[serde(default)]
    user_header: Option<String>,
    /// Cookie that users are told apart by.
    #[serde(default)]
    user_cookie: Option<String>,
}

fn default_header() -> String {
    "x-canary".into()
}

struct StickyCanary {
    config: Config,
    /// Of the topology with this number: position of the canary among the backends.
    canary: Cell<Option<(u64, Option<u32>)>>,
}

impl StickyCanary {
    fn canary(&self, version: u64) -> Option<u32> {
        match self.canary.get() {
            Some((known, canary)) if known == version => canary,
            _ => {
                let at = topology().backends.iter().position(|backend| *backend == self.config.canary);
                let canary = at.map(|at| at as u32);
                self.canary.set(Some((version, canary)));
                canary
            }
        }
    }

    fn wants_canary(&self, input: &Input) -> bool {
        let request = &input.request;
        match request.header(&self.config.header) {
            Some("always") => return true,
            Some("never") => return false,
            _ => {}
        }
        let header = self.config.user_header.as_deref().and_then(|name| request.header(name));
        let user = header.or_else(|| self.config.user_cookie.as_deref().and_then(|name| request.cookie(name)));
        let hash = match user {
            Some(user) => hash(user.as_bytes()),
            None => hash(std::net::IpAddr::from(request.client).to_string().as_bytes()),
        };
        hash % WHOLE < (self.config.percent * WHOLE as f64 / 100.0) as u64
    }
}

impl Router for StickyCanary {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self { config, canary: Cell::new(None) }
    }

    fn route(&self, input: Input) -> Decision {
        let Some(canary) = self.canary(input.topology_version) else { return Decision::Default };
        let wants = self.wants_canary(&input);
        let least = |wants: bool| {
            let group = input.usable().filter(|(_, endpoint)| (endpoint.backend == canary) == wants);
            group.min_by_key(|(_, endpoint)| endpoint.in_flight).map(|(at, _)| at)
        };
        match least(wants) {
            Some(at) => {
                count(if wants { "canary" } else { "stable" }, 1);
                Decision::Pick(at)
            }
            // Rather the other version than an error.
            None => {
                count("other_version", 1);
                least(!wants).map_or(Decision::Default, Decision::Pick)
            }
        }
    }
}

export! {
    routing: StickyCanary,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
