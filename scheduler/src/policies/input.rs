//! Pod and nodes as plugins see them: flat records and tables, built anew for each question.

use std::collections::HashMap;

use scaleup_plugins::scheduling::{Input, Label, MAX_RESOURCES, Node, Pod};

use super::Moment;
use crate::cache::{Cache, NodeIndex};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

fn count(amount: i64) -> u32 {
    u32::try_from(amount.max(0)).unwrap_or(u32::MAX)
}

/// See the WIT's `scheduling-types`.
pub(super) fn flatten(
    pod: &PodInfo,
    cache: &Cache,
    nodes: &[NodeIndex],
    label_keys: &[String],
    moment: Moment,
) -> Input {
    let nodes: Vec<&NodeInfo> = nodes.iter().map(|index| cache.node(*index)).collect();
    let resources = resources(pod, &nodes);
    let (label_values, labels) = labels(&nodes, label_keys);
    let table = |amount: &dyn Fn(&NodeInfo, &str) -> i64| -> Vec<i64> {
        nodes.iter().flat_map(|node| resources.iter().map(|name| amount(node, name))).collect()
    };
    Input {
        pod: Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            labels: pod.labels.iter().map(|(key, value)| Label { key: key.clone(), value: value.clone() }).collect(),
            priority: pod.priority,
            milli_cpu: pod.requests.milli_cpu,
            memory_bytes: pod.requests.memory,
            ephemeral_bytes: pod.requests.ephemeral_storage,
            resources: resources.iter().map(|name| pod.requests.scalar(name)).collect(),
            images: pod.images.clone(),
        },
        offered: table(&|node, name| node.facts.allocatable.scalar(name)),
        used: table(&|node, name| node.requested.scalar(name)),
        nodes: nodes.iter().map(|info| node(info, pod)).collect(),
        resources,
        label_keys: label_keys.to_vec(),
        label_values,
        labels,
        random: moment.random,
        time_ms: moment.time_ms,
    }
}

fn node(node: &NodeInfo, pod: &PodInfo) -> Node {
    let (offered, used) = (&node.facts.allocatable, &node.requested);
    Node {
        milli_cpu: offered.milli_cpu,
        milli_cpu_used: used.milli_cpu,
        memory_bytes: offered.memory,
        memory_bytes_used: used.memory,
        ephemeral_bytes: offered.ephemeral_storage,
        ephemeral_bytes_used: used.ephemeral_storage,
        pods: count(offered.pods),
        pods_used: u32::try_from(node.pods.len()).unwrap_or(u32::MAX),
        images_present: pod.images.iter().map(|image| u32::from(node.facts.images.contains_key(image))).sum(),
    }
}

/// Extended resources: the pod's, then those that some node offers.
fn resources(pod: &PodInfo, nodes: &[&NodeInfo]) -> Vec<String> {
    let offered = nodes.iter().flat_map(|node| &node.facts.allocatable.scalar);
    let mut names: Vec<String> = Vec::new();
    for (name, _) in pod.requests.scalar.iter().chain(offered) {
        if names.len() < MAX_RESOURCES && names.iter().all(|known| known != name) {
            names.push(name.clone());
        }
    }
    names
}

/// All values, each once and the empty one first, and a row of positions for each node.
fn labels(nodes: &[&NodeInfo], keys: &[String]) -> (Vec<String>, Vec<u32>) {
    let (mut values, mut positions) = (vec![String::new()], HashMap::from([("", 0)]));
    let mut rows = Vec::with_capacity(nodes.len() * keys.len());
    for value in nodes.iter().flat_map(|node| keys.iter().map(|key| node.facts.labels.get(key))) {
        let value = value.map_or("", String::as_str);
        let next = u32::try_from(values.len()).unwrap_or(u32::MAX);
        rows.push(*positions.entry(value).or_insert_with(|| {
            values.push(value.to_owned());
            next
        }));
    }
    (values, rows)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{cluster, node, pod};

    #[test]
    fn tables_have_a_row_for_each_node() {
        let gpu = |name: &str, zone: &str, gpus: &str| {
            let allocatable = json!({"cpu": "8", "memory": "16Gi", "pods": "10", "example.com/gpu": gpus});
            let images = json!([{"names": ["app:v1"], "sizeBytes": 5}]);
            node(
                name,
                json!({"metadata": {"labels": {"zone": zone}}, "status": {"allocatable": allocatable, "images": images}}),
            )
        };
        let container = |gpus: &str| {
            let requests = json!({"cpu": "500m", "example.com/gpu": gpus});
            json!({"spec": {"containers": [{"name": "c", "image": "app:v1", "resources": {"requests": requests}}]}})
        };
        let mut placed = container("2");
        placed["spec"]["nodeName"] = "a".into();
        let nodes = vec![gpu("a", "1", "4"), gpu("b", "2", "8"), node("c", json!({})), gpu("d", "1", "1")];
        let cache = cluster(nodes, vec![pod("placed", placed)]);
        let asking = pod("p", container("1"));
        let moment = Moment { now: Instant::now(), time_ms: 5, random: 7 };
        let keys = ["zone".to_owned(), "none".to_owned()];
        let input = flatten(&asking, &cache, &[0, 1, 2, 3], &keys, moment);
        assert_eq!(input.check(), Ok(()));
        assert_eq!((input.resources, input.pod.resources), (vec!["example.com/gpu".to_owned()], vec![1]));
        assert_eq!((input.offered, input.used), (vec![4, 8, 0, 1], vec![2, 0, 0, 0]));
        assert_eq!(input.label_values, ["", "1", "2"]);
        assert_eq!(input.labels, [1, 0, 2, 0, 0, 0, 1, 0]);
        let first = input.nodes[0];
        assert_eq!((first.milli_cpu, first.milli_cpu_used, first.pods, first.pods_used), (8000, 500, 10, 1));
        assert_eq!((first.images_present, input.nodes[2].images_present), (1, 0));
        assert_eq!((input.pod.milli_cpu, input.random, input.time_ms), (500, 7, 5));
    }
}
