//! NodePorts: two pods cannot have the same host port on one node.

use crate::cache::Cache;
use crate::framework::{Events, Filter, Plugin, Rejection};
use crate::node::NodeInfo;
use crate::pod::{HostPort, PodInfo};

/// See the module's description.
pub struct NodePorts;

struct Wanted<'a>(&'a [HostPort]);

impl Filter for Wanted<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if self.0.iter().any(|port| node.ports.iter().any(|taken| taken.conflicts(port))) {
            return Err(Rejection::because("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn woken_by(&self) -> Events {
        Events::NODE_ADDED | Events::POD_REMOVED
    }

    fn filter<'a>(&'a self, pod: &'a PodInfo, _cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        (!pod.ports.is_empty()).then(|| Box::new(Wanted(&pod.ports)) as _)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::{accepted, cluster, filtered, node, pod};

    #[test]
    fn taken_ports_reject() {
        let with_port = |name: &str, node: &str, port: Value| {
            let containers = json!([{"name": "c", "ports": [port]}]);
            pod(name, json!({"spec": {"nodeName": node, "containers": containers}}))
        };
        let tcp = |ip: &str| json!({"containerPort": 80, "hostPort": 80, "hostIP": ip});
        let mut cache =
            cluster(vec![node("a", json!({})), node("b", json!({}))], vec![with_port("taken", "a", tcp("127.0.0.1"))]);
        let check = |cache: &Cache, port: Value, expected: &[&str]| {
            assert_eq!(accepted(&NodePorts, &with_port("p", "", port.clone()), cache), expected, "{port}");
        };
        check(&cache, tcp("127.0.0.1"), &["b"]);
        check(&cache, tcp(""), &["b"]);
        check(&cache, tcp("127.0.0.2"), &["a", "b"]);
        check(&cache, json!({"containerPort": 80, "hostPort": 80, "protocol": "UDP"}), &["a", "b"]);
        check(&cache, json!({"containerPort": 80}), &["a", "b"]);
        let reasons = filtered(&NodePorts, &with_port("p", "", tcp("")), &cache);
        assert_eq!(reasons[0].1, Err(vec!["node(s) didn't have free ports for the requested pod ports".to_owned()]));
        cache.remove_pod("taken");
        check(&cache, tcp(""), &["a", "b"]);
    }
}
