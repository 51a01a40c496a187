//! ServiceAccount. Its tokens are the token request's business, mounting them is admission's.

use k8s_openapi::api::core::v1::ServiceAccount;

use crate::registry::Rules;

const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Rules of ServiceAccounts: upstream checks nothing beyond metadata.
pub struct ServiceAccountRules;

impl Rules for ServiceAccountRules {
    type Object = ServiceAccount;

    fn warnings(&self, object: &ServiceAccount) -> Vec<String> {
        let enforced = object.metadata.annotations.as_ref().and_then(|a| a.get(ENFORCE_MOUNTABLE));
        if enforced.is_none_or(|v| v != "true") {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{ENFORCE_MOUNTABLE}]: deprecated in v1.32+ and without effect here; \
             use separate namespaces to isolate access to mounted secrets"
        )]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    #[test]
    fn round_trip_and_wrong_types() {
        let stored = create(ServiceAccountRules, "{metadata: {name: a}, imagePullSecrets: [{name: b}]}");
        contains(&stored.expect("valid"), &json!({"imagePullSecrets": [{"name": "b"}]}));
        assert!(create(ServiceAccountRules, "{metadata: {name: a}, imagePullSecrets: b}").is_err());
        assert!(create(ServiceAccountRules, "{metadata: {name: a}, automountServiceAccountToken: 'yes'}").is_err());
        let marked = yaml("{metadata: {name: a, annotations: {kubernetes.io/enforce-mountable-secrets: 'true'}}}");
        let object = serde_json::from_value(marked).expect("decodes");
        assert_eq!(ServiceAccountRules.warnings(&object).len(), 1);
    }
}
