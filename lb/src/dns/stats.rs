//! Counters of cluster DNS for the platform's metrics.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// One counter per thing that can become of a query.
#[derive(Clone, Debug, Default)]
pub(crate) struct DnsStats {
    /// All that arrived.
    pub queries: Counter,
    /// Answered from the cluster's own zone.
    pub answered: Counter,
    /// Those of them that said that a name does not exist.
    pub nxdomain: Counter,
    /// Asked elsewhere (each question once, whoever waits for it).
    pub forwarded: Counter,
    /// Answered by what was asked before.
    pub cached: Counter,
    /// Nobody answered.
    pub failed: Counter,
}

impl DnsStats {
    /// Registers the counters.
    pub fn register(&self, registry: &mut Registry) {
        let rows: [(&str, &str, &Counter); 6] = [
            ("lb_dns_queries", "DNS queries received.", &self.queries),
            ("lb_dns_answered", "DNS queries answered from the cluster's zone.", &self.answered),
            ("lb_dns_nxdomain", "Answers from the cluster's zone that the name does not exist.", &self.nxdomain),
            ("lb_dns_forwarded", "DNS questions sent to other resolvers.", &self.forwarded),
            ("lb_dns_cached", "DNS queries answered from the cache or by a question already asked.", &self.cached),
            ("lb_dns_failed", "DNS questions that no other resolver answered.", &self.failed),
        ];
        for (name, help, counter) in rows {
            registry.register(name, help, counter.clone());
        }
    }
}
