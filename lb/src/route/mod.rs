//! Which rule a request matches: [`HttpPlan`] compiled for looking up, immutable, shared by all threads.
//!
//! A lookup costs a hash of the host (and one per label with wildcards) and one per element of the path, however many routes there
//! are. Nothing here does I/O or counts.

mod paths;

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::backend::{Backend, BackendCell};
use crate::balance::Control;
use crate::plugin::Binding;
use crate::policy::RequestPolicy;
use crate::snapshot::routes::{
    BackendRef, Challenges, Filter, HostPattern, HostsPlan, HttpPlan, PathMatch, RuleId, RulePlan, ValueMatch,
    WeightedBackend,
};
use crate::snapshot::{AppProtocol, RouteKind};
use crate::stats::RouteStats;
use paths::Paths;

/// What matching may look at. Borrowed from a request's head, whatever its protocol.
pub(crate) trait Head {
    /// Method, upper case.
    fn method(&self) -> &str;
    /// `Host` or `:authority` in lower case, without port; empty if absent.
    fn host(&self) -> &str;
    /// Path without query, as received.
    fn path(&self) -> &str;
    /// Query without `?`.
    fn query(&self) -> Option<&str>;
    /// Value of a header by its lower-case name; several are [`joined`].
    fn header(&self, name: &str) -> Option<Cow<'_, str>>;
    /// The client's address (after PROXY protocol).
    fn client(&self) -> IpAddr;
}

/// The value of a field (its name in lower case) that may have been sent more than once: joined by commas (RFC 9110 §5.3), cookies as
/// clients join them (RFC 6265 §5.4).
pub(crate) fn joined<'a>(name: &str, mut values: impl Iterator<Item = Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(first) };
    let separator = if name == "cookie" { "; " } else { ", " };
    let mut joined = first.into_owned();
    for value in std::iter::once(second).chain(values) {
        joined.push_str(separator);
        joined.push_str(&value);
    }
    Some(Cow::Owned(joined))
}

/// A rule ready to be used.
#[derive(Debug)]
pub(crate) struct Rule {
    /// What it was made of; absent for a Service's own port.
    plan: Option<Arc<RulePlan>>,
    pub id: RuleId,
    /// What matched, for prefix rewrites and explanations.
    pub path: PathMatch,
    pub filters: Box<[Filter]>,
    pub backends: Box<[Weighted]>,
    /// Sum of weights; 0: nobody to send to.
    pub total_weight: u32,
    pub policy: Arc<RequestPolicy>,
    pub stats: Arc<RouteStats>,
    /// What the policy counts.
    pub control: Control,
    /// Who gets copies, by the rule's filters.
    pub mirrors: Box<[Mirror]>,
    /// Who chooses endpoints, if the route or its Gateway has a plugin.
    pub plugin: Option<Arc<Binding>>,
    /// Endpoints speak HTTP/2 whatever their port says: those of a GRPCRoute.
    http2: bool,
    conditions: Conditions,
}

/// A receiver of copies.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    /// Of copies: to one Service port, under no policy, with counters of its own.
    pub rule: Arc<Rule>,
    /// Share of requests: `numerator` of `denominator` (not 0).
    numerator: u32,
    denominator: u32,
}

impl Mirror {
    fn of(id: &RuleId, filters: &[Filter], resolve: &mut impl Resolve) -> Box<[Self]> {
        let http2 = is_grpc(id);
        let mirrors = filters.iter().filter_map(|filter| match filter {
            Filter::Mirror { backend, numerator, denominator } => {
                let id = RuleId { kind: "Mirror", ..id.clone() };
                let (cell, stats) = (resolve.cell(backend)?, resolve.stats(&id));
                let rule = Arc::new(Rule { http2, ..Rule::of_service(id, cell, Arc::default(), stats) });
                Some(Self { rule, numerator: *numerator, denominator: (*denominator).max(1) })
            }
            _ => None,
        });
        mirrors.collect()
    }

    /// Whether this request is copied; `random` is any number.
    pub fn takes(&self, random: u32) -> bool {
        random % self.denominator < self.numerator
    }
}

/// A share of a rule's requests.
#[derive(Debug)]
pub(crate) struct Weighted {
    /// `None`: an invalid reference, answered with 500.
    pub cell: Option<Arc<BackendCell>>,
    pub weight: u32,
    pub filters: Box<[Filter]>,
    /// Who gets copies, by these filters.
    pub mirrors: Box<[Mirror]>,
}

impl Weighted {
    /// From the plan of the rule or listener `id`.
    pub fn compile(id: &RuleId, plan: &WeightedBackend, resolve: &mut impl Resolve) -> Self {
        Self {
            cell: plan.backend.as_ref().and_then(|backend| resolve.cell(backend)),
            weight: plan.weight,
            filters: plan.filters.clone().into(),
            mirrors: Mirror::of(id, &plan.filters, resolve),
        }
    }

    /// All of a Service port.
    pub fn all_of(cell: Arc<BackendCell>) -> Self {
        Self { cell: Some(cell), weight: 1, filters: Box::default(), mirrors: Box::default() }
    }
}

/// One of `shares` by weight; `random` is any number.
pub(crate) fn choose_share(shares: &[Weighted], total_weight: u32, random: u32) -> Option<&Weighted> {
    shares.get(choose_index(shares, total_weight, || random)?)
}

fn choose_index(shares: &[Weighted], total_weight: u32, random: impl FnOnce() -> u32) -> Option<usize> {
    if let [only] = shares {
        return (only.weight > 0).then_some(0);
    }
    let mut at = random().checked_rem(total_weight)?;
    shares.iter().position(|share| {
        let here = at < share.weight;
        at = at.saturating_sub(share.weight);
        here
    })
}

#[derive(Debug, Default)]
struct Conditions {
    method: Option<Arc<str>>,
    headers: Box<[(Arc<str>, Value)]>,
    query: Box<[(Arc<str>, Value)]>,
}

#[derive(Debug)]
enum Value {
    Exact(Arc<str>),
    Regex(regex::Regex),
}

/// Where a rule finds what outlives it.
pub(crate) trait Resolve {
    /// The cell of a Service port for routed traffic.
    fn cell(&mut self, backend: &BackendRef) -> Option<Arc<BackendCell>>;
    /// Counters of a route.
    fn stats(&mut self, id: &RuleId) -> Arc<RouteStats>;
    /// What the policy of a route counts.
    fn control(&mut self, id: &RuleId, policy: &RequestPolicy) -> Control {
        let _ = id;
        Control::alone(policy)
    }
    /// Who chooses endpoints for a route. Asked before [`Resolve::stats`], which makes the route known.
    fn plugin(&mut self, id: &RuleId, policy: &RequestPolicy) -> Option<Arc<Binding>> {
        let _ = (id, policy);
        None
    }
    /// A rule ready to be used; one that is known already may be shared.
    fn rule(&mut self, plan: &Arc<RulePlan>) -> Arc<Rule>
    where
        Self: Sized,
    {
        Arc::new(Rule::new(plan, self))
    }
}

/// The lookup structure.
#[derive(Debug, Default)]
pub(crate) struct HttpTable {
    listeners: ByHost<ByHost<Paths>>,
    /// All requests match this one: a Service's own port.
    only: Option<Arc<Rule>>,
    /// Of the listener; 0 for a Service's own port.
    port: u16,
    challenges: Arc<Challenges>,
}

/// Where the answer to an ACME challenge is looked for (RFC 8555 §8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// Something per host pattern.
#[derive(Debug)]
pub(crate) struct ByHost<T> {
    exact: HashMap<Box<str>, T>,
    wildcard: HashMap<Box<str>, T>,
    any: Option<T>,
}

impl<T> Default for ByHost<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new(), any: None }
    }
}

impl<T> ByHost<T> {
    pub fn insert(&mut self, host: &HostPattern, value: T) {
        match host {
            HostPattern::Exact(name) => drop(self.exact.insert((&**name).into(), value)),
            HostPattern::Wildcard(suffix) => drop(self.wildcard.insert((&**suffix).into(), value)),
            HostPattern::Any => self.any = Some(value),
        }
    }

    /// What `host` may use, most specific first.
    pub fn candidates<'t: 'h, 'h>(&'t self, host: &'h str) -> impl Iterator<Item = &'t T> + use<'t, 'h, T> {
        let suffixes = std::iter::successors(Some(host), |rest| rest.split_once('.').map(|(_, rest)| rest)).skip(1);
        let wildcard = suffixes.filter(|_| !self.wildcard.is_empty()).filter_map(|suffix| self.wildcard.get(suffix));
        self.exact.get(host).into_iter().chain(wildcard).chain(&self.any)
    }
}

impl HttpTable {
    /// From a plan.
    pub fn compile(plan: &HttpPlan, port: u16, resolve: &mut impl Resolve) -> Self {
        let mut table = Self { port, challenges: plan.challenges.clone(), ..Self::default() };
        for (listener, hosts) in &plan.listeners {
            table.listeners.insert(listener, hosts_table(hosts, resolve));
        }
        table
    }

    /// Of one rule for all requests.
    pub fn only(rule: Arc<Rule>) -> Self {
        Self { only: Some(rule), ..Self::default() }
    }

    /// The answer to the ACME challenge that a path asks for.
    pub fn challenge(&self, path: &str) -> Option<&Arc<str>> {
        if self.challenges.is_empty() {
            return None;
        }
        self.challenges.get(path.strip_prefix(CHALLENGES)?)
    }

    /// The rule that all requests match: the table is a Service's own port.
    pub fn single(&self) -> Option<&Arc<Rule>> {
        self.only.as_ref()
    }

    /// The listener's port, for redirects; 0 for a Service's own port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The rule for a request.
    pub fn find<'t>(&'t self, head: &impl Head) -> Option<&'t Arc<Rule>> {
        if self.only.is_some() {
            return self.only.as_ref();
        }
        // Only the most specific listener counts.
        let hosts = self.listeners.candidates(head.host()).next()?;
        hosts.candidates(head.host()).find_map(|paths| paths.find(head))
    }
}

fn is_grpc(id: &RuleId) -> bool {
    id.kind == RouteKind::GRPCRoute.as_str()
}

fn hosts_table(plan: &HostsPlan, resolve: &mut impl Resolve) -> ByHost<Paths> {
    let mut hosts = ByHost::default();
    for (host, rules) in &plan.hosts {
        hosts.insert(host, Paths::new(rules.iter().map(|plan| resolve.rule(plan))));
    }
    hosts
}

impl Rule {
    pub fn new(plan: &Arc<RulePlan>, resolve: &mut impl Resolve) -> Self {
        let values = |fields: &[crate::snapshot::routes::FieldMatch]| {
            fields.iter().filter_map(|field| Some((field.name.clone(), Value::new(&field.value)?))).collect()
        };
        let backends: Box<[Weighted]> =
            plan.backends.iter().map(|share| Weighted::compile(&plan.id, share, resolve)).collect();
        Self {
            plan: Some(plan.clone()),
            http2: is_grpc(&plan.id),
            plugin: resolve.plugin(&plan.id, &plan.policy),
            id: plan.id.clone(),
            path: plan.path.clone(),
            filters: plan.filters.clone().into(),
            total_weight: backends.iter().map(|share| share.weight).fold(0, u32::saturating_add),
            backends,
            policy: plan.policy.clone(),
            stats: resolve.stats(&plan.id),
            control: resolve.control(&plan.id, &plan.policy),
            mirrors: Mirror::of(&plan.id, &plan.filters, resolve),
            conditions: Conditions {
                method: plan.method.clone(),
                headers: values(&plan.headers),
                query: values(&plan.query),
            },
        }
    }

    /// The one rule of a Service's own port.
    pub fn of_service(id: RuleId, cell: Arc<BackendCell>, policy: Arc<RequestPolicy>, stats: Arc<RouteStats>) -> Self {
        let share = Weighted::all_of(cell);
        Self {
            plan: None,
            id,
            path: PathMatch::Prefix("/".into()),
            filters: Box::default(),
            backends: Box::new([share]),
            total_weight: 1,
            control: Control::alone(&policy),
            policy,
            stats,
            mirrors: Box::default(),
            plugin: None,
            http2: false,
            conditions: Conditions::default(),
        }
    }

    /// Whether it was made of `plan`.
    pub fn is_of(&self, plan: &Arc<RulePlan>) -> bool {
        self.plan.as_ref().is_some_and(|own| Arc::ptr_eq(own, plan))
    }

    /// Whether HTTP/2 is spoken to the endpoints of one of its backends.
    pub fn speaks_http2(&self, backend: &Backend) -> bool {
        self.http2 || backend.app == AppProtocol::H2c
    }

    /// The index of the share for a request; `random` gives any number.
    pub fn choose(&self, random: impl FnOnce() -> u32) -> Option<usize> {
        choose_index(&self.backends, self.total_weight, random)
    }

    /// Whether method, headers and query match.
    fn accepts(&self, head: &impl Head) -> bool {
        let Conditions { method, headers, query } = &self.conditions;
        method.as_ref().is_none_or(|method| **method == *head.method())
            && headers.iter().all(|(name, value)| head.header(name).is_some_and(|got| value.matches(&got)))
            && query.iter().all(|(name, value)| {
                // The first parameter of the name counts (as the Gateway API recommends).
                let mut found = url::form_urlencoded::parse(head.query().unwrap_or_default().as_bytes());
                found.find(|(key, _)| **key == **name).is_some_and(|(_, got)| value.matches(&got))
            })
    }

    fn method(&self) -> Option<&str> {
        self.conditions.method.as_deref()
    }

    /// Number of headers and query parameters that are matched, for precedence.
    fn specificity(&self) -> (bool, usize, usize) {
        (self.method().is_some(), self.conditions.headers.len(), self.conditions.query.len())
    }
}

impl Value {
    fn new(plan: &ValueMatch) -> Option<Self> {
        Some(match plan {
            ValueMatch::Exact(text) => Self::Exact(text.clone()),
            ValueMatch::Regex(pattern) => Self::Regex(whole(pattern)?),
        })
    }

    fn matches(&self, got: &str) -> bool {
        match self {
            Self::Exact(text) => **text == *got,
            Self::Regex(regex) => regex.is_match(got),
        }
    }
}

/// Memory that a compiled regular expression may take.
const MAX_REGEX_BYTES: usize = 256 * 1024;

/// Compiles a regular expression that must match all of a text; `None` if it is invalid or too large.
pub(crate) fn whole(pattern: &str) -> Option<regex::Regex> {
    regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(MAX_REGEX_BYTES).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::routes::FieldMatch;
    use std::borrow::Cow;
    use std::collections::BTreeMap;

    struct Nothing;
    impl Resolve for Nothing {
        fn cell(&mut self, _: &BackendRef) -> Option<Arc<BackendCell>> {
            None
        }
        fn stats(&mut self, _: &RuleId) -> Arc<RouteStats> {
            Arc::new(RouteStats::new(1))
        }
    }

    struct Request(&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);
    impl Head for Request {
        fn method(&self) -> &str {
            self.0
        }
        fn host(&self) -> &str {
            self.1
        }
        fn path(&self) -> &str {
            self.2.split('?').next().unwrap_or_default()
        }
        fn query(&self) -> Option<&str> {
            self.2.split_once('?').map(|(_, query)| query)
        }
        fn header(&self, name: &str) -> Option<Cow<'_, str>> {
            self.3.iter().find(|(known, _)| *known == name).map(|(_, value)| Cow::Borrowed(*value))
        }
        fn client(&self) -> IpAddr {
            IpAddr::from([192, 0, 2, 1])
        }
    }

    fn rule(name: &str, path: PathMatch) -> RulePlan {
        let id = RuleId { kind: "HTTPRoute", name: name.into(), ..RuleId::default() };
        RulePlan {
            id,
            path,
            method: None,
            headers: vec![],
            query: vec![],
            filters: vec![],
            backends: vec![],
            policy: Arc::default(),
        }
    }

    fn exact(text: &str) -> PathMatch {
        PathMatch::Exact(text.into())
    }
    fn prefix(text: &str) -> PathMatch {
        PathMatch::Prefix(text.into())
    }

    fn table(hosts: Vec<(&str, &str, Vec<RulePlan>)>) -> HttpTable {
        let mut listeners: BTreeMap<HostPattern, HostsPlan> = BTreeMap::new();
        for (listener, host, rules) in hosts {
            let plan = listeners.entry(HostPattern::parse(listener)).or_default();
            plan.hosts.insert(HostPattern::parse(host), rules.into_iter().map(Arc::new).collect());
        }
        let listeners = listeners.into_iter().map(|(host, plan)| (host, Arc::new(plan))).collect();
        HttpTable::compile(&HttpPlan { listeners, ..HttpPlan::default() }, 80, &mut Nothing)
    }

    #[track_caller]
    fn check(table: &HttpTable, request: Request, expected: Option<&str>) {
        assert_eq!(
            table.find(&request).map(|rule| &*rule.id.name),
            expected,
            "{} {} {}",
            request.0,
            request.1,
            request.2
        );
    }

    #[test]
    fn hosts_go_from_special_to_general_within_their_listener() {
        let t = table(vec![
            ("*.shop.example", "a.shop.example", vec![rule("a", prefix("/a"))]),
            ("*.shop.example", "*.shop.example", vec![rule("wild", prefix("/"))]),
            ("", "", vec![rule("any", prefix("/"))]),
        ]);
        check(&t, Request("GET", "a.shop.example", "/a/b", &[]), Some("a"));
        check(&t, Request("GET", "a.shop.example", "/c", &[]), Some("wild"));
        check(&t, Request("GET", "x.y.shop.example", "/c", &[]), Some("wild"));
        check(&t, Request("GET", "shop.example", "/c", &[]), Some("any"));
        check(&t, Request("GET", "", "/", &[]), Some("any"));
        let t = table(vec![
            ("b.example", "b.example", vec![rule("b", exact("/only"))]),
            ("", "", vec![rule("any", prefix("/"))]),
        ]);
        check(&t, Request("GET", "b.example", "/other", &[]), None);
    }

    #[test]
    fn paths_go_by_precedence_whatever_their_order() {
        let t = table(vec![(
            "",
            "",
            vec![
                rule("root", prefix("/")),
                rule("a", prefix("/a")),
                rule("ab", prefix("/a/b")),
                rule("exact", exact("/a/b")),
                rule("regex", PathMatch::Regex("/r/[0-9]+".into())),
                rule("r", prefix("/r")),
            ],
        )]);
        for (path, expected) in [
            ("/", "root"),
            ("/a", "a"),
            ("/a/", "a"),
            ("/ab", "root"),
            ("/a/b", "exact"),
            ("/a/b/", "ab"),
            ("/a/b/c?x=/r/1", "ab"),
            ("/r/12", "regex"),
            ("/r/12/x", "r"),
            ("//a", "root"),
        ] {
            check(&t, Request("GET", "h", path, &[]), Some(expected));
        }
    }

    #[test]
    fn a_grpc_service_goes_before_a_method_of_any_and_that_before_everything() {
        let any_service = |method: &str| PathMatch::AnyService(format!("/[^/]+/{method}").into());
        let t = table(vec![(
            "",
            "",
            vec![
                rule("all", prefix("/")),
                rule("get", any_service("G.*")),
                rule("get-everything", any_service("GetEverything")),
                rule("cart", prefix("/Cart")),
                rule("cart-get", exact("/Cart/Get")),
            ],
        )]);
        for (path, expected) in [
            ("/Cart/Get", "cart-get"),
            ("/Cart/GetEverything", "cart"),
            ("/Shop/GetEverything", "get-everything"),
            ("/Shop/Get", "get"),
            ("/Shop/Put", "all"),
            ("/a/b/Get", "all"),
        ] {
            check(&t, Request("POST", "h", path, &[]), Some(expected));
        }
    }

    #[test]
    fn conditions_narrow_a_path_and_the_more_of_them_the_earlier() {
        let mut by_method = rule("post", prefix("/a"));
        by_method.method = Some("POST".into());
        let mut by_header = rule("header", prefix("/a"));
        by_header.headers = vec![FieldMatch { name: "x-v".into(), value: ValueMatch::Exact("2".into()) }];
        let mut by_query = rule("query", prefix("/a"));
        by_query.query = vec![FieldMatch { name: "q".into(), value: ValueMatch::Regex("b+".into()) }];
        let t = table(vec![("", "", vec![rule("plain", prefix("/a")), by_query, by_header, by_method])]);
        check(&t, Request("GET", "h", "/a", &[]), Some("plain"));
        check(&t, Request("GET", "h", "/a", &[("x-v", "2")]), Some("header"));
        check(&t, Request("GET", "h", "/a?q=bbb", &[("x-v", "1")]), Some("query"));
        check(&t, Request("GET", "h", "/a?q=bbb", &[("x-v", "2")]), Some("header"));
        check(&t, Request("GET", "h", "/a?q=abbb&q=b", &[]), Some("plain"));
        check(&t, Request("POST", "h", "/a?q=b", &[("x-v", "2")]), Some("post"));
        check(&t, Request("GET", "h", "/b", &[]), None);
    }
}
