//! Pods that ask for GPUs get the model that they name, and fill up nodes that are in use; other pods stay off nodes with GPUs.

use scaleup_plugin_sdk::export;
use scaleup_plugin_sdk::scheduling::{Answer, Input, Placer};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// The extended resource.
    #[serde(default = "default_resource")]
    resource: String,
    /// Label of nodes with the model; the binding must select it.
    #[serde(default = "default_node_label")]
    node_label: String,
    /// Label of pods with the model that they want.
    #[serde(default = "default_pod_label")]
    pod_label: String,
    /// Nodes with GPUs take no other pods at all.
    #[serde(default)]
    reserve: bool,
}

fn default_resource() -> String {
    "nvidia.com/gpu".into()
}

fn default_node_label() -> String {
    "nvidia.com/gpu.product".into()
}

fn default_pod_label() -> String {
    "gpu-model".into()
}

struct GpuAffinity(Config);

impl Placer for GpuAffinity {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self(config)
    }

    fn place(&self, input: Input) -> Answer {
        let resource = input.resource(&self.0.resource);
        let model_key = input.label_key(&self.0.node_label);
        let wanted = resource.and_then(|at| input.pod.resources.get(at)).copied().unwrap_or(0);
        let model =
            input.pod.labels.iter().find(|label| label.key == self.0.pod_label).map(|label| label.value.as_str());
        Answer::of((0..input.nodes.len()).map(|node| {
            let (offered, used) = resource.map_or((0, 0), |resource| input.extended(node, resource));
            if wanted == 0 {
                return match offered {
                    0 => Ok(100),
                    _ if self.0.reserve => Err("the node's GPUs are kept for pods that ask for them"),
                    _ => Ok(0),
                };
            }
            if model.is_some_and(|model| model_key.is_none_or(|key| input.label(node, key) != model)) {
                return Err("the node's GPUs are not of the model that the pod asks for");
            }
            if offered - used < wanted {
                return Err("too few GPUs are free on the node");
            }
            Ok(((used + wanted) * 100 / offered) as i32)
        }))
    }
}

export! {
    scheduling: GpuAffinity,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
