//! ImageLocality: nodes that have the pod's images score higher, the more so the more nodes have them.

use crate::cache::{Cache, NodeIndex};
use crate::framework::{MAX_SCORE, Plugin, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// Images smaller than this do not count (upstream's `minThreshold`).
const MIN_BYTES: i64 = 23 << 20;
/// Per container, more than this does not count (upstream's `maxContainerThreshold`).
const MAX_CONTAINER_BYTES: i64 = 1000 << 20;

/// See the module's description.
pub struct ImageLocality;

struct Local<'a> {
    pod: &'a PodInfo,
    cache: &'a Cache,
}

impl Score for Local<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let total = self.cache.present().len().max(1) as f64;
        let scaled = |image: &String| {
            let bytes = node.facts.images.get(image).copied().unwrap_or(0);
            (bytes as f64 * (self.cache.nodes_with_image(image) as f64 / total)) as i64
        };
        let sum: i64 = self.pod.images.iter().map(scaled).sum();
        let max = MAX_CONTAINER_BYTES * self.pod.images.len() as i64;
        MAX_SCORE * (sum.clamp(MIN_BYTES, max) - MIN_BYTES) / (max - MIN_BYTES)
    }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn score<'a>(&'a self, pod: &'a PodInfo, cache: &'a Cache, _feasible: &[NodeIndex]) -> Option<Box<dyn Score + 'a>> {
        let somewhere = pod.images.iter().any(|image| cache.nodes_with_image(image) > 0);
        somewhere.then(|| Box::new(Local { pod, cache }) as _)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{cluster, node, pod, scored};

    #[test]
    fn present_images_score_by_size_and_spread() {
        let with = |name: &str, bytes: i64| {
            node(name, json!({"status": {"images": [{"names": ["docker.io/web:1", "web"], "sizeBytes": bytes}]}}))
        };
        let cache = cluster(
            vec![with("a", 1000 << 20), with("b", 10 << 20), node("c", json!({})), node("d", json!({}))],
            vec![],
        );
        let using = |image: &str| pod("p", json!({"spec": {"containers": [{"name": "c", "image": image}]}}));
        // Half of the nodes have it: (500 - 23) / (1000 - 23).
        assert_eq!(scored(&ImageLocality, &using("web:latest"), &cache), [48, 0, 0, 0]);
        assert_eq!(scored(&ImageLocality, &using("docker.io/web:1"), &cache), [48, 0, 0, 0]);
        assert!(scored(&ImageLocality, &using("other"), &cache).is_empty());
    }
}
