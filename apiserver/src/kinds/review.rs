//! Reviews.

use crate::registry::Rules;
use k8s_openapi::api::authorization::v1::{LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview};

/// Rules of SelfSubjectAccessReviews.
pub struct SelfSubjectAccessReviewRules;

impl Rules for SelfSubjectAccessReviewRules {
    type Object = SelfSubjectAccessReview;
}
/// Rules of SubjectAccessReviews.
pub struct SubjectAccessReviewRules;

impl Rules for SubjectAccessReviewRules {
    type Object = SubjectAccessReview;
}
/// Rules of LocalSubjectAccessReviews.
pub struct LocalSubjectAccessReviewRules;

impl Rules for LocalSubjectAccessReviewRules {
    type Object = LocalSubjectAccessReview;
}
/// Rules of SelfSubjectRulesReviews.
pub struct SelfSubjectRulesReviewRules;

impl Rules for SelfSubjectRulesReviewRules {
    type Object = SelfSubjectRulesReview;
}
/// Rules of TokenReviews.
pub struct TokenReviewRules;

impl Rules for TokenReviewRules {
    type Object = TokenReview;
}
/// Rules of SelfSubjectReviews.
pub struct SelfSubjectReviewRules;

impl Rules for SelfSubjectReviewRules {
    type Object = SelfSubjectReview;
}
