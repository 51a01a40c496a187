//! One route at a time, from its object to [`Compiled`] and what its author is told ([`RouteOutcome`]). Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use scaleup_api::gateway::{BackendRef as WrittenBackend, ParentReference};

use super::assemble::{Compiled, Content, Place};
use super::attach::{Attachment, ParentOutcome, attach, gateway_of};
use super::gateways::{Gateways, ListenerId, Speaks};
use super::objects::{ObjectKey, Objects, Route, RouteKey, created};
use super::policies::{Policies, TargetKind};
use super::references::{Fault, written};
use super::routes::{BackendRef, HostPattern, L4Plan, RuleId, RulePlan, WeightedBackend};
use super::rules::{self, Rule, Rules};
use super::{PlanConfig, ingress};
use crate::policy::RequestPolicy;
use crate::policy::parts::{RequestPart, request_policy};

/// Backends of a rule that are read (the API's limit).
const MAX_BACKENDS: usize = 16;
/// Faults that are told in one message.
const MAX_TOLD: usize = 4;

/// What became of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RouteOutcome {
    /// Whose `observedGeneration` it is.
    pub generation: i64,
    /// At each parent that is ours.
    pub parents: Vec<ParentOutcome>,
    /// No rule of it can be served.
    pub invalid: Option<Fault>,
    /// Rules that are left out.
    pub partially: Option<Fault>,
    /// References that are not good.
    pub unresolved: Option<Fault>,
    /// What is not done although it is asked for.
    pub notes: Vec<String>,
    /// An Ingress of ours: what its author must know.
    pub ingress: Option<Vec<Fault>>,
}

/// Everything a route depends on.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub objects: &'a Objects,
    pub gateways: &'a Gateways,
    pub policies: &'a Policies,
    pub config: &'a PlanConfig,
    /// Shared by all rules that nobody says anything about.
    pub default_policy: &'a Arc<RequestPolicy>,
}

/// Compiles one route.
pub(super) fn compile(context: Context<'_>, key: &RouteKey, route: &Route) -> (Compiled, RouteOutcome) {
    let (mut compiled, mut outcome) = match route {
        Route::Ingress(route) => of_ingress(context, key, route),
        Route::Http(route) => {
            let rules = rules::of_http(context.objects, key, route);
            of_rules(context, key, rules, &route.spec.parent_refs, &route.spec.hostnames)
        }
        Route::Grpc(route) => {
            let rules = rules::of_grpc(context.objects, key, route);
            of_rules(context, key, rules, &route.spec.parent_refs, &route.spec.hostnames)
        }
        Route::Tls(route) => {
            let rule = route.spec.rules.first().map(|rule| (rule.name.as_deref(), rule.backend_refs.as_slice()));
            of_l4(context, key, rule, &route.spec.parent_refs, &route.spec.hostnames)
        }
        Route::Tcp(route) => {
            let rule = route.spec.rules.first().map(|rule| (rule.name.as_deref(), rule.backend_refs.as_slice()));
            of_l4(context, key, rule, &route.spec.parent_refs, &[])
        }
        Route::Udp(route) => {
            let rule = route.spec.rules.first().map(|rule| (rule.name.as_deref(), rule.backend_refs.as_slice()));
            of_l4(context, key, rule, &route.spec.parent_refs, &[])
        }
    };
    compiled.created = created(route.metadata());
    outcome.generation = route.metadata().generation.unwrap_or_default();
    outcome.parents.shrink_to_fit();
    (compiled, outcome)
}

fn of_ingress(
    context: Context<'_>,
    key: &RouteKey,
    route: &k8s_openapi::api::networking::v1::Ingress,
) -> (Compiled, RouteOutcome) {
    if !ingress::is_ours(context.objects, route) {
        return Default::default();
    }
    let finish = &mut |mut plan: RulePlan, backends: &[BackendRef]| {
        plan.policy = context.policy(key, None, &RequestPart::default(), backends, None);
        Arc::new(plan)
    };
    let asked = ingress::asked(context.objects, context.gateways, context.config, key, route, finish);
    let compiled = Compiled {
        places: asked.places.into(),
        backends: asked.backends.into_iter().collect(),
        mentions: asked.mentions.into_iter().collect(),
        ..Compiled::default()
    };
    (compiled, RouteOutcome { ingress: Some(asked.problems), ..RouteOutcome::default() })
}

fn of_rules(
    context: Context<'_>,
    key: &RouteKey,
    rules: Rules,
    parents: &[ParentReference],
    hostnames: &[String],
) -> (Compiled, RouteOutcome) {
    let (attachments, outcomes) = attach(context.objects, context.gateways, key, parents, hostnames);
    let mut shared: Option<Box<[Arc<RulePlan>]>> = None;
    let mut places = Vec::new();
    for Attachment { listener, port, hosts, .. } in attachments {
        let of_listener = context.policies.of(TargetKind::Gateway, &listener.gateway, Some(&listener.listener));
        let plans = if of_listener.count() == 0 {
            // Nothing depends on the listener: its rules are the same objects as elsewhere.
            shared.get_or_insert_with(|| context.finish(key, &rules.rules, None)).clone()
        } else {
            context.finish(key, &rules.rules, Some(&listener))
        };
        places.push(Place { port, listener: Some(listener), hosts: hosts.into(), content: Content::Http(plans) });
    }
    let mut outcome = outcome(outcomes, rules.unresolved, rules.notes);
    if let Some((_, fault)) = rules.dropped.first() {
        let texts: Vec<String> = rules
            .dropped
            .iter()
            .take(MAX_TOLD)
            .map(|(index, fault)| format!("rule {index}: {}", fault.message))
            .collect();
        let told = texts.join("; ");
        if rules.rules.is_empty() {
            outcome.invalid = Some(Fault::new(fault.reason, told));
        } else {
            outcome.partially = Some(Fault::new(fault.reason, format!("Dropped Rule: {told}")));
        }
    }
    let compiled = Compiled {
        places: places.into(),
        backends: rules.backends.into_iter().collect(),
        mentions: rules.mentions.into_iter().collect(),
        parents: gateways_of(context.gateways, key, parents),
        ..Compiled::default()
    };
    (compiled, outcome)
}

fn of_l4(
    context: Context<'_>,
    key: &RouteKey,
    rule: Option<(Option<&str>, &[WrittenBackend])>,
    parents: &[ParentReference],
    hostnames: &[String],
) -> (Compiled, RouteOutcome) {
    let (attachments, outcomes) = attach(context.objects, context.gateways, key, parents, hostnames);
    let (name, references) = rule.unwrap_or_default();
    let mut rules = Rules::default();
    let mut backends = Vec::new();
    for reference in references.iter().take(MAX_BACKENDS) {
        let backend = rules.resolve(context.objects, key.kind, &key.key.namespace, written!(reference));
        let weight = u32::try_from(reference.weight.unwrap_or(1).clamp(0, 1_000_000)).unwrap_or(0);
        backends.push(WeightedBackend { backend, weight, filters: Vec::new() });
    }
    let id = RuleId {
        kind: key.kind.as_str(),
        namespace: key.key.namespace.clone(),
        name: key.key.name.clone(),
        ..RuleId::default()
    };
    let named: Vec<BackendRef> = backends.iter().filter_map(|share| share.backend.clone()).collect();
    let place = |Attachment { listener, port, speaks, hosts }| {
        let policy = context.policy(key, name, &RequestPart::default(), &named, Some(&listener));
        let plan = L4Plan { id: id.clone(), backends: backends.clone(), idle_timeout: policy.idle_timeout };
        let hosts = if matches!(speaks, Speaks::Tcp | Speaks::Udp) { vec![HostPattern::Any] } else { hosts };
        Place { port, listener: Some(listener), hosts: hosts.into(), content: Content::L4(speaks, Box::new(plan)) }
    };
    let places = attachments.into_iter().map(place).collect();
    let mut outcome = outcome(outcomes, std::mem::take(&mut rules.unresolved), Vec::new());
    if rule.is_none() {
        outcome.invalid = Some(Fault::new("UnsupportedValue", "the route has no rule"));
    }
    let compiled = Compiled {
        places,
        backends: rules.backends.into_iter().collect(),
        mentions: rules.mentions.into_iter().collect(),
        parents: gateways_of(context.gateways, key, parents),
        ..Compiled::default()
    };
    (compiled, outcome)
}

fn gateways_of(gateways: &Gateways, key: &RouteKey, parents: &[ParentReference]) -> Box<[ObjectKey]> {
    let all: BTreeSet<ObjectKey> = parents.iter().filter_map(|parent| gateway_of(&key.key, parent)).collect();
    // Of those that are there the same text is kept once.
    let known =
        |key: ObjectKey| gateways.by_key.get_key_value(&key).map_or_else(|| key.clone(), |(known, _)| known.clone());
    all.into_iter().map(known).collect()
}

fn outcome(parents: Vec<ParentOutcome>, unresolved: Vec<Fault>, notes: Vec<String>) -> RouteOutcome {
    let unresolved = unresolved.first().map(|first| {
        let texts: Vec<&str> = unresolved.iter().take(MAX_TOLD).map(|fault| fault.message.as_str()).collect();
        Fault::new(first.reason, texts.join("; "))
    });
    RouteOutcome { parents, unresolved, notes, ..RouteOutcome::default() }
}

impl Context<'_> {
    /// The rules' plans as they are served at `listener`.
    fn finish(self, key: &RouteKey, rules: &[Rule], listener: Option<&ListenerId>) -> Box<[Arc<RulePlan>]> {
        let mut plans = Vec::new();
        for rule in rules {
            let policy = self.policy(key, rule.name.as_deref(), &rule.own, &rule.backends, listener);
            plans.extend(rule.plans.iter().map(|plan| Arc::new(RulePlan { policy: policy.clone(), ..plan.clone() })));
        }
        plans.into()
    }

    /// What holds for requests of a rule: what it says itself, then policies of the route, of the Services that it sends to (in its order),
    /// and of the listener's Gateway.
    fn policy(
        self,
        key: &RouteKey,
        rule: Option<&str>,
        own: &RequestPart,
        backends: &[BackendRef],
        listener: Option<&ListenerId>,
    ) -> Arc<RequestPolicy> {
        let mut parts: Vec<&RequestPart> = Vec::new();
        let silent = RequestPart::default();
        if *own != silent {
            parts.push(own);
        }
        parts.extend(self.policies.of(key.kind.into(), &key.key, rule).map(|attached| &*attached.request));
        for backend in backends {
            let port = self.port_name(backend);
            let of_service = self.policies.of(TargetKind::Service, &backend.service, Some(port));
            parts.extend(of_service.map(|attached| &*attached.request));
        }
        if let Some(id) = listener {
            let of_gateway = self.policies.of(TargetKind::Gateway, &id.gateway, Some(&id.listener));
            parts.extend(of_gateway.map(|attached| &*attached.request));
        }
        if parts.is_empty() {
            return self.default_policy.clone();
        }
        Arc::new(request_policy(&parts))
    }

    fn port_name(&self, backend: &BackendRef) -> &str {
        let service = self.objects.services.get(&backend.service).and_then(|service| service.spec.as_ref());
        let ports = service.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let port = ports.iter().find(|port| {
            port.port == i32::from(backend.port)
                && super::plan::parse_protocol(port.protocol.as_deref()) == Some(backend.protocol)
        });
        port.and_then(|port| port.name.as_deref()).unwrap_or_default()
    }
}
