//! The quality of service class of a Pod (`pkg/apis/core/helper/qos`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;
use scaleup_api::quantity::Quantity;

use super::resources::Amounts;

/// Resources that count for the class.
const COMPUTE: &[&str] = &["cpu", "memory"];

/// `Guaranteed` if every container has equal requests and limits of CPU and memory, `BestEffort` if none has any,
/// otherwise `Burstable`.
pub fn class(spec: &PodSpec) -> &'static str {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut guaranteed = true;
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = container.resources.as_ref();
        add(&mut requests, resources.and_then(|r| r.requests.as_ref()));
        let limited = add(&mut limits, resources.and_then(|r| r.limits.as_ref()));
        guaranteed &= limited == COMPUTE.len();
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds the positive compute amounts to `total`; how many there were.
fn add(total: &mut BTreeMap<&'static str, Quantity>, amounts: Option<&Amounts>) -> usize {
    let mut found = 0;
    for name in COMPUTE {
        let amount = amounts.and_then(|a| a.get(*name)).and_then(|q| Quantity::parse(&q.0).ok());
        let Some(amount) = amount.filter(|a| !a.is_zero() && !a.is_negative()) else { continue };
        let sum = total.remove(name).map_or(amount, |sum| sum + amount);
        total.insert(name, sum);
        found += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        let check = |containers: &str, expected: &str| {
            let spec: PodSpec = serde_json::from_str(&format!(r#"{{"containers": {containers}}}"#)).expect("parses");
            assert_eq!(class(&spec), expected, "{containers}");
        };
        let full = r#"{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}}"#;
        check(r#"[{"name": "a"}]"#, "BestEffort");
        check(r#"[{"resources": {"requests": {"cpu": "0"}}}]"#, "BestEffort");
        check(r#"[{"resources": {"requests": {"example.com/gpu": "1"}}}]"#, "BestEffort");
        check(&format!("[{full}, {full}]"), "Guaranteed");
        check(&format!("[{full}, {{}}]"), "Burstable");
        check(r#"[{"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}]"#, "Burstable");
        check(r#"[{"resources": {"requests": {"memory": "1Mi"}}}]"#, "Burstable");
    }
}
