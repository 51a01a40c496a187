//! Namespace: its own name as a label, the `kubernetes` finalizer, and the two phases.

use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use scaleup_api::{names, well_known};

use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules, SelectableField};

/// Finalizers that need no domain (`IsStandardFinalizerName`).
const STANDARD_FINALIZERS: &[&str] =
    &[well_known::FINALIZER_KUBERNETES, well_known::FINALIZER_ORPHAN, well_known::FINALIZER_FOREGROUND];

/// What field selectors may name.
pub const SELECTABLE: &[SelectableField] = &[
    SelectableField { path: "status.phase", get: |namespace| field::text_at(namespace, "/status/phase") },
    SelectableField { path: "name", get: |namespace| field::text_at(namespace, "/metadata/name") },
];

/// Rules of Namespaces.
pub struct NamespaceRules;

impl Rules for NamespaceRules {
    type Object = Namespace;

    fn default(&self, object: &mut Namespace) {
        if let Some(name) = object.metadata.name.clone().filter(|n| !n.is_empty()) {
            let labels = object.metadata.labels.get_or_insert_default();
            labels.insert(well_known::LABEL_NAMESPACE_NAME.into(), name);
        }
        let status = object.status.get_or_insert_default();
        if field::text(&status.phase).is_empty() {
            status.phase = Some("Active".into());
        }
    }

    fn prepare_create(&self, object: &mut Namespace, _: &RuleContext<'_>) {
        object.status = Some(NamespaceStatus { phase: Some("Active".into()), conditions: None });
        let finalizers = object.spec.get_or_insert_default().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == well_known::FINALIZER_KUBERNETES) {
            finalizers.push(well_known::FINALIZER_KUBERNETES.into());
        }
    }

    /// Only `/finalize` changes `spec.finalizers`.
    fn prepare_update(&self, object: &mut Namespace, old: &Namespace, cx: &RuleContext<'_>) {
        if cx.subresource.is_none() {
            object.spec.clone_from(&old.spec);
        }
    }

    fn validate(&self, object: &Namespace, _: &RuleContext<'_>, errors: &mut Errors) {
        let at = Path::new("spec.finalizers");
        for name in object.spec.iter().flat_map(|s| field::list(&s.finalizers)) {
            field::format(errors, &at, name, names::qualified_name);
            if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name.as_str()) {
                let why = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(FieldError::invalid(at, name.as_str(), why));
            }
        }
    }

    fn validate_update(&self, object: &Namespace, _: &Namespace, cx: &RuleContext<'_>, errors: &mut Errors) {
        if cx.subresource != Some("status") {
            return;
        }
        let phase = object.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let (expected, why) = if object.metadata.deletion_timestamp.is_none() {
            ("Active", "may only be 'Active' if `deletionTimestamp` is empty")
        } else {
            ("Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty")
        };
        if phase != expected {
            errors.push(FieldError::invalid("status.Phase", phase, why));
        }
    }

    fn begin_deletion(&self, object: &mut Namespace) {
        object.status.get_or_insert_default().phase = Some("Terminating".into());
    }

    fn is_held(&self, object: &Namespace) -> bool {
        object.spec.as_ref().is_some_and(|s| !field::list(&s.finalizers).is_empty())
    }

    fn name_is_label(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;
    use crate::registry::{AnyRules, Typed};

    #[test]
    fn label_finalizer_and_phase_are_filled() {
        let stored = create(NamespaceRules, "{metadata: {name: web, labels: {kubernetes.io/metadata.name: lie}}}");
        contains(
            &stored.expect("valid"),
            &json!({
                "metadata": {"labels": {"kubernetes.io/metadata.name": "web"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            }),
        );
    }

    #[test]
    fn finalizers_are_checked_and_kept() {
        refused(
            NamespaceRules,
            "{metadata: {name: web}, spec: {finalizers: [mine, 'a b/c']}}",
            &[
                "spec.finalizers: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified",
                &format!(
                    "spec.finalizers: Invalid value: \"a b/c\": {}",
                    names::qualified_name("a b/c").expect_err("bad")
                ),
            ],
        );
        let stored = update(|| NamespaceRules, "{metadata: {name: web}}", "{metadata: {name: web}, spec: {}}");
        contains(&stored.expect("valid"), &json!({"spec": {"finalizers": ["kubernetes"]}}));
    }

    #[test]
    fn the_phase_follows_deletion() {
        let old = create(NamespaceRules, "{metadata: {name: web}}").expect("valid");
        assert!(Typed(NamespaceRules).is_held(&old));
        let deleting = Typed(NamespaceRules).begin_deletion(old.clone());
        contains(&deleting, &json!({"status": {"phase": "Terminating"}}));
        assert!(!Typed(NamespaceRules).is_held(&json!({"metadata": {"name": "web"}, "spec": {"finalizers": []}})));
        let mut new = old.clone();
        new["status"]["phase"] = json!("Terminating");
        let cx = RuleContext { subresource: Some("status"), ..RuleContext::default() };
        let errors = Typed(NamespaceRules).update(new, &old, &cx).expect_err("refused");
        assert_eq!(
            errors[0].to_string(),
            "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"
        );
    }
}
