//! The four RBAC kinds: rules that say something, bindings whose role never changes.
//!
//! Whether the writer may grant what a role holds (escalation) is the authorizer's business.

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use scaleup_api::names;

use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Rules of Roles.
pub struct RoleRules;

impl Rules for RoleRules {
    type Object = Role;

    fn validate(&self, object: &Role, _: &RuleContext<'_>, errors: &mut Errors) {
        validate_rules(field::list(&object.rules), true, errors);
    }
    fn names_are_path_segments(&self) -> bool {
        true
    }
}

/// Rules of ClusterRoles.
pub struct ClusterRoleRules;

impl Rules for ClusterRoleRules {
    type Object = ClusterRole;

    fn validate(&self, object: &ClusterRole, _: &RuleContext<'_>, errors: &mut Errors) {
        validate_rules(field::list(&object.rules), false, errors);
        let Some(aggregation) = &object.aggregation_rule else { return };
        let at = Path::new("aggregationRule.clusterRoleSelectors");
        let selectors = field::list(&aggregation.cluster_role_selectors);
        if selectors.is_empty() {
            let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.push(FieldError::required(at, why));
        }
        for (i, selector) in selectors.iter().enumerate() {
            field::label_selector(errors, &at.index(i), Some(selector));
        }
    }
    fn names_are_path_segments(&self) -> bool {
        true
    }
}

/// Rules of RoleBindings.
pub struct RoleBindingRules;

impl Rules for RoleBindingRules {
    type Object = RoleBinding;

    fn default(&self, object: &mut RoleBinding) {
        default_binding(&mut object.role_ref, object.subjects.as_deref_mut());
    }
    fn validate(&self, object: &RoleBinding, _: &RuleContext<'_>, errors: &mut Errors) {
        validate_role_ref(&object.role_ref, &["Role", "ClusterRole"], errors);
        validate_subjects(field::list(&object.subjects), true, errors);
    }
    fn validate_update(&self, object: &RoleBinding, old: &RoleBinding, _: &RuleContext<'_>, errors: &mut Errors) {
        validate_same_role(&object.role_ref, &old.role_ref, errors);
    }
    fn names_are_path_segments(&self) -> bool {
        true
    }
}

/// Rules of ClusterRoleBindings.
pub struct ClusterRoleBindingRules;

impl Rules for ClusterRoleBindingRules {
    type Object = ClusterRoleBinding;

    fn default(&self, object: &mut ClusterRoleBinding) {
        default_binding(&mut object.role_ref, object.subjects.as_deref_mut());
    }
    fn validate(&self, object: &ClusterRoleBinding, _: &RuleContext<'_>, errors: &mut Errors) {
        validate_role_ref(&object.role_ref, &["ClusterRole"], errors);
        validate_subjects(field::list(&object.subjects), false, errors);
    }
    fn validate_update(
        &self,
        object: &ClusterRoleBinding,
        old: &ClusterRoleBinding,
        _: &RuleContext<'_>,
        errors: &mut Errors,
    ) {
        validate_same_role(&object.role_ref, &old.role_ref, errors);
    }
    fn names_are_path_segments(&self) -> bool {
        true
    }
}

fn default_binding(role: &mut RoleRef, subjects: Option<&mut [Subject]>) {
    if role.api_group.is_empty() {
        role.api_group = GROUP.into();
    }
    for subject in subjects.into_iter().flatten() {
        let named_by_group = matches!(subject.kind.as_str(), "User" | "Group");
        if named_by_group && field::text(&subject.api_group).is_empty() {
            subject.api_group = Some(GROUP.into());
        }
    }
}

fn validate_rules(rules: &[PolicyRule], namespaced: bool, errors: &mut Errors) {
    let path = Path::new("rules");
    for (i, rule) in rules.iter().enumerate() {
        let at = path.index(i);
        let groups = field::list(&rule.api_groups);
        let resources = field::list(&rule.resources);
        if rule.verbs.is_empty() {
            errors.push(FieldError::required(at.child("verbs"), "verbs must contain at least one value"));
        }
        if !field::list(&rule.non_resource_urls).is_empty() {
            let mut refuse = |why: &str| {
                let value = field::value_of(&rule.non_resource_urls);
                errors.push(FieldError::invalid(at.child("nonResourceURLs"), value, why));
            };
            if namespaced {
                refuse("namespaced rules cannot apply to non-resource URLs");
            }
            if !groups.is_empty() || !resources.is_empty() || !field::list(&rule.resource_names).is_empty() {
                refuse("rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if groups.is_empty() {
            let why = "resource rules must supply at least one api group";
            errors.push(FieldError::required(at.child("apiGroups"), why));
        }
        if resources.is_empty() {
            let why = "resource rules must supply at least one resource";
            errors.push(FieldError::required(at.child("resources"), why));
        }
    }
}

fn validate_role_ref(role: &RoleRef, kinds: &[&str], errors: &mut Errors) {
    let at = Path::new("roleRef");
    if role.api_group != GROUP {
        errors.push(FieldError::not_supported(at.child("apiGroup"), role.api_group.as_str(), &[GROUP]));
    }
    if !kinds.contains(&role.kind.as_str()) {
        errors.push(FieldError::not_supported(at.child("kind"), role.kind.as_str(), kinds));
    }
    field::required_format(errors, &at.child("name"), &role.name, names::path_segment);
}

fn validate_subjects(subjects: &[Subject], namespaced: bool, errors: &mut Errors) {
    let path = Path::new("subjects");
    for (i, subject) in subjects.iter().enumerate() {
        let at = path.index(i);
        field::required(errors, &at.child("name"), &subject.name);
        let group = field::text(&subject.api_group);
        match subject.kind.as_str() {
            "ServiceAccount" => {
                if !subject.name.is_empty() {
                    field::format(errors, &at.child("name"), &subject.name, names::dns1123_subdomain);
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(at.child("apiGroup"), group, &[""]));
                }
                if !namespaced {
                    field::required(errors, &at.child("namespace"), field::text(&subject.namespace));
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    errors.push(FieldError::not_supported(at.child("apiGroup"), group, &[GROUP]));
                }
            }
            other => {
                let kinds = &["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(at.child("kind"), other, kinds));
            }
        }
    }
}

fn validate_same_role(new: &RoleRef, old: &RoleRef, errors: &mut Errors) {
    if new != old {
        errors.push(FieldError::invalid("roleRef", field::value_of(new), "cannot change roleRef"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    #[test]
    fn rules_must_say_something() {
        assert!(create(RoleRules, "{metadata: {name: a}}").is_ok());
        let urls = "{metadata: {name: a}, rules: [{verbs: [get], nonResourceURLs: [/x], resources: [pods]}]}";
        let mixed = "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs";
        refused(ClusterRoleRules, urls, &[mixed]);
        let namespaced =
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs";
        refused(RoleRules, urls, &[mixed, namespaced]);
        refused(
            RoleRules,
            "{metadata: {name: a}, rules: [{}]}",
            &[
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
            ],
        );
        refused(
            ClusterRoleRules,
            "{metadata: {name: a}, aggregationRule: {}}",
            &[
                "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
            ],
        );
    }

    #[test]
    fn bindings_are_defaulted() {
        let text = "{metadata: {name: a}, roleRef: {kind: ClusterRole, name: view}, subjects: [{kind: User, name: u}, {kind: ServiceAccount, name: s, namespace: n}]}";
        let group = "rbac.authorization.k8s.io";
        contains(
            &create(ClusterRoleBindingRules, text).expect("valid"),
            &json!({"roleRef": {"apiGroup": group}, "subjects": [{"apiGroup": group}, {"name": "s"}]}),
        );
        assert!(create(RoleBindingRules, text).is_ok());
    }

    #[test]
    fn bindings_are_checked() {
        refused(
            ClusterRoleBindingRules,
            "{metadata: {name: a}, roleRef: {kind: Role, name: a/b, apiGroup: x}, subjects: [{kind: ServiceAccount, name: S, apiGroup: y}, {kind: Robot}, {kind: Group, name: g, apiGroup: z}]}",
            &[
                "roleRef.apiGroup: Unsupported value: \"x\": supported values: \"rbac.authorization.k8s.io\"",
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "roleRef.name: Invalid value: \"a/b\": may not contain '/'",
                &format!("subjects[0].name: Invalid value: \"S\": {}", names::dns1123_subdomain("S").expect_err("bad")),
                "subjects[0].apiGroup: Unsupported value: \"y\": supported values: \"\"",
                "subjects[0].namespace: Required value",
                "subjects[1].name: Required value",
                "subjects[1].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
                "subjects[2].apiGroup: Unsupported value: \"z\": supported values: \"rbac.authorization.k8s.io\"",
            ],
        );
    }

    #[test]
    fn the_role_of_a_binding_stays() {
        same_messages(
            update(
                || RoleBindingRules,
                "{metadata: {name: a}, roleRef: {kind: Role, name: a}}",
                "{metadata: {name: a}, roleRef: {kind: Role, name: b}}",
            ),
            &[
                "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"b\"}: cannot change roleRef",
            ],
        );
    }
}
