//! The plugins of upstream's default profile, and the profile itself.

mod fit;
mod images;
mod interpod;
mod node_affinity;
mod placement;
mod ports;
mod spread;
mod taints;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use crate::framework::{Enabled, Plugin, Profile};

/// Pods that name no scheduler are for this one.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// Upstream's default profile: its plugins, in its order, with its weights.
pub fn default_profile() -> Profile {
    let enabled = |plugin: Arc<dyn Plugin>, weight| Enabled { plugin, weight };
    Profile {
        scheduler_name: DEFAULT_SCHEDULER.to_owned(),
        plugins: vec![
            enabled(Arc::new(placement::NodeUnschedulable), 0),
            enabled(Arc::new(placement::NodeName), 0),
            enabled(Arc::new(taints::TaintToleration), 3),
            enabled(Arc::new(node_affinity::NodeAffinity), 2),
            enabled(Arc::new(ports::NodePorts), 0),
            enabled(Arc::new(fit::NodeResourcesFit), 1),
            enabled(Arc::new(spread::PodTopologySpread), 2),
            enabled(Arc::new(interpod::InterPodAffinity), 2),
            enabled(Arc::new(fit::NodeResourcesBalancedAllocation), 1),
            enabled(Arc::new(images::ImageLocality), 1),
        ],
    }
}
