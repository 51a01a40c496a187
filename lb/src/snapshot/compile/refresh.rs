//! Recompilation of what is dirty, in the order of dependency: Gateways, policies, Services, routes, ports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::super::assemble::{self, Compiled, Content, Shadowed};
use super::super::compile_route::{self, Context};
use super::super::gateways::{Gateways, IngressClaims, ListenerId};
use super::super::objects::{ObjectKey, Objects, Route, RouteKey, RouteKind, StoredRoute, created};
use super::super::plan::{ServiceContext, plan_service};
use super::super::policies::{Policies, TargetKind};
use super::super::routes::{HostPort, ListenerPlan};
use super::super::{ServiceKey, ingress};
use super::{Compiler, Dirty, Touched};

/// Names on a port whose rules are exchanged one by one; of more, the port is assembled anew.
const MAX_PATCHED_HOSTS: usize = 64;

impl Compiler {
    pub(super) fn refresh_gateways(&mut self, dirty: &mut Dirty) {
        if dirty.claims {
            let claims = ingress_claims(&self.objects);
            dirty.gateways |= claims != self.claims;
            self.claims = claims;
        }
        if !dirty.gateways {
            return;
        }
        let gateways = Gateways::compile(&self.objects, &self.config, self.claims);
        if gateways == self.gateways {
            return;
        }
        let (old, new) = (&self.gateways.by_key, &gateways.by_key);
        for key in old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key)) {
            dirty.routes.extend(self.by_gateway.get(key).into_iter().flatten().cloned());
        }
        // Names of Gateways are not served for Ingresses.
        dirty.ingresses = true;
        dirty.all_ports = true;
        self.gateways = gateways;
    }

    pub(super) fn refresh_policies(&mut self, dirty: &mut Dirty) {
        if !dirty.policies {
            return;
        }
        let policies = Policies::compile(&self.objects);
        for (kind, key) in policies.differing(&self.policies) {
            let route = |kind| RouteKey { kind, key: key.clone() };
            match kind {
                TargetKind::Service => {
                    dirty.routes.extend(self.by_service.get(&key).into_iter().flatten().cloned());
                    dirty.services.insert(key);
                }
                TargetKind::Gateway => {
                    dirty.routes.extend(self.by_gateway.get(&key).into_iter().flatten().cloned());
                    dirty.all_ports = true;
                }
                TargetKind::Ingress => _ = dirty.routes.insert(route(RouteKind::Ingress)),
                TargetKind::HTTPRoute => _ = dirty.routes.insert(route(RouteKind::HTTPRoute)),
                TargetKind::GRPCRoute => _ = dirty.routes.insert(route(RouteKind::GRPCRoute)),
                TargetKind::TLSRoute => _ = dirty.routes.insert(route(RouteKind::TLSRoute)),
                TargetKind::TCPRoute => _ = dirty.routes.insert(route(RouteKind::TCPRoute)),
                TargetKind::UDPRoute => _ = dirty.routes.insert(route(RouteKind::UDPRoute)),
            }
        }
        self.policies = policies;
    }

    pub(super) fn refresh_services(&mut self, dirty: &Dirty) {
        let all: Vec<ServiceKey> = if dirty.all_services {
            self.objects.services.keys().chain(&dirty.services).cloned().collect()
        } else {
            dirty.services.iter().cloned().collect()
        };
        let context = ServiceContext { config: &self.config, nodes: &self.objects.nodes, policies: &self.policies };
        for key in all {
            let Some(service) = self.objects.services.get(&key) else {
                self.plans.remove(&key);
                continue;
            };
            let slices: Vec<&EndpointSlice> = self.slices.get(&key).into_iter().flat_map(BTreeMap::values).collect();
            let plan = plan_service(key.clone(), service, &slices, context);
            // An equal plan keeps its identity, so that readers see that nothing changed.
            if self.plans.get(&key).is_none_or(|old| **old != plan) {
                self.plans.insert(key, Arc::new(plan));
            }
        }
    }

    pub(super) fn refresh_routes(&mut self, dirty: &mut Dirty) {
        let mut routes = std::mem::take(&mut dirty.routes);
        if dirty.all_routes {
            routes.extend(self.objects.routes.keys().cloned());
        } else if dirty.ingresses {
            let all = self.objects.routes.keys().take_while(|key| key.kind == RouteKind::Ingress);
            routes.extend(all.cloned());
        }
        self.unsaid.extend(routes.iter().cloned());
        let mut backends_changed = false;
        for key in routes {
            let new = self.objects.routes.get(&key).and_then(StoredRoute::open).map(|route| {
                let context = Context {
                    objects: &self.objects,
                    gateways: &self.gateways,
                    policies: &self.policies,
                    config: &self.config,
                    default_policy: &self.default_policy,
                };
                compile_route::compile(context, &key, &route)
            });
            let (new, outcome) = new.unzip();
            if self.routes.get(&key) != new.as_ref() {
                backends_changed |= self.exchange(&key, new, &mut dirty.ports);
            }
            match outcome {
                Some(outcome) if self.outcomes.get(&key).is_none_or(|old| **old != outcome) => {
                    self.outcomes.insert(key, Arc::new(outcome));
                }
                Some(_) => {}
                None => drop(self.outcomes.remove(&key)),
            }
        }
        if backends_changed {
            self.routed = Arc::new(self.users.keys().cloned().collect());
        }
    }

    /// Puts a compiled route in place of its predecessor, and says whether the set of Service ports that routes send to has changed.
    fn exchange(&mut self, key: &RouteKey, new: Option<Compiled>, ports: &mut BTreeMap<HostPort, Touched>) -> bool {
        let old = self.routes.remove(key).unwrap_or_default();
        let nothing = Compiled::default();
        let next = new.as_ref().unwrap_or(&nothing);
        if old.places != next.places || old.created != next.created {
            for place in old.places.iter().chain(&next.places) {
                let touched = ports.entry(place.port).or_default();
                touched.hosts.extend(place.hosts.iter().cloned());
                touched.more |= !matches!(place.content, Content::Http(_));
            }
        }
        count(&mut self.attached, &old, -1);
        count(&mut self.attached, next, 1);
        unfile(&mut self.by_service, &old.mentions, key);
        unfile(&mut self.by_gateway, &old.parents, key);
        let mut changed = false;
        for backend in next.backends.iter().filter(|backend| old.backends.binary_search(backend).is_err()) {
            let users = self.users.entry(backend.clone()).or_default();
            changed |= *users == 0;
            *users += 1;
        }
        for backend in old.backends.iter().filter(|backend| next.backends.binary_search(backend).is_err()) {
            let Some(users) = self.users.get_mut(backend) else { continue };
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.users.remove(backend);
                changed = true;
            }
        }
        if let Some(new) = new {
            for name in &new.mentions {
                self.by_service.entry(name.clone()).or_default().insert(key.clone());
            }
            for name in &new.parents {
                self.by_gateway.entry(name.clone()).or_default().insert(key.clone());
            }
            self.routes.insert(key.clone(), new);
        }
        changed
    }

    pub(super) fn refresh_listeners(&mut self, dirty: &Dirty) {
        let mut whole: BTreeSet<HostPort> = BTreeSet::new();
        if dirty.all_ports {
            whole.extend(self.gateways.ports.keys().chain(self.listeners.keys()));
        }
        for (port, touched) in &dirty.ports {
            let small = !dirty.all_ports && !touched.more && touched.hosts.len() <= MAX_PATCHED_HOSTS;
            let known = self.listeners.get(port).filter(|_| small);
            match known.and_then(|old| assemble::patched(old, *port, &self.gateways, &self.routes, &touched.hosts)) {
                Some(plan) => _ = self.listeners.insert(*port, Arc::new(plan)),
                None => _ = whole.insert(*port),
            }
        }
        if whole.is_empty() {
            return;
        }
        let mut routes: Vec<(&RouteKey, &Compiled)> =
            self.routes.iter().filter(|(_, route)| !route.places.is_empty()).collect();
        routes.sort_by(assemble::by_age);
        for port in whole {
            let mut shadowed = Shadowed::new();
            let plan = assemble::listener(port, &self.gateways, &self.policies, &routes, &mut shadowed);
            let before = self.shadowed.remove(&port).unwrap_or_default();
            if before != shadowed {
                self.unsaid.extend(before.iter().chain(&shadowed).map(|(younger, ..)| younger.clone()));
            }
            if !shadowed.is_empty() {
                self.shadowed.insert(port, shadowed);
            }
            let same = |plan: &ListenerPlan| self.listeners.get(&port).is_some_and(|old| **old == *plan);
            match plan {
                // Routes that changed make another plan anyhow: only others are worth a comparison.
                Some(plan) if dirty.ports.contains_key(&port) || !same(&plan) => {
                    self.listeners.insert(port, Arc::new(plan));
                }
                Some(_) => {}
                None => drop(self.listeners.remove(&port)),
            }
        }
    }
}

/// Adds to the number of routes at each listener that serves this one.
fn count(attached: &mut BTreeMap<ListenerId, i32>, route: &Compiled, amount: i32) {
    let listeners: BTreeSet<&ListenerId> = route.places.iter().filter_map(|place| place.listener.as_ref()).collect();
    for listener in listeners {
        let routes = attached.entry(listener.clone()).or_default();
        *routes += amount;
        if *routes == 0 {
            attached.remove(listener);
        }
    }
}

fn unfile(index: &mut BTreeMap<ObjectKey, BTreeSet<RouteKey>>, names: &[ObjectKey], route: &RouteKey) {
    for name in names {
        if let Some(routes) = index.get_mut(name) {
            routes.remove(route);
            if routes.is_empty() {
                index.remove(name);
            }
        }
    }
}

/// Since when Ingresses of ours ask for the HTTP and the HTTPS port.
fn ingress_claims(objects: &Objects) -> IngressClaims {
    let mut claims = IngressClaims::default();
    let all = objects.routes.iter().take_while(|(key, _)| key.kind == RouteKind::Ingress);
    for (_, route) in all {
        let StoredRoute::Whole(Route::Ingress(ingress)) = route else { continue };
        if !ingress::is_ours(objects, ingress) {
            continue;
        }
        let since = created(&ingress.metadata);
        let earlier = |claim: Option<i64>| Some(claim.map_or(since, |claim| claim.min(since)));
        claims.http = earlier(claims.http);
        if ingress::has_tls(ingress) {
            claims.https = earlier(claims.https);
        }
    }
    claims
}
