//! What a tenant may run depends on the tier of its namespace: registries, required labels, and caps on CPU and memory.

mod quantity;

use std::collections::BTreeMap;

use scaleup_plugin_sdk::admission::{Admitter, Answer, Cause, Input, Operation, cause};
use scaleup_plugin_sdk::export;
use serde::Deserialize;
use serde_json::Value;

/// Causes that fit into an answer.
const MAX_CAUSES: usize = 32;
/// Bytes of a cause's message that come from the object.
const MAX_NAME_BYTES: usize = 200;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    /// Label of namespaces with their tier.
    #[serde(default = "default_label")]
    label: String,
    /// Tier of namespaces without that label.
    default_tier: String,
    tiers: BTreeMap<String, Tier>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tier {
    /// Where images may come from: `registry.example.com` or `registry.example.com/team`; anywhere if absent.
    registries: Option<Vec<String>>,
    /// Labels that pods must have.
    #[serde(default)]
    required_labels: Vec<String>,
    /// Most CPU of a pod's limits together.
    max_cpu: Option<String>,
    /// Most memory of a pod's limits together.
    max_memory: Option<String>,
}

fn default_label() -> String {
    "scaleup.dev/tier".into()
}

struct TenantTiers(Config);

/// Where the pod is in an object of this kind.
fn template(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Pod" => "",
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicationController" => "spec.template.",
        "CronJob" => "spec.jobTemplate.spec.template.",
        _ => return None,
    })
}

/// The image with its registry, as container runtimes complete it.
fn full_name(image: &str) -> String {
    match image.split_once('/') {
        None => format!("docker.io/library/{image}"),
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
    }
}

fn clip(text: &str) -> &str {
    let mut end = text.len().min(MAX_NAME_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What is wrong with a pod.
struct Review<'a> {
    name: &'a str,
    tier: &'a Tier,
    /// Path of the pod's fields.
    at: &'static str,
    causes: Vec<Cause>,
}

impl Review<'_> {
    fn add(&mut self, reason: &str, field: String, message: String) {
        self.causes.push(cause(reason, clip(&format!("{}{field}", self.at)), message));
    }

    fn labels(&mut self, pod: &Value) {
        for label in &self.tier.required_labels {
            let value = pod.pointer("/metadata/labels").and_then(|labels| labels.get(label)).and_then(Value::as_str);
            if value.is_none_or(str::is_empty) {
                let message = format!("the tier {} requires the label {label}", self.name);
                self.add("FieldValueRequired", format!("metadata.labels[{label}]"), message);
            }
        }
    }

    fn image(&mut self, field: &str, container: &Value) {
        let (Some(registries), Some(image)) = (&self.tier.registries, container.get("image").and_then(Value::as_str))
        else {
            return;
        };
        let name = full_name(image);
        let within = |registry: &String| {
            name.strip_prefix(registry.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
        };
        if !registries.iter().any(within) {
            let message = format!("{} is not from {}", clip(image), registries.join(" or "));
            self.add("FieldValueForbidden", format!("{field}.image"), message);
        }
    }

    /// Sums the limits of what runs at the same time.
    fn cap(&mut self, containers: &[(String, &Value)], resource: &str, unit: &str, most: Option<&String>) {
        let Some((most, text)) = most.and_then(|text| Some((quantity::parse(text)?, text))) else { return };
        let mut sum = 0.0;
        for (field, container) in containers {
            let limit = container.pointer("/resources/limits").and_then(|limits| limits.get(resource));
            match limit.and_then(quantity::of) {
                Some(amount) => sum += amount,
                None => {
                    let message = format!("the tier {} caps {resource}: set a limit", self.name);
                    return self.add("FieldValueRequired", format!("{field}.resources.limits[{resource}]"), message);
                }
            }
        }
        if sum > most {
            let message = format!("limits of {sum}{unit} are above {text}, the most of the tier {}", self.name);
            self.add("FieldValueInvalid", "spec.containers".into(), message);
        }
    }

    fn pod(&mut self, pod: &Value) {
        self.labels(pod);
        let of = |list: &'static str| {
            let containers =
                pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            containers.iter().enumerate().map(move |(at, container)| (format!("spec.{list}[{at}]"), container))
        };
        for (field, container) in of("initContainers").chain(of("containers")).chain(of("ephemeralContainers")) {
            self.image(&field, container);
        }
        let containers: Vec<_> = of("containers").collect();
        let tier = self.tier;
        self.cap(&containers, "cpu", " CPUs", tier.max_cpu.as_ref());
        self.cap(&containers, "memory", " bytes", tier.max_memory.as_ref());
    }
}

impl Admitter for TenantTiers {
    type Config = Config;

    fn new(config: Config) -> Self {
        Self(config)
    }

    fn admit(&self, input: Input) -> Answer {
        let Some(at) = template(&input.kind).filter(|_| input.operation != Operation::Delete) else {
            return Answer::allow();
        };
        let name = input.namespace_label(&self.0.label).unwrap_or(&self.0.default_tier);
        let Some(tier) = self.0.tiers.get(name) else {
            return Answer::deny(format!("the namespace is of the tier {name}, which is not configured"), Vec::new());
        };
        let object = input.parsed();
        let path = format!("/{}", at.trim_end_matches('.').replace('.', "/"));
        let pod = if at.is_empty() { Some(&object) } else { object.pointer(&path) };
        let mut review = Review { name, tier, at, causes: Vec::new() };
        if let Some(pod) = pod {
            review.pod(pod);
        }
        review.causes.truncate(MAX_CAUSES);
        if review.causes.is_empty() {
            Answer::allow()
        } else {
            Answer::deny(format!("the tier {name} does not allow this"), review.causes)
        }
    }
}

export! {
    admission: TenantTiers,
    schema: include_str!("../schema.json"),
    examples: include_str!("../examples/golden.json"),
}
