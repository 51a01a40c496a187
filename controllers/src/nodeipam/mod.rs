//! Gives every Node a part of the cluster's pod range as `spec.podCIDR`, and to no other one (upstream's node IPAM controller with
//! its `RangeAllocator`).
//!
//! A Node that has a subnet keeps it. An agent may say in an annotation which subnet is free on its machine; it gets that if no
//! other node has it. A subnet is free again when its Node is deleted.

mod ranges;

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use scaleup_api::subnet::Subnet;
use scaleup_api::well_known::ANNOTATION_WANTED_POD_CIDR;
use serde_json::json;

use self::ranges::Ranges;
use crate::base::calls::{self, Error};
use crate::base::events::{Recorder, Severity};
use crate::base::key::Key;
use crate::base::worker::{self, Outcome, Reconcile};
use crate::context::Context;

/// Longest difference between the prefixes of the cluster's range and of a node's part, as upstream's.
pub const MAX_PART_BITS: u32 = 16;

/// What pods' addresses are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    cluster_cidr: Subnet,
    node_mask_bits: u32,
}

/// What can be wrong with a [`Config`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The range is not one.
    #[error("the cluster CIDR {0:?} is not an IPv4 range such as 10.244.0.0/16")]
    Range(String),
    /// The range cannot be divided like this.
    #[error(
        "nodes cannot have a /{1} each of the cluster CIDR {0}: the node mask must be at least as long as the range's and at most \
         {max} bits longer",
        max = MAX_PART_BITS
    )]
    Mask(Subnet, u32),
}

impl Config {
    /// Of the cluster's range (upstream's `--cluster-cidr`) each node gets a part of a prefix of `node_mask_bits` (upstream's
    /// `--node-cidr-mask-size`), which may be [`MAX_PART_BITS`] longer than the range's.
    pub fn new(cluster_cidr: &str, node_mask_bits: u32) -> Result<Self, ConfigError> {
        let range = Subnet::parse(cluster_cidr).ok_or_else(|| ConfigError::Range(cluster_cidr.to_owned()))?;
        if node_mask_bits > 32 || !(range.bits()..=range.bits() + MAX_PART_BITS).contains(&node_mask_bits) {
            return Err(ConfigError::Mask(range, node_mask_bits));
        }
        Ok(Self { cluster_cidr: range, node_mask_bits })
    }
}

/// Subscribes and works until shutdown.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let Some(config) = cx.config.pod_network else {
        return async move { cx.shutdown.cancelled().await }.boxed();
    };
    let queue = cx.queue("node_ipam_controller");
    cx.informers.nodes.feed(&queue, |change| change.latest());
    let controller = Controller {
        recorder: cx.recorder.for_component("cidrAllocator"),
        cx: cx.clone(),
        ranges: Mutex::new(Ranges::new(config.cluster_cidr, config.node_mask_bits)),
    };
    async move {
        let nodes = cx.informers.nodes.clone();
        if !cx.ready(nodes.synced()).await {
            return;
        }
        // What nodes have comes before what nodes want.
        for node in nodes.list() {
            controller.keep(&node);
        }
        let (period, shutdown) = (cx.config.resync_period, cx.shutdown.clone());
        let resync = worker::resync(queue.clone(), period, move || nodes.keys(), shutdown.clone());
        let workers = worker::run("node-ipam", queue, Arc::new(controller), cx.config.workers, shutdown);
        tokio::join!(resync, workers);
    }
    .boxed()
}

/// `spec.podCIDRs` that pods of ours can use.
fn subnets(node: &Node) -> Vec<Subnet> {
    let spec = node.spec.as_ref();
    let all = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default().iter();
    all.chain(spec.and_then(|s| s.pod_cidr.as_ref())).filter_map(|text| Subnet::parse(text)).collect()
}

/// Whether the Node has a subnet, one that we cannot read included: it could not be changed.
fn has_subnet(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.is_some_and(|s| {
        s.pod_cidr.as_deref().is_some_and(|c| !c.is_empty()) || s.pod_cidrs.as_ref().is_some_and(|c| !c.is_empty())
    })
}

struct Controller {
    cx: Context,
    recorder: Recorder,
    ranges: Mutex<Ranges>,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(node) = self.cx.informers.nodes.get(key) else {
            self.ranges.lock().release(&key.name);
            return Ok(Outcome::Done);
        };
        if has_subnet(&node) {
            self.keep(&node);
        } else if node.metadata.deletion_timestamp.is_none() {
            self.give(&node).await?;
        }
        Ok(Outcome::Done)
    }
}

impl Controller {
    /// Notes what the node has.
    fn keep(&self, node: &Node) {
        let name = node.name_any();
        for subnet in subnets(node) {
            if let Some(other) = self.ranges.lock().occupy(subnet, &name) {
                tracing::warn!(node = name, other, %subnet, "two nodes have this pod subnet; delete one of the Nodes");
            }
        }
    }

    async fn give(&self, node: &Node) -> Result<(), Error> {
        let name = node.name_any();
        let wanted = node.annotations().get(ANNOTATION_WANTED_POD_CIDR).and_then(|text| Subnet::parse(text));
        // After an attempt that failed, or whose answer was lost, this is the same one again.
        let Some(subnet) = self.ranges.lock().allocate(&name, wanted) else {
            // Upstream's `RecordNodeStatusChange`.
            let text = format!("Node {name} status is now: CIDRNotAvailable");
            self.recorder.event(node, Severity::Normal, "CIDRNotAvailable", text);
            return Err(Error::Unusable {
                object: name,
                message: "no pod subnet is free; delete Nodes that are gone, or choose a larger cluster CIDR".into(),
            });
        };
        let text = subnet.to_string();
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": text, "podCIDRs": [text]},
        });
        let api = Api::<Node>::all(self.cx.client.clone());
        match calls::merge::<Node>("patch Node", &api, &name, &patch).await {
            Ok(_) => {
                tracing::info!(node = name, cidr = text, "pod subnet assigned");
                Ok(())
            }
            Err(error) if error.is_not_found() => {
                self.ranges.lock().release(&name);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_have_room_for_nodes() {
        let check = |range: &str, bits: u32, good: bool| {
            assert_eq!(Config::new(range, bits).is_ok(), good, "{range} /{bits}");
        };
        check("10.244.0.0/16", 24, true);
        check("10.0.0.0/8", 24, true);
        check("10.0.0.0/8", 25, false);
        check("10.244.0.0/24", 24, true);
        check("10.244.0.0/25", 24, false);
        check("10.244.0.0/30", 33, false);
        check("nonsense", 24, false);
    }

    #[test]
    fn both_spellings_are_read() {
        let node = |spec: serde_json::Value| serde_json::from_value::<Node>(json!({"spec": spec})).unwrap();
        let check = |spec: serde_json::Value, has: bool, count: usize| {
            let node = node(spec);
            assert_eq!((has_subnet(&node), subnets(&node).len()), (has, count), "{node:?}");
        };
        check(json!({}), false, 0);
        check(json!({"podCIDR": ""}), false, 0);
        check(json!({"podCIDR": "10.244.1.0/24"}), true, 1);
        check(json!({"podCIDRs": ["10.244.1.0/24", "fd00::/64"]}), true, 1);
        check(json!({"podCIDR": "fd00::/64"}), true, 0);
    }
}
