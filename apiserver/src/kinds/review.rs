//! Reviews: asked by create, answered at once, never stored. The answers are computed in [`crate::auth`].

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview,
    SelfSubjectRulesReview, SubjectAccessReview, SubjectAccessReviewSpec,
};

use super::field::{self, Errors};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

/// Rules of SelfSubjectAccessReviews.
pub struct SelfSubjectAccessReviewRules;

impl Rules for SelfSubjectAccessReviewRules {
    type Object = SelfSubjectAccessReview;

    fn validate(&self, object: &SelfSubjectAccessReview, _: &RuleContext<'_>, errors: &mut Errors) {
        let spec = &object.spec;
        validate_question(spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref(), errors);
    }
}

/// Rules of SubjectAccessReviews.
pub struct SubjectAccessReviewRules;

impl Rules for SubjectAccessReviewRules {
    type Object = SubjectAccessReview;

    fn validate(&self, object: &SubjectAccessReview, _: &RuleContext<'_>, errors: &mut Errors) {
        validate_subject_spec(&object.spec, errors);
    }
}

/// Rules of LocalSubjectAccessReviews.
pub struct LocalSubjectAccessReviewRules;

impl Rules for LocalSubjectAccessReviewRules {
    type Object = LocalSubjectAccessReview;

    fn validate(&self, object: &LocalSubjectAccessReview, cx: &RuleContext<'_>, errors: &mut Errors) {
        validate_subject_spec(&object.spec, errors);
        if let Some(attributes) = &object.spec.resource_attributes {
            let namespace = field::text(&attributes.namespace);
            if namespace != cx.namespace {
                let why = "must match metadata.namespace";
                errors.push(FieldError::invalid("spec.resourceAttributes.namespace", namespace, why));
            }
        }
        if let Some(attributes) = &object.spec.non_resource_attributes {
            let why = "disallowed on this kind of request";
            errors.push(FieldError::invalid("spec.nonResourceAttributes", field::value_of(attributes), why));
        }
    }
}

/// Rules of SelfSubjectRulesReviews.
pub struct SelfSubjectRulesReviewRules;

impl Rules for SelfSubjectRulesReviewRules {
    type Object = SelfSubjectRulesReview;

    fn validate(&self, object: &SelfSubjectRulesReview, _: &RuleContext<'_>, errors: &mut Errors) {
        if field::text(&object.spec.namespace).is_empty() {
            errors.push(FieldError::required("spec.namespace", "no namespace on request"));
        }
    }
}

/// Rules of TokenReviews.
pub struct TokenReviewRules;

impl Rules for TokenReviewRules {
    type Object = TokenReview;

    fn validate(&self, object: &TokenReview, _: &RuleContext<'_>, errors: &mut Errors) {
        if field::text(&object.spec.token).is_empty() {
            errors.push(FieldError::required("spec.token", "token is required for TokenReview in authentication"));
        }
    }
}

/// Rules of SelfSubjectReviews: there is nothing to ask.
pub struct SelfSubjectReviewRules;

impl Rules for SelfSubjectReviewRules {
    type Object = SelfSubjectReview;
}

fn validate_subject_spec(spec: &SubjectAccessReviewSpec, errors: &mut Errors) {
    validate_question(spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref(), errors);
    if field::text(&spec.user).is_empty() && field::list(&spec.groups).is_empty() {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
}

fn validate_question(
    resource: Option<&ResourceAttributes>,
    non_resource: Option<&NonResourceAttributes>,
    errors: &mut Errors,
) {
    match (resource, non_resource) {
        (Some(_), Some(other)) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            field::value_of(other),
            "cannot be specified in combination with resourceAttributes",
        )),
        (None, None) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            serde_json::Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::field::test::*;
    use super::*;

    #[test]
    fn access_reviews_ask_one_thing() {
        assert!(
            create(SelfSubjectAccessReviewRules, "{spec: {resourceAttributes: {verb: get, resource: pods}}}").is_ok()
        );
        assert!(create(SubjectAccessReviewRules, "{spec: {user: u, nonResourceAttributes: {path: /x}}}").is_ok());
        let none = "spec.resourceAttributes: Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified";
        refused(SelfSubjectAccessReviewRules, "{spec: {}}", &[none]);
        let user = "spec.user: Invalid value: \"\": at least one of user or group must be specified";
        refused(SubjectAccessReviewRules, "{spec: {}}", &[none, user]);
        refused(
            SelfSubjectAccessReviewRules,
            "{spec: {resourceAttributes: {}, nonResourceAttributes: {path: /x}}}",
            &[
                "spec.nonResourceAttributes: Invalid value: {\"path\":\"/x\"}: cannot be specified in combination with resourceAttributes",
            ],
        );
    }

    #[test]
    fn local_ones_stay_in_their_namespace() {
        assert!(
            create(LocalSubjectAccessReviewRules, "{spec: {user: u, resourceAttributes: {namespace: default}}}")
                .is_ok()
        );
        refused(
            LocalSubjectAccessReviewRules,
            "{spec: {user: u, resourceAttributes: {namespace: other}}}",
            &["spec.resourceAttributes.namespace: Invalid value: \"other\": must match metadata.namespace"],
        );
        refused(
            LocalSubjectAccessReviewRules,
            "{spec: {user: u, nonResourceAttributes: {path: /x}}}",
            &["spec.nonResourceAttributes: Invalid value: {\"path\":\"/x\"}: disallowed on this kind of request"],
        );
    }

    #[test]
    fn questions_need_their_subject() {
        assert!(create(SelfSubjectReviewRules, "{}").is_ok());
        assert!(create(SelfSubjectRulesReviewRules, "{spec: {namespace: a}}").is_ok());
        refused(
            SelfSubjectRulesReviewRules,
            "{spec: {}}",
            &["spec.namespace: Required value: no namespace on request"],
        );
        assert!(create(TokenReviewRules, "{spec: {token: a}}").is_ok());
        let why = "spec.token: Required value: token is required for TokenReview in authentication";
        refused(TokenReviewRules, "{spec: {}}", &[why]);
        assert!(create(TokenReviewRules, "{spec: {token: 1}}").is_err());
    }
}
