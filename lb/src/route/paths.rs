//! The rules of one host by path.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Head, Rule, whole};
use crate::snapshot::routes::PathMatch;

/// Rules by path; within an entry in order of precedence.
#[derive(Debug, Default)]
pub(super) struct Paths {
    exact: ByPath,
    regex: Vec<(regex::Regex, Arc<Rule>)>,
    any_service: Vec<(regex::Regex, Arc<Rule>)>,
    /// By prefix without trailing slash; the root's is empty.
    prefix: ByPath,
}

type ByPath = HashMap<Arc<str>, Box<[Arc<Rule>]>>;

impl Paths {
    /// `rules` in order: of equally specific ones the first counts.
    pub fn new(rules: impl Iterator<Item = Arc<Rule>>) -> Self {
        let mut paths = Self::default();
        let (mut exact, mut prefix) = (HashMap::new(), HashMap::new());
        for rule in rules {
            match &rule.path {
                PathMatch::Exact(path) => file(&mut exact, path, rule.clone()),
                PathMatch::Prefix(path) => {
                    let bare = path.trim_end_matches('/');
                    if bare.len() == path.len() {
                        file(&mut prefix, path, rule.clone());
                    } else {
                        file(&mut prefix, &bare.into(), rule.clone());
                    }
                }
                PathMatch::Regex(pattern) => {
                    if let Some(regex) = whole(pattern) {
                        paths.regex.push((regex, rule));
                    }
                }
                PathMatch::AnyService(pattern) => {
                    if let Some(regex) = whole(pattern) {
                        paths.any_service.push((regex, rule));
                    }
                }
            }
        }
        (paths.exact, paths.prefix) = (sorted(exact), sorted(prefix));
        for rules in [&mut paths.regex, &mut paths.any_service] {
            rules.sort_by_key(|(_, rule)| std::cmp::Reverse((rule.path.text().len(), rule.specificity())));
        }
        paths
    }

    pub fn find<'t>(&'t self, head: &impl Head) -> Option<&'t Arc<Rule>> {
        let path = head.path();
        let accepted = |rules: &'_ [Arc<Rule>]| rules.iter().position(|rule| rule.accepts(head));
        if let Some(rules) = self.exact.get(path)
            && let Some(at) = accepted(rules)
        {
            return rules.get(at);
        }
        let matching = |rules: &'t [(regex::Regex, Arc<Rule>)]| {
            let mut matching = rules.iter().filter(|(regex, rule)| regex.is_match(path) && rule.accepts(head));
            matching.next().map(|(_, rule)| rule)
        };
        if let Some(rule) = matching(&self.regex) {
            return Some(rule);
        }
        // The whole path, then one element less each time; the root is empty.
        let mut prefix = path.strip_suffix('/').unwrap_or(path);
        loop {
            if prefix.is_empty()
                && let Some(rule) = matching(&self.any_service)
            {
                return Some(rule);
            }
            if let Some(rules) = self.prefix.get(prefix)
                && let Some(at) = accepted(rules)
            {
                return rules.get(at);
            }
            prefix = &prefix[..prefix.rfind('/')?];
        }
    }
}

fn file(paths: &mut HashMap<Arc<str>, Vec<Arc<Rule>>>, path: &Arc<str>, rule: Arc<Rule>) {
    paths.entry(path.clone()).or_default().push(rule);
}

/// In order of precedence, without room to spare.
fn sorted(paths: HashMap<Arc<str>, Vec<Arc<Rule>>>) -> ByPath {
    let sorted = |(path, mut rules): (Arc<str>, Vec<Arc<Rule>>)| {
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.specificity()));
        (path, rules.into())
    };
    paths.into_iter().map(sorted).collect()
}
