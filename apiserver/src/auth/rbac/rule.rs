//! One RBAC rule: what it matches and what it covers. Pure.
//!
//! Follows `k8s.io/component-helpers/auth/rbac/validation` and `plugin/pkg/auth/authorizer/rbac` in every corner:
//! an empty list matches nothing, `*` matches all, `*/scale` matches a subresource of everything, names restrict.

use k8s_openapi::api::rbac::v1::PolicyRule;

use super::Attributes;

/// `rbac.authorization.k8s.io/v1` PolicyRule without its options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// API groups; `*` is all.
    pub api_groups: Vec<String>,
    /// Plurals, `plural/subresource`, `*/subresource` or `*`.
    pub resources: Vec<String>,
    /// Names; none is all.
    pub resource_names: Vec<String>,
    /// Paths, with a trailing `*` as wildcard.
    pub non_resource_urls: Vec<String>,
    /// Verbs; `*` is all.
    pub verbs: Vec<String>,
}

impl From<PolicyRule> for Rule {
    fn from(rule: PolicyRule) -> Self {
        Self {
            api_groups: rule.api_groups.unwrap_or_default(),
            resources: rule.resources.unwrap_or_default(),
            resource_names: rule.resource_names.unwrap_or_default(),
            non_resource_urls: rule.non_resource_urls.unwrap_or_default(),
            verbs: rule.verbs,
        }
    }
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|i| i == item)
}

fn has_or_star(list: &[String], item: &str) -> bool {
    list.iter().any(|i| i == "*" || i == item)
}

/// Whether `owner` (a path, maybe with a trailing `*`) covers `path`.
fn url_covers(owner: &str, path: &str) -> bool {
    owner == path || owner.ends_with('*') && path.starts_with(owner.trim_end_matches('*'))
}

impl Rule {
    /// Whether the rule allows what is asked.
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        if !has_or_star(&self.verbs, a.verb) {
            return false;
        }
        if !a.path.is_empty() {
            return self.non_resource_urls.iter().any(|url| url_covers(url, a.path));
        }
        has_or_star(&self.api_groups, a.group)
            && self.resources.iter().any(|r| resource_matches(r, a.resource, a.subresource))
            && (self.resource_names.is_empty() || has(&self.resource_names, a.name))
    }

    /// Whether whoever has this rule has `other` too. `other` is broken down (one item per list) or matched as a whole.
    pub fn covers(&self, other: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| has(mine, "*") || theirs.iter().all(|t| has(mine, t));
        all(&self.verbs, &other.verbs)
            && all(&self.api_groups, &other.api_groups)
            && (has(&self.resources, "*") || other.resources.iter().all(|r| self.covers_resource(r)))
            && other.non_resource_urls.iter().all(|u| self.non_resource_urls.iter().any(|mine| url_covers(mine, u)))
            && match other.resource_names.as_slice() {
                [] => self.resource_names.is_empty(),
                names => self.resource_names.is_empty() || names.iter().all(|n| has(&self.resource_names, n)),
            }
    }

    fn covers_resource(&self, resource: &str) -> bool {
        has(&self.resources, resource)
            || resource.split_once('/').is_some_and(|(_, sub)| {
                self.resources.iter().any(|mine| mine.strip_prefix("*/").is_some_and(|mine_sub| mine_sub == sub))
            })
    }
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    // A subresource may contain slashes of its own (`userextras/a/b`): only the first one separates.
    rule.split_once('/').is_some_and(|(parent, sub)| sub == subresource && (parent == "*" || parent == resource))
}

/// `["a" "b"]`, as Go's `%q` prints a list.
pub(crate) fn quoted_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|i| format!("{i:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// As upstream prints it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted_list(list)))
        .collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::user::UserInfo;

    pub(crate) fn rule(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            api_groups: owned(groups),
            resources: owned(resources),
            resource_names: owned(names),
            non_resource_urls: Vec::new(),
            verbs: owned(verbs),
        }
    }

    pub(crate) fn urls(urls: &[&str], verbs: &[&str]) -> Rule {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rule { non_resource_urls: owned(urls), verbs: owned(verbs), ..Rule::default() }
    }

    /// `verb group/resource/subresource:name` or `verb /path`.
    fn allows(rule: &Rule, text: &str) -> bool {
        let user = UserInfo::default();
        let (verb, what) = text.split_once(' ').unwrap();
        let mut a = Attributes { verb, ..Attributes::of(&user) };
        if what.starts_with("//") {
            a.path = &what[1..];
        } else {
            let (what, name) = what.split_once(':').unwrap_or((what, ""));
            let mut parts = what.splitn(3, '/');
            a.group = parts.next().unwrap();
            a.resource = parts.next().unwrap();
            a.subresource = parts.next().unwrap_or_default();
            a.name = name;
        }
        rule.allows(&a)
    }

    #[test]
    fn rules_match_as_upstreams() {
        let check = |rule: &Rule, yes: &[&str], no: &[&str]| {
            for text in yes {
                assert!(allows(rule, text), "{rule} should allow {text}");
            }
            for text in no {
                assert!(!allows(rule, text), "{rule} should not allow {text}");
            }
        };
        check(
            &rule(&[""], &["pods", "pods/log"], &[], &["get", "list"]),
            &["get /pods:web", "list /pods", "get /pods/log:web"],
            &["watch /pods", "get /pods/exec:web", "get apps/pods:web", "get /secrets", "get //pods"],
        );
        check(
            &rule(&["*"], &["*"], &[], &["*"]),
            &["get /pods", "delete apps/deployments/scale:x", "impersonate /users:bob"],
            &["get //metrics"],
        );
        check(
            &rule(&["apps"], &["*/scale"], &[], &["update"]),
            &["update apps/deployments/scale:x", "update apps/replicasets/scale"],
            &["update apps/deployments", "update apps/deployments/status", "update /scale"],
        );
        check(
            &rule(&[""], &["configmaps"], &["one"], &["get", "create", "list"]),
            &["get /configmaps:one", "list /configmaps:one"],
            &["get /configmaps:two", "list /configmaps", "create /configmaps"],
        );
        check(&rule(&[], &["pods"], &[], &["get"]), &[], &["get /pods"]);
        check(&rule(&[""], &[], &[], &["get"]), &[], &["get /pods"]);
        check(&rule(&[""], &["pods"], &[], &[]), &[], &["get /pods"]);
        check(&rule(&[""], &["pods/*"], &[], &["get"]), &[], &["get /pods/log", "get /pods"]);
        check(
            &urls(&["/api/*", "/metrics"], &["get"]),
            &["get //api/v1", "get //api/", "get //metrics"],
            &["get //api", "get //metrics/slis", "post //metrics", "get /pods"],
        );
        check(&urls(&["*"], &["*"]), &["get //anything", "post //"], &["get /pods"]);
    }

    #[test]
    fn covering_is_never_wider_than_matching() {
        let check =
            |mine: &Rule, other: &Rule, expected: bool| assert_eq!(mine.covers(other), expected, "{mine} / {other}");
        let get_pods = rule(&[""], &["pods"], &[], &["get"]);
        check(&get_pods, &get_pods, true);
        check(&rule(&["*"], &["*"], &[], &["*"]), &get_pods, true);
        check(&get_pods, &rule(&[""], &["pods"], &["web"], &["get"]), true);
        check(&rule(&[""], &["pods"], &["web"], &["get"]), &get_pods, false);
        check(&rule(&[""], &["pods"], &["web"], &["get"]), &rule(&[""], &["pods"], &["db"], &["get"]), false);
        check(&get_pods, &rule(&["*"], &["pods"], &[], &["get"]), false);
        check(&get_pods, &rule(&[""], &["pods/log"], &[], &["get"]), false);
        check(&rule(&[""], &["*/log"], &[], &["get"]), &rule(&[""], &["pods/log"], &[], &["get"]), true);
        check(&rule(&[""], &["*/log"], &[], &["get"]), &rule(&[""], &["pods/exec"], &[], &["get"]), false);
        check(&rule(&[""], &["pods", "secrets"], &[], &["get"]), &rule(&[""], &["*"], &[], &["get"]), false);
        check(&urls(&["/api/*"], &["get"]), &urls(&["/api/v1"], &["get"]), true);
        check(&urls(&["/api/*"], &["get"]), &urls(&["/api*"], &["get"]), false);
        check(&urls(&["*"], &["*"]), &urls(&["/x*"], &["post"]), true);
        check(&rule(&["*"], &["*"], &[], &["*"]), &urls(&["/metrics"], &["get"]), false);
    }

    #[test]
    fn rules_print_as_upstreams() {
        let rule = rule(&[""], &["pods"], &["web"], &["get", "list"]);
        assert_eq!(
            rule.to_string(),
            r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["web"], Verbs:["get" "list"]}"#
        );
    }
}
