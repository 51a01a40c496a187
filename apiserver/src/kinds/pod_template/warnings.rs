//! Warnings about pod specs that are valid and probably not meant (`pkg/api/pod/warnings.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use scaleup_api::quantity::Quantity;
use scaleup_api::well_known;

use super::super::field::{self, Path};

/// Node labels that were renamed long ago.
const RENAMED_LABELS: &[(&str, &str, &str)] = &[
    ("beta.kubernetes.io/arch", "v1.14", well_known::LABEL_ARCH),
    ("beta.kubernetes.io/os", "v1.14", well_known::LABEL_OS),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", well_known::LABEL_REGION),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", well_known::LABEL_ZONE),
];

/// Warnings for a spec at `path`.
pub fn warnings(path: &Path<'_>, spec: &PodSpec) -> Vec<String> {
    let mut out = Vec::new();
    let selector_at = path.child("nodeSelector");
    for (old, since, new) in RENAMED_LABELS {
        if spec.node_selector.as_ref().is_some_and(|s| s.contains_key(*old)) {
            out.push(format!("{}: deprecated since {since}; use {new:?} instead", selector_at.key(old)));
        }
    }
    if spec.termination_grace_period_seconds.is_some_and(|s| s < 0) {
        let at = path.child("terminationGracePeriodSeconds");
        out.push(format!("{at}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    let lists = [("containers", &spec.containers[..]), ("initContainers", field::list(&spec.init_containers))];
    for (name, containers) in lists {
        let at = path.child(name);
        containers.iter().enumerate().for_each(|(i, c)| container_warnings(&at.index(i), c, &mut out));
    }
    out
}

fn container_warnings(path: &Path<'_>, container: &Container, out: &mut Vec<String>) {
    let at = path.child("env");
    let mut seen = BTreeMap::new();
    for (i, variable) in field::list(&container.env).iter().enumerate() {
        // A value that refers to its own name adds to the earlier one on purpose.
        let extends = field::text(&variable.value).contains(&format!("$({})", variable.name));
        if seen.insert(&variable.name, i).is_some() && !extends {
            let name = &variable.name;
            out.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                at.index(i)
            ));
        }
    }
    let at = path.child("ports");
    let mut seen = BTreeMap::new();
    for (i, port) in field::list(&container.ports).iter().enumerate() {
        let key = (port.container_port, field::text(&port.protocol), port.host_port, field::text(&port.host_ip));
        if let Some(first) = seen.get(&key) {
            out.push(format!("{}: duplicate port definition with {}", at.index(i), at.index(*first)));
        } else {
            seen.insert(key, i);
        }
    }
    let Some(resources) = &container.resources else { return };
    let at = path.child("resources");
    for (kind, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        let at = at.child(kind);
        for name in ["memory", "ephemeral-storage"] {
            let amount = amounts.as_ref().and_then(|a| a.get(name));
            let fraction = amount.and_then(|q| Quantity::parse(&q.0).ok()).filter(|q| !q.is_integer());
            if let Some(amount) = fraction {
                let at = at.key(name);
                let value = amount.to_string();
                out.push(format!("{at}: fractional byte value {value:?} is invalid, must be an integer"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_warned_about() {
        let text = r#"{
            "nodeSelector": {"beta.kubernetes.io/os": "linux"}, "terminationGracePeriodSeconds": -1,
            "containers": [{
                "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"}],
                "ports": [{"containerPort": 80}, {"containerPort": 80}],
                "resources": {"limits": {"memory": "100m", "cpu": "100m"}}
            }]
        }"#;
        let spec = serde_json::from_str(text).expect("test json parses");
        assert_eq!(
            warnings(&Path::new("spec"), &spec),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
            ]
        );
    }
}
