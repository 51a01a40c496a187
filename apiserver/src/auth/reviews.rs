//! Reviews: may somebody do something, who am I, is this token good. Computed, never stored.
//!
//! `object` comes decoded and validated by the kinds' rules; only `status` is added here.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, ResourceAttributes};
use serde::Deserialize;
use serde_json::{Value, json};

use super::lb;
use super::node::node_name;
use super::rbac::escalation::full_authority;
use super::rbac::rule::Rule;
use super::rbac::{Attributes, Authorizer, MASTERS};
use crate::error::ApiError;
use crate::handler::{Resolved, VirtualCreate};
use crate::user::UserInfo;

/// Answers SelfSubjectAccessReviews (`kubectl auth can-i`).
pub struct SelfSubjectAccessReviewer;
/// Answers SubjectAccessReviews.
pub struct SubjectAccessReviewer;
/// Answers LocalSubjectAccessReviews.
pub struct LocalSubjectAccessReviewer;
/// Answers SelfSubjectRulesReviews (`kubectl auth can-i --list`).
pub struct SelfSubjectRulesReviewer;
/// Answers TokenReviews.
pub struct TokenReviewer;
/// Answers SelfSubjectReviews (`kubectl auth whoami`).
pub struct SelfSubjectReviewer;

/// `spec` of the three access reviews.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AccessSpec {
    user: Option<String>,
    groups: Option<Vec<String>>,
    uid: Option<String>,
    extra: Option<BTreeMap<String, Vec<String>>>,
    resource_attributes: Option<ResourceAttributes>,
    non_resource_attributes: Option<NonResourceAttributes>,
}

impl AccessSpec {
    fn of(review: &Value) -> Result<Self, ApiError> {
        Self::deserialize(&review["spec"]).map_err(|e| ApiError::bad_request(e.to_string()))
    }

    fn user(&mut self) -> UserInfo {
        UserInfo {
            name: self.user.take().unwrap_or_default(),
            uid: self.uid.take().unwrap_or_default(),
            groups: self.groups.take().unwrap_or_default(),
            extra: self.extra.take().unwrap_or_default(),
        }
    }

    /// `SubjectAccessReviewStatus` for `user`.
    fn answer(&self, authorizer: &Authorizer, user: &UserInfo) -> Value {
        let selector = self.resource_attributes.as_ref().map(field_selector).unwrap_or_default();
        let text = |s: &'_ Option<String>| s.clone().unwrap_or_default();
        let fields = match (&self.resource_attributes, &self.non_resource_attributes) {
            (Some(r), _) => [&r.verb, &r.namespace, &r.group, &r.resource, &r.subresource, &r.name].map(text),
            (None, Some(n)) => {
                [text(&n.verb), String::new(), String::new(), String::new(), String::new(), text(&n.path)]
            }
            (None, None) => Default::default(),
        };
        let [verb, namespace, group, resource, subresource, last] = &fields;
        let (name, path) = if self.resource_attributes.is_some() { (last.as_str(), "") } else { ("", last.as_str()) };
        let attributes =
            Attributes { user, verb, namespace, group, resource, subresource, name, path, field_selector: &selector };
        let (decision, reason) = authorizer.explain(&attributes);
        let mut status = json!({"allowed": decision.allowed()});
        if !reason.is_empty() {
            status["reason"] = reason.into();
        }
        status
    }
}

/// The selector as a parameter would spell it: only terms that can be spelled so; others cannot widen access.
fn field_selector(attributes: &ResourceAttributes) -> String {
    let Some(selector) = &attributes.field_selector else { return String::new() };
    if let Some(raw) = &selector.raw_selector {
        return raw.clone();
    }
    let terms =
        selector.requirements.iter().flatten().filter_map(|r| match (r.operator.as_str(), r.values.as_deref()) {
            ("In", Some([value])) => Some(format!("{}={}", r.key, escape(value))),
            ("NotIn", Some([value])) => Some(format!("{}!={}", r.key, escape(value))),
            _ => None,
        });
    terms.collect::<Vec<_>>().join(",")
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

fn with_status(mut review: Value, status: Value) -> Value {
    review["status"] = status;
    review
}

#[async_trait]
impl VirtualCreate for SelfSubjectAccessReviewer {
    async fn create(&self, server: &Arc<crate::Server>, resolved: &Resolved, object: Value) -> Result<Value, ApiError> {
        let status = AccessSpec::of(&object)?.answer(&server.authorizer, &resolved.user);
        Ok(with_status(object, status))
    }
}

#[async_trait]
impl VirtualCreate for SubjectAccessReviewer {
    async fn create(&self, server: &Arc<crate::Server>, _: &Resolved, object: Value) -> Result<Value, ApiError> {
        let mut spec = AccessSpec::of(&object)?;
        let user = spec.user();
        let status = spec.answer(&server.authorizer, &user);
        Ok(with_status(object, status))
    }
}

#[async_trait]
impl VirtualCreate for LocalSubjectAccessReviewer {
    async fn create(&self, server: &Arc<crate::Server>, resolved: &Resolved, object: Value) -> Result<Value, ApiError> {
        let mut spec = AccessSpec::of(&object)?;
        let namespace = spec.resource_attributes.as_ref().and_then(|r| r.namespace.as_deref()).unwrap_or_default();
        if namespace != resolved.namespace {
            return Err(ApiError::bad_request(format!(
                "spec.resourceAttributes.namespace must match namespace: {}",
                resolved.namespace
            )));
        }
        let user = spec.user();
        let status = spec.answer(&server.authorizer, &user);
        Ok(with_status(object, status))
    }
}

#[async_trait]
impl VirtualCreate for SelfSubjectRulesReviewer {
    async fn create(&self, server: &Arc<crate::Server>, resolved: &Resolved, object: Value) -> Result<Value, ApiError> {
        let namespace = object.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default();
        if namespace.is_empty() {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        let status = rules_status(&server.authorizer, &resolved.user, namespace);
        Ok(with_status(object, status))
    }
}

/// `SubjectRulesReviewStatus`
fn rules_status(authorizer: &Authorizer, user: &UserInfo, namespace: &str) -> Value {
    let mut rules = authorizer.rules_for(user, namespace);
    if user.in_group(MASTERS) {
        rules.extend(full_authority());
    }
    let mut seen = std::collections::HashSet::new();
    rules.retain(|r| seen.insert(r.clone()));
    let (paths, resources): (Vec<Rule>, Vec<Rule>) = rules.into_iter().partition(|r| !r.non_resource_urls.is_empty());
    let resource = |r: &Rule| {
        let mut out = json!({"verbs": r.verbs, "apiGroups": r.api_groups, "resources": r.resources});
        if !r.resource_names.is_empty() {
            out["resourceNames"] = json!(r.resource_names);
        }
        out
    };
    let path = |r: &Rule| json!({"verbs": r.verbs, "nonResourceURLs": r.non_resource_urls});
    let mut status = json!({
        "resourceRules": resources.iter().map(resource).collect::<Vec<_>>(),
        "nonResourceRules": paths.iter().map(path).collect::<Vec<_>>(),
        "incomplete": false,
    });
    // As upstream says it of the first.
    for (theirs, who) in [(node_name(user).is_some(), "node"), (lb::is_load_balancer(user), "load balancer")] {
        if theirs {
            status["incomplete"] = true.into();
            status["evaluationError"] = format!("{who} authorizer does not support user rule resolution").into();
        }
    }
    status
}

fn user_json(user: &UserInfo) -> Value {
    let mut out = json!({"username": user.name});
    if !user.uid.is_empty() {
        out["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        out["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        out["extra"] = json!(user.extra);
    }
    out
}

#[async_trait]
impl VirtualCreate for TokenReviewer {
    async fn create(&self, server: &Arc<crate::Server>, _: &Resolved, object: Value) -> Result<Value, ApiError> {
        let token = object.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
        let asked: Vec<String> =
            object.pointer("/spec/audiences").and_then(|a| Vec::deserialize(a).ok()).unwrap_or_default();
        let audiences = if asked.is_empty() { server.tokens.api_audiences() } else { &asked };
        let status = match server.authenticator.verify(token, audiences) {
            Ok(verified) => json!({
                "authenticated": true,
                "user": user_json(&verified.user),
                "audiences": verified.matching_audiences(audiences),
            }),
            Err(error) => json!({"user": {}, "error": error.to_string()}),
        };
        Ok(with_status(object, status))
    }
}

#[async_trait]
impl VirtualCreate for SelfSubjectReviewer {
    async fn create(&self, _: &Arc<crate::Server>, resolved: &Resolved, object: Value) -> Result<Value, ApiError> {
        Ok(with_status(object, json!({"userInfo": user_json(&resolved.user)})))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::policy;
    use crate::auth::rbac::RBAC_GROUP;
    use crate::auth::testing::{MapReader, user};

    fn authorizer() -> Authorizer {
        let reader = MapReader::new(&[]);
        for object in policy::bootstrap_objects() {
            let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
            reader.put(RBAC_GROUP, &plural, object);
        }
        Authorizer::new(reader)
    }

    fn answer(who: &UserInfo, spec: Value) -> Value {
        AccessSpec::of(&json!({"spec": spec})).unwrap().answer(&authorizer(), who)
    }

    #[test]
    fn access_reviews_answer_for_resources_and_paths() {
        let (admin, alice) = (user("root", &[MASTERS]), user("alice", &[]));
        let pods = json!({"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "web"}});
        assert_eq!(answer(&admin, pods.clone()), json!({"allowed": true}));
        assert_eq!(answer(&alice, pods), json!({"allowed": false}));
        let api = json!({"nonResourceAttributes": {"verb": "get", "path": "/api"}});
        assert_eq!(
            answer(&alice, api),
            json!({"allowed": true, "reason":
                "RBAC: allowed by ClusterRoleBinding \"system:discovery\" of ClusterRole \"system:discovery\" to Group \
                 \"system:authenticated\""})
        );
        assert_eq!(answer(&alice, json!({})), json!({"allowed": false}));
    }

    #[test]
    fn selectors_of_reviews_reach_the_node_authorizer() {
        let node = user("system:node:n1", &["system:nodes"]);
        let ask = |operator: &str, value: &str| {
            let requirement = json!({"key": "spec.nodeName", "operator": operator, "values": [value]});
            answer(
                &node,
                json!({"resourceAttributes": {
                "verb": "list", "resource": "pods", "fieldSelector": {"requirements": [requirement]}}}),
            )["allowed"]
                .clone()
        };
        assert_eq!(ask("In", "n1"), true);
        assert_eq!(ask("In", "n2"), false);
        assert_eq!(ask("NotIn", "n1"), false);
        assert_eq!(ask("In", "n2,spec.nodeName=n1"), false, "values cannot smuggle terms");
    }

    #[test]
    fn a_load_balancer_may_watch_certificates_only() {
        let ask = |verb: &str, value: &str| {
            let requirement = json!({"key": "type", "operator": "In", "values": [value]});
            let resource =
                json!({"verb": verb, "resource": "secrets", "fieldSelector": {"requirements": [requirement]}});
            answer(&user(lb::LB_USER, &[]), json!({"resourceAttributes": resource}))["allowed"].clone()
        };
        assert_eq!((ask("watch", "kubernetes.io/tls"), ask("watch", "Opaque")), (json!(true), json!(false)));
        assert_eq!(ask("get", "kubernetes.io/tls"), false);
    }

    #[test]
    fn rules_reviews_list_everything_once() {
        let status = rules_status(&authorizer(), &user("alice", &[]), "web");
        let resources = status["resourceRules"].as_array().unwrap();
        assert!(resources.iter().any(|r| r["resources"] == json!(["selfsubjectreviews"])));
        assert!(status["nonResourceRules"].as_array().unwrap().iter().any(|r| r["verbs"] == json!(["get"])));
        assert_eq!(status["incomplete"], false);
        let all = rules_status(&authorizer(), &user("root", &[MASTERS]), "web");
        let star = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        assert_eq!(all["resourceRules"].as_array().unwrap().iter().filter(|r| **r == star).count(), 1);
        for more in [user("system:node:n", &["system:nodes"]), user(lb::LB_USER, &[])] {
            assert_eq!(rules_status(&authorizer(), &more, "web")["incomplete"], true);
        }
    }
}
