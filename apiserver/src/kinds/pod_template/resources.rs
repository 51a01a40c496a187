//! Resource names and amounts of containers (`ValidateContainerResourceRequirements`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;
use scaleup_api::names;
use scaleup_api::quantity::Quantity;

use super::super::field::{self, Errors, Path};
use crate::error::FieldError;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, K8sQuantity>;

/// Upstream's `ErrFormatWrong`.
const BAD_QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const HUGE_PAGES: &str = "hugepages-";

/// Prints an amount in canonical form; one that does not parse stays for validation to report.
pub fn canonical_one(amount: &mut K8sQuantity) {
    if let Ok(parsed) = Quantity::parse(&amount.0) {
        amount.0 = parsed.to_string();
    }
}

/// Prints amounts in canonical form.
pub fn canonical(amounts: &mut Option<Amounts>) {
    amounts.iter_mut().flatten().for_each(|(_, amount)| canonical_one(amount));
}

/// A limit without a request is the request, too (`SetDefaults_Pod`).
pub fn requests_from_limits(container: &mut Container) {
    let Some(resources) = &mut container.resources else { return };
    let Some(limits) = resources.limits.as_ref().filter(|l| !l.is_empty()) else { return };
    let requests = resources.requests.get_or_insert_default();
    for (name, amount) in limits {
        requests.entry(name.clone()).or_insert_with(|| amount.clone());
    }
}

/// Requests do not exceed limits, names are known or qualified, amounts are amounts.
pub fn validate(path: &Path<'_>, resources: &ResourceRequirements, errors: &mut Errors) {
    let empty = Amounts::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    let (limits_at, requests_at) = (path.child("limits"), path.child("requests"));
    for (at, amounts) in [(&limits_at, limits), (&requests_at, requests)] {
        for (name, amount) in amounts {
            validate_name(&at.key(name), name, errors);
            validate_amount(&at.key(name), name, amount, errors);
        }
    }
    for (name, request) in requests {
        let limit = limits.get(name);
        if limit.is_none() && !overcommit_allowed(name) {
            errors.push(FieldError::required(limits_at, "Limit must be set for non overcommitable resources"));
        }
        let Some((limit, request)) = limit.and_then(|l| Some((parse(l)?, parse(request)?))) else { continue };
        let mut refuse = |relation: &str| {
            let why = format!("must be {relation} {name} limit of {limit}");
            errors.push(FieldError::invalid(requests_at, request.to_string(), why));
        };
        if request != limit && !overcommit_allowed(name) {
            refuse("equal to");
        } else if request > limit {
            refuse("less than or equal to");
        }
    }
    let mut all = limits.keys().chain(requests.keys());
    let compute = all.clone().any(|n| n == "cpu" || n == "memory");
    if !compute && all.any(|n| n.starts_with(HUGE_PAGES)) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

fn parse(amount: &K8sQuantity) -> Option<Quantity> {
    Quantity::parse(&amount.0).ok()
}

/// The amount parses, is not negative, and is whole where the resource is counted (`ValidateResourceQuantityValue`).
pub fn validate_amount(path: &Path<'_>, name: &str, amount: &K8sQuantity, errors: &mut Errors) {
    let Some(parsed) = parse(amount) else {
        errors.push(FieldError::invalid(path, amount.0.as_str(), BAD_QUANTITY));
        return;
    };
    if parsed.is_negative() {
        errors.push(FieldError::invalid(path, parsed.to_string(), field::NEGATIVE));
    }
    let counted = name == "pods" || !is_native(name);
    if counted && !parsed.is_integer() {
        errors.push(FieldError::invalid(path, parsed.to_string(), "must be an integer"));
    }
}

fn validate_name(path: &Path<'_>, name: &str, errors: &mut Errors) {
    let mut refuse = |why: String| errors.push(FieldError::invalid(path, name, why));
    if let Err(why) = names::qualified_name(name) {
        refuse(why);
        return;
    }
    if !name.contains('/') {
        let container = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE_PAGES);
        if !container && !matches!(name, "storage" | "pods") {
            refuse("must be a standard resource type or fully qualified".into());
        }
        if !container {
            refuse("must be a standard resource for containers".into());
        }
    } else if !is_native(name) && !is_extended(name) {
        refuse("doesn't follow extended resource name standard".into());
    }
}

/// No domain, or one of Kubernetes' own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Of a domain, and still a qualified name as a quota key (`requests.` in front).
fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_ok()
}

fn overcommit_allowed(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE_PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_amounts() {
        let check = |text: &str, expected: &[&str]| {
            let resources = serde_json::from_str(text).expect("test json parses");
            let mut errors = Vec::new();
            validate(&Path::new("resources"), &resources, &mut errors);
            let got: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(got, expected, "{text}");
        };
        check(r#"{"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "500m"}}"#, &[]);
        check(r#"{"limits": {"example.com/gpu": "1"}, "requests": {"example.com/gpu": "1"}}"#, &[]);
        check(
            r#"{"limits": {"cpu": "1"}, "requests": {"cpu": "1500m", "memory": "-1"}}"#,
            &[
                "resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                "resources.requests: Invalid value: \"1500m\": must be less than or equal to cpu limit of 1",
            ],
        );
        check(
            r#"{"limits": {"example.com/gpu": "1500m"}, "requests": {"example.com/gpu": "1", "other.com/gpu": "1"}}"#,
            &[
                "resources.limits[example.com/gpu]: Invalid value: \"1500m\": must be an integer",
                "resources.requests: Invalid value: \"1\": must be equal to example.com/gpu limit of 1500m",
                "resources.limits: Required value: Limit must be set for non overcommitable resources",
            ],
        );
        check(
            r#"{"limits": {"hugepages-2Mi": "4Mi", "pods": "1", "disk": "1", "cpu!": "x"}, "requests": {"hugepages-2Mi": "4Mi"}}"#,
            &[
                &format!(
                    "resources.limits[cpu!]: Invalid value: \"cpu!\": {}",
                    names::qualified_name("cpu!").expect_err("bad")
                ),
                "resources.limits[cpu!]: Invalid value: \"x\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                "resources.limits[disk]: Invalid value: \"disk\": must be a standard resource type or fully qualified",
                "resources.limits[disk]: Invalid value: \"disk\": must be a standard resource for containers",
                "resources.limits[pods]: Invalid value: \"pods\": must be a standard resource for containers",
                "resources: Forbidden: HugePages require cpu or memory",
            ],
        );
    }
}
