//! `policy.scaleup.dev/v1`: decisions of the platform taken by WebAssembly components that users bring.
//!
//! A [`WasmPlugin`] is for objects of its namespace, a [`ClusterWasmPlugin`] for those of all. Both have the same specification. What a
//! component's functions get and give is documented in `plugins/wit`. Durations are written as in the Gateway API (GEP-2257), sizes as quantities.

mod limits;
mod reference;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};

pub use limits::{AskedLimits, MOST, parse_limits};
pub use reference::{Identifier, Reference};

/// Group of the kinds.
pub const GROUP: &str = "policy.scaleup.dev";
/// Values of `spec.world`.
pub const WORLDS: [&str; 5] = ["admission", "pricing", "routing", "scaling", "scheduling"];
/// Where modules of ClusterWasmPlugins are kept.
pub const CLUSTER_MODULES: &str = crate::well_known::NAMESPACE_SYSTEM;
/// Longest module in `spec.source.inline`, in bytes before base64.
pub const MAX_INLINE_BYTES: usize = 1 << 20;
/// Longest configuration, in bytes of JSON.
pub const MAX_CONFIG_BYTES: usize = 64 << 10;
/// Largest module that is stored.
pub const MAX_MODULE_BYTES: usize = 32 << 20;

/// Whether a text is a SHA-256 as they are written here: 64 lower-case hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Name of the WasmModule with this SHA-256.
pub fn module_name(sha256: &str) -> String {
    format!("sha256-{sha256}")
}

/// The SHA-256 that a WasmModule's name is made of.
pub fn module_digest(name: &str) -> Option<&str> {
    name.strip_prefix("sha256-").filter(|digest| is_sha256(digest))
}

/// Conditions of a plugin, in the order in which a version passes them.
pub const CONDITIONS: [&str; 5] = ["Fetched", "Verified", "Compiled", "Probed", "Active"];

crate::kind!(
    /// A component that takes decisions about objects of its namespace.
    WasmPlugin,
    "policy.scaleup.dev",
    "v1",
    "wasmplugins",
    Namespace,
    WasmPluginSpec,
    WasmPluginStatus,
    "dev.scaleup.policy.v1.WasmPlugin"
);

crate::kind!(
    /// A component that takes decisions about objects of all namespaces.
    ClusterWasmPlugin,
    "policy.scaleup.dev",
    "v1",
    "clusterwasmplugins",
    Cluster,
    WasmPluginSpec,
    WasmPluginStatus,
    "dev.scaleup.policy.v1.ClusterWasmPlugin"
);

crate::kind!(
    /// A module as it was brought: its bytes are the subresource `content`, its name is `sha256-` and their SHA-256.
    WasmModule,
    "policy.scaleup.dev",
    "v1",
    "wasmmodules",
    Namespace,
    WasmModuleSpec,
    WasmModuleStatus,
    "dev.scaleup.policy.v1.WasmModule"
);

data!(
    /// What a module is for.
    WasmModuleSpec "dev.scaleup.policy.v1.WasmModuleSpec" {
        /// `Upload` (kept for a day without any plugin that uses it) or `Fetch` (the platform's own, kept for an hour).
        origin: Option<String>,
    }
);

data!(
    /// Whether the bytes are there.
    WasmModuleStatus "dev.scaleup.policy.v1.WasmModuleStatus" {
        /// Size of the content in bytes; absent until it is there.
        size: Option<i64>,
    }
);

data!(
    /// Specification of a plugin.
    WasmPluginSpec "dev.scaleup.policy.v1.WasmPluginSpec" {
        /// Which decision it takes: `routing`, `admission`, `scheduling`, `scaling` or `pricing`. Immutable.
        world: String,
        /// Where the module comes from: exactly one field is set.
        source: ModuleSource,
        /// SHA-256 of the module, in hexadecimal. Required for `oci` and `https`; checked wherever it is given.
        sha256: Option<String>,
        /// Whose signature the module must carry.
        signature: Option<Signature>,
        /// Configuration, any JSON value; checked against the schema that the component exports.
        config: Option<serde_json::Value>,
        /// What it may use; never more than the tenant's caps.
        limits: Option<PluginLimits>,
        /// What happens with a decision that it could not take, by class of failure.
        failure_policy: Option<PluginFailurePolicy>,
        /// How a new version comes to decide; at once if absent.
        rollout: Option<Rollout>,
        /// Which writes a plugin of the world `admission` is asked about.
        admission: Option<AdmissionBinding>,
        /// Which pods a plugin of the world `scheduling` is asked about.
        scheduling: Option<SchedulingBinding>,
        /// Which decisions are recorded for `scaleup plugin replay`; none if absent.
        recording: Option<Recording>,
    }
);

data!(
    /// Where a module comes from.
    ModuleSource "dev.scaleup.policy.v1.ModuleSource" {
        /// The module itself, in base64; at most 1 MiB.
        inline: Option<String>,
        /// A key of a ConfigMap, most often of its `binaryData`.
        config_map_ref: Option<ObjectKeyRef>,
        /// A key of a Secret.
        secret_ref: Option<ObjectKeyRef>,
        /// A module that was uploaded with `scaleup plugin push`: its SHA-256 in hexadecimal.
        blob: Option<String>,
        /// An artifact in a registry: `registry.example.com/team/plugin:tag` or `…@sha256:…`.
        oci: Option<OciSource>,
        /// An address that answers with the module.
        https: Option<HttpsSource>,
    }
);

data!(
    /// A key of an object.
    ObjectKeyRef "dev.scaleup.policy.v1.ObjectKeyRef" {
        /// Its namespace; only for a ClusterWasmPlugin.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    }
);

data!(
    /// An artifact in a registry (OCI distribution specification).
    OciSource "dev.scaleup.policy.v1.OciSource" {
        /// `registry/repository:tag` or `registry/repository@sha256:…`
        reference: String,
        /// A Secret of type `kubernetes.io/dockerconfigjson`.
        pull_secret: Option<ObjectRef>,
        /// PEM certificates that the registry's must lead to; those of the system if absent.
        ca_bundle: Option<String>,
        /// Clear text; for registries on a network that is trusted.
        plain_http: bool,
    }
);

data!(
    /// An address.
    HttpsSource "dev.scaleup.policy.v1.HttpsSource" {
        /// Begins with `https://`.
        url: String,
        /// PEM certificates that the server's must lead to; those of the system if absent.
        ca_bundle: Option<String>,
        /// A Secret whose key `token` is sent as a bearer token.
        token_secret: Option<ObjectRef>,
    }
);

data!(
    /// An object.
    ObjectRef "dev.scaleup.policy.v1.ObjectRef" {
        /// Its namespace; only for a ClusterWasmPlugin.
        namespace: String,
        /// Its name.
        name: String,
    }
);

data!(
    /// An ed25519 signature (RFC 8032) of the module's bytes.
    Signature "dev.scaleup.policy.v1.Signature" {
        /// The public key, 32 bytes in base64.
        public_key: String,
        /// The signature, 64 bytes in base64.
        value: String,
    }
);

data!(
    /// What a plugin may use; the defaults of its world where absent.
    PluginLimits "dev.scaleup.policy.v1.PluginLimits" {
        /// Linear memory of an instance, a quantity; 64Mi if absent.
        memory: Option<String>,
        /// Elements of all tables together; 16384 if absent.
        table_elements: Option<i32>,
        /// Size of the module, a quantity; 32Mi if absent.
        module_size: Option<String>,
        /// Time of one decision, a duration: 2ms for routing, 50ms for scheduling, 1s for admission, 2s for scaling and pricing.
        time: Option<String>,
        /// Instructions of one decision, for admission, scaling and pricing.
        fuel: Option<i64>,
        /// Bytes that one decision may copy out of the component, a quantity; 1Mi if absent.
        output: Option<String>,
        /// CPU time for compiling, a duration; 60s if absent.
        compile_time: Option<String>,
        /// Memory for compiling, a quantity; 2Gi if absent.
        compile_memory: Option<String>,
        /// Entries of its key-value state; 1024 if absent.
        state_entries: Option<i32>,
        /// Bytes of its key-value state, a quantity; 256Ki if absent.
        state_size: Option<String>,
    }
);

data!(
    /// `BuiltIn`: the platform decides as if there were no plugin. `Refuse`: 503 for a request, 500 for a write to the API, and a pod waits.
    /// `Refuse` if absent for admission, `BuiltIn` for the others.
    PluginFailurePolicy "dev.scaleup.policy.v1.PluginFailurePolicy" {
        /// The module could not be fetched, or not yet.
        fetch: Option<String>,
        /// It is no component of its world, or does not compile within its limits.
        compile: Option<String>,
        /// It stopped with an error.
        trap: Option<String>,
        /// It used up its time or its instructions.
        timeout: Option<String>,
        /// Its answer is not one.
        invalid_output: Option<String>,
    }
);

data!(
    /// How a new version comes to decide: in the shadow, then for a share of decisions, then for all. Phases that are absent are left out.
    /// The first version of a plugin decides at once.
    Rollout "dev.scaleup.policy.v1.Rollout" {
        /// It is asked, and its answers are only compared.
        shadow: Option<RolloutPhase>,
        /// It decides a share.
        canary: Vec<CanaryStep>,
        /// Percentage of its decisions that may fail in any phase before it is taken out, and, in the 10 minutes after it became the active one,
        /// before the previous version is put back; 1 if absent.
        max_error_percent: Option<i32>,
        /// It stays in its phase until this is taken away.
        paused: bool,
    }
);

data!(
    /// When a phase is passed: after the time, and after so many decisions.
    RolloutPhase "dev.scaleup.policy.v1.RolloutPhase" {
        /// A duration; 0s if absent.
        duration: Option<String>,
        /// Decisions, at all load balancers, schedulers and API servers together; 0 if absent.
        decisions: Option<i64>,
        /// Percentage of decisions in which it may differ from the active version; any if absent.
        max_difference_percent: Option<i32>,
    }
);

data!(
    /// A share of decisions.
    CanaryStep "dev.scaleup.policy.v1.CanaryStep" {
        /// 1 to 99.
        percent: i32,
        /// A duration; 0s if absent.
        duration: Option<String>,
        /// Decisions of this version in this step; 0 if absent.
        decisions: Option<i64>,
    }
);

data!(
    /// Which writes a plugin of the world `admission` is asked about; those of its own namespace only for a WasmPlugin.
    AdmissionBinding "dev.scaleup.policy.v1.AdmissionBinding" {
        /// A write that matches any of these. At least one.
        rules: Vec<AdmissionRule>,
        /// Only objects in namespaces with these labels; all if absent.
        namespace_selector: Option<LabelSelector>,
        /// Only objects with these labels, before or after; all if absent.
        object_selector: Option<LabelSelector>,
    }
);

data!(
    /// As in `admissionregistration.k8s.io/v1` `RuleWithOperations`.
    AdmissionRule "dev.scaleup.policy.v1.AdmissionRule" {
        /// `CREATE`, `UPDATE`, `DELETE`, `*`.
        operations: Vec<String>,
        /// API groups, `""` for the core, or `*`.
        api_groups: Vec<String>,
        /// API versions, or `*`; all if empty.
        api_versions: Vec<String>,
        /// Resources, `pods/status` for a subresource, or `*`.
        resources: Vec<String>,
    }
);

data!(
    /// Which pods a plugin of the world `scheduling` is asked about. A ClusterWasmPlugin names schedulers or namespaces; if both, both must match.
    SchedulingBinding "dev.scaleup.policy.v1.SchedulingBinding" {
        /// Values of `spec.schedulerName`: a profile of this name exists from now on. Only for a ClusterWasmPlugin.
        scheduler_names: Vec<String>,
        /// Pods of namespaces with these labels; a WasmPlugin is asked about all pods of its own namespace.
        namespace_selector: Option<LabelSelector>,
        /// Weight of its score among the built-in ones, 1 to 100; 1 if absent.
        weight: Option<i32>,
        /// Keys of the node labels that it sees, at most 16.
        node_labels: Vec<String>,
    }
);

data!(
    /// Which decisions are recorded. Header values are hashed unless they are named here, addresses lose their last part, and objects lose the values of Secrets.
    Recording "dev.scaleup.policy.v1.Recording" {
        /// Percentage of decisions, 1 to 100; 1 if absent.
        sample_percent: Option<i32>,
        /// Latest records that are kept at each place that decides, up to 10000; 1000 if absent.
        max_records: Option<i32>,
        /// Request headers whose values are kept as they are.
        plain_headers: Vec<String>,
    }
);

data!(
    /// What is observed of a plugin.
    WasmPluginStatus "dev.scaleup.policy.v1.WasmPluginStatus" {
        /// `metadata.generation` that the conditions are about.
        observed_generation: Option<i64>,
        /// `Fetched`, `Verified`, `Compiled`, `Probed`, `Active`.
        conditions: Vec<Condition>,
        /// The version that decides.
        active: Option<PluginVersion>,
        /// The version that is tried.
        candidate: Option<PluginVersion>,
        /// The version before: for `scaleup plugin rollback`.
        previous: Option<PluginVersion>,
        /// Sums over all places.
        totals: Option<PluginFigures>,
        /// The version that the specification asked for last, whatever became of it.
        latest: Option<PluginAttempt>,
        /// Versions that there have been so far.
        versions: Option<i64>,
        /// The processes that decide, by name: `lb/node-1`, `scheduler/node-1`, `apiserver/node-1`, `up/node-1`. Each writes its own entry.
        holders: BTreeMap<String, PluginHolder>,
    }
);

data!(
    /// A version of a plugin: everything that a process needs to run it, so that it stays what it was when the specification changes.
    PluginVersion "dev.scaleup.policy.v1.PluginVersion" {
        /// Its number: versions of a plugin are counted.
        number: i64,
        /// Latest `metadata.generation` of the plugin that asks for it.
        generation: i64,
        /// SHA-256 of the module.
        digest: String,
        /// Size of the module in bytes.
        size: i64,
        /// `Shadow`, `Canary` or `Active`.
        phase: String,
        /// Share of decisions of a canary.
        percent: Option<i32>,
        /// Which of `spec.rollout.canary` it is in, from 0 on.
        step: Option<i32>,
        /// What it had done when this phase began.
        before: Option<PluginCounts>,
        /// Since when it is in this phase.
        since: Option<Time>,
        /// Its configuration.
        config: Option<serde_json::Value>,
        /// Its limits, as they were asked for.
        limits: Option<PluginLimits>,
        /// Its failure policy.
        failure_policy: Option<PluginFailurePolicy>,
        /// The signature that was checked.
        signature: Option<Signature>,
    }
);

data!(
    /// What became of the specification.
    PluginAttempt "dev.scaleup.policy.v1.PluginAttempt" {
        /// `metadata.generation`
        generation: i64,
        /// SHA-256 of the module that was fetched.
        digest: Option<String>,
        /// The version that it became.
        number: Option<i64>,
        /// Why it is not used and is not tried again: the reason of the condition that says so.
        rejected: Option<String>,
        /// In words.
        message: Option<String>,
    }
);

data!(
    /// Counts of a version, over all processes.
    PluginCounts "dev.scaleup.policy.v1.PluginCounts" {
        /// Decisions, those that failed among them.
        decisions: i64,
        /// Decisions that failed.
        errors: i64,
        /// Answers in the shadow that were not the active version's.
        differences: i64,
    }
);

data!(
    /// A process that decides.
    PluginHolder "dev.scaleup.policy.v1.PluginHolder" {
        /// Number of the version that decides there; absent if none does.
        active: Option<i64>,
        /// Number of the version that is tried there.
        candidate: Option<i64>,
        /// Number of a version that was taken out there because it kept failing.
        tripped: Option<i64>,
        /// `Loaded`, or why it is not: a class of failure, `fetch` or `compile`.
        state: String,
        /// What went wrong last.
        message: String,
        /// Decisions of the active version there.
        figures: Option<PluginFigures>,
        /// Those of the candidate.
        candidate_figures: Option<PluginFigures>,
        /// When it was written; renewed every minute.
        time: Option<Time>,
    }
);

data!(
    /// Figures of a version since it was loaded.
    PluginFigures "dev.scaleup.policy.v1.PluginFigures" {
        /// Decisions, those that failed among them.
        decisions: i64,
        /// Decisions that failed, by class: `trap`, `timeout`, `invalid_output`.
        errors: BTreeMap<String, i64>,
        /// Answers of a version in the shadow that were not the active one's.
        differences: i64,
        /// Median time of a decision, in nanoseconds.
        p50_nanos: i64,
        /// The 99th percentile.
        p99_nanos: i64,
        /// Instructions, where they are counted.
        fuel: i64,
        /// Most linear memory of an instance, in bytes.
        memory_bytes: i64,
        /// `Closed`, `Open` or `HalfOpen`.
        breaker: String,
    }
);
