//! Nobody can grant what they do not have, unless they may `escalate` (roles) or `bind` (bindings).
//!
//! Follows `pkg/registry/rbac/*/policybased` and `ConfirmNoEscalation`. Rules are broken down to single verbs on single
//! resources for the comparison; that product is bounded, since a role of a few kilobytes can have millions.

use std::collections::{BTreeMap, BTreeSet};

use super::rule::{Rule, quoted_list};
use super::{Attributes, Authorizer, MASTERS, RBAC_GROUP};
use crate::error::{ApiError, GroupResource};
use crate::user::UserInfo;

/// Single permissions that one role may be broken down to. Upstream's largest default role has about 400.
const MAX_PERMISSIONS: usize = 20_000;
/// Missing permissions that the refusal lists.
const MAX_LISTED: usize = 100;

/// Why a grant is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Upstream's text.
    #[error("{0}")]
    NotHeld(String),
    /// More than can be compared.
    #[error("the role has more than {MAX_PERMISSIONS} single permissions beyond those held: split it up")]
    TooMany,
}

/// Whether escalation checks do not apply to `user` at all.
pub fn exempt(user: &UserInfo) -> bool {
    user.in_group(MASTERS)
}

/// Everything: what setting an `aggregationRule` needs, since it can gather anything.
pub fn full_authority() -> [Rule; 2] {
    let star = || vec!["*".to_owned()];
    [
        Rule { verbs: star(), api_groups: star(), resources: star(), ..Rule::default() },
        Rule { verbs: star(), non_resource_urls: star(), ..Rule::default() },
    ]
}

/// Whether `user` may `escalate` this role.
pub fn may_escalate(authorizer: &Authorizer, user: &UserInfo, namespace: &str, plural: &str, name: &str) -> bool {
    let asked =
        Attributes { verb: "escalate", group: RBAC_GROUP, resource: plural, namespace, name, ..Attributes::of(user) };
    authorizer.authorize(&asked).allowed()
}

/// Whether `user` may `bind` this role in `namespace` (empty for a cluster role binding).
pub fn may_bind(authorizer: &Authorizer, user: &UserInfo, namespace: &str, role_kind: &str, role_name: &str) -> bool {
    let resource = match role_kind {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        _ => return false,
    };
    let asked =
        Attributes { verb: "bind", group: RBAC_GROUP, resource, namespace, name: role_name, ..Attributes::of(user) };
    authorizer.authorize(&asked).allowed()
}

/// Refuses unless `user` has all of `wanted` in `namespace`.
pub fn confirm(authorizer: &Authorizer, user: &UserInfo, namespace: &str, wanted: &[Rule]) -> Result<(), Refusal> {
    let missing = missing(&authorizer.rules_for(user, namespace), wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let described: BTreeSet<String> = compact(missing).iter().map(ToString::to_string).collect();
    let listed: Vec<String> = described.into_iter().take(MAX_LISTED).collect();
    Err(Refusal::NotHeld(format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted_list(&user.groups),
        listed.join("\n")
    )))
}

/// The 404 for a binding whose role does not exist, as upstream's rule resolver answers.
pub fn no_such_role(kind: &str, name: &str) -> ApiError {
    let resource = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
    ApiError::not_found(&GroupResource { group: RBAC_GROUP.into(), resource: resource.into() }, name)
}

/// The single permissions of `wanted` that no rule of `held` covers.
fn missing(held: &[Rule], wanted: &[Rule]) -> Result<Vec<Rule>, Refusal> {
    let mut missing = Vec::new();
    let mut budget = MAX_PERMISSIONS;
    for rule in wanted {
        // Most rules are covered as a whole: nothing to break down.
        if held.iter().any(|h| h.covers(rule)) {
            continue;
        }
        budget = budget.checked_sub(permissions(rule)).ok_or(Refusal::TooMany)?;
        for single in break_down(rule) {
            if !held.iter().any(|h| h.covers(&single)) {
                missing.push(single);
            }
        }
    }
    Ok(missing)
}

/// What a default role with the rules `held` lacks of `wanted`, as rules; rules of more permissions than can be compared as they are.
pub fn lacking(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    match missing(held, wanted) {
        Ok(missing) => compact(missing),
        Err(_) => wanted.iter().filter(|rule| !held.contains(rule)).cloned().collect(),
    }
}

fn permissions(rule: &Rule) -> usize {
    let resources = rule.api_groups.len().saturating_mul(rule.resources.len());
    let named = resources.saturating_mul(rule.resource_names.len().max(1));
    named.saturating_add(rule.non_resource_urls.len()).saturating_mul(rule.verbs.len())
}

fn break_down(rule: &Rule) -> impl Iterator<Item = Rule> + '_ {
    let one = |s: &String| vec![s.clone()];
    let urls = rule.non_resource_urls.iter().flat_map(move |url| {
        rule.verbs.iter().map(move |verb| Rule { non_resource_urls: one(url), verbs: one(verb), ..Rule::default() })
    });
    let names: Vec<Vec<String>> =
        if rule.resource_names.is_empty() { vec![Vec::new()] } else { rule.resource_names.iter().map(one).collect() };
    let resources = rule.api_groups.iter().flat_map(move |group| {
        let names = names.clone();
        rule.resources.iter().flat_map(move |resource| {
            let names = names.clone();
            rule.verbs.iter().flat_map(move |verb| {
                names.clone().into_iter().map(move |resource_names| Rule {
                    api_groups: one(group),
                    resources: one(resource),
                    verbs: one(verb),
                    resource_names,
                    non_resource_urls: Vec::new(),
                })
            })
        })
    });
    urls.chain(resources)
}

/// Joins the verbs of what is otherwise the same permission, for reading.
fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut by_target: BTreeMap<Rule, Vec<String>> = BTreeMap::new();
    for mut rule in rules {
        let verbs = std::mem::take(&mut rule.verbs);
        let all = by_target.entry(rule).or_default();
        for verb in verbs {
            if !all.contains(&verb) {
                all.push(verb);
            }
        }
    }
    by_target.into_iter().map(|(rule, verbs)| Rule { verbs, ..rule }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rule::tests::{rule, urls};
    use super::*;

    fn check(held: &[Rule], wanted: &[Rule], expected: &[&str]) {
        let missing = compact(missing(held, wanted).unwrap());
        assert_eq!(missing.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_missing_is_found_across_rules() {
        let all = full_authority();
        let get_list = rule(&[""], &["pods", "secrets"], &[], &["get", "list"]);
        check(&all, &[get_list.clone(), urls(&["/metrics"], &["get"])], &[]);
        check(&all[..1], &[urls(&["/metrics"], &["get"])], &[r#"{NonResourceURLs:["/metrics"], Verbs:["get"]}"#]);
        check(
            &[rule(&[""], &["pods"], &[], &["get"]), rule(&[""], &["pods"], &[], &["list"])],
            &[rule(&[""], &["pods"], &[], &["get", "list"])],
            &[],
        );
        check(
            &[rule(&[""], &["pods"], &[], &["*"])],
            std::slice::from_ref(&get_list),
            &[r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}"#],
        );
        check(
            &[rule(&[""], &["secrets"], &["a"], &["get"])],
            &[rule(&[""], &["secrets"], &["a", "b"], &["get"])],
            &[r#"{APIGroups:[""], Resources:["secrets"], ResourceNames:["b"], Verbs:["get"]}"#],
        );
        check(
            &[rule(&[""], &["pods"], &[], &["get"])],
            &[rule(&["*"], &["*"], &[], &["*"])],
            &[r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#],
        );
        check(&[], &[], &[]);
    }

    #[test]
    fn a_huge_role_is_refused_quickly() {
        let many: Vec<String> = (0..3000).map(|i| format!("r{i}")).collect();
        let huge = Rule {
            api_groups: many.clone(),
            resources: many.clone(),
            resource_names: many.clone(),
            verbs: many,
            ..Rule::default()
        };
        assert_eq!(missing(&[], std::slice::from_ref(&huge)), Err(Refusal::TooMany));
        assert_eq!(missing(&full_authority(), &[huge]), Ok(Vec::new()));
    }
}
