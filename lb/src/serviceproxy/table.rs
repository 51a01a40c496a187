//! The nftables table, by value: what it should contain, and how that differs from what it contained.
//!
//! An address is found in a map of those that have as many endpoints, whose key ends in a random number below that: one
//! element per endpoint, and no chain per Service. The kernel looks all chains through again whenever one is added or a map
//! leads to one, which took half of the 60 ms that a change took among 10,000 Services; maps of addresses cost what
//! changes. A packet that begins a connection is looked up once per number of endpoints that some Service has. Only
//! `sessionAffinity: ClientIP` needs chains: it works as upstream's, each endpoint has a set of the clients that it served
//! within the timeout, so a client stays when other endpoints come and go.
//!
//! A [`Table`] follows snapshots: only Services that changed are looked at again, and [`script`](super::script) writes only
//! what differs. IPv4 only: pods have no IPv6 addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::items::{Item, Kind, Value, items};
use super::script;
use crate::snapshot::{ServiceKey, ServicePlan, Snapshot};

/// What the table depends on besides the snapshot.
#[derive(Clone, Debug)]
pub struct RenderConfig {
    /// Table name.
    pub table: String,
    /// Bridged packets pass netfilter, so replies between pods on one bridge are translated back without our help.
    pub bridge_netfilter: bool,
}

/// Who wants an item: of two Services that want one differently the older one gets it.
type Owner = (i64, ServiceKey);

/// Contents of the table, and what they were made from.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub name: String,
    /// Pod subnet of the node, for node ports and masquerading.
    pub pod_cidr: Option<String>,
    pub bridge_netfilter: bool,
    plans: BTreeMap<ServiceKey, Arc<ServicePlan>>,
    items: BTreeMap<Item, BTreeMap<Owner, Value>>,
    /// How many addresses of a kind have so many endpoints; never zero.
    spreads: BTreeMap<(Kind, usize), usize>,
}

/// How the table changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Old and new value of each item; `None`: it was, or is, not there.
    pub items: BTreeMap<Item, (Option<Value>, Option<Value>)>,
    /// Numbers of endpoints that no address of the kind had.
    pub new_spreads: Vec<(Kind, usize)>,
    /// Numbers of endpoints that no address of the kind has any more.
    pub old_spreads: Vec<(Kind, usize)>,
}

impl Table {
    /// Takes over `snapshot`; the script from what the table was before, from scratch if it must be. Empty when nothing
    /// changes. Pure.
    pub fn update(&mut self, snapshot: &Snapshot, config: &RenderConfig) -> String {
        let (name, pod_cidr) = (script::sanitize(&config.table), snapshot.node.pod_cidr.clone());
        if (&self.name, &self.pod_cidr, self.bridge_netfilter) != (&name, &pod_cidr, config.bridge_netfilter) {
            *self = Self { name, pod_cidr, bridge_netfilter: config.bridge_netfilter, ..Self::default() };
            self.follow(snapshot);
            return self.script();
        }
        let changes = self.follow(snapshot);
        script::of_changes(self, &changes)
    }

    /// The script that makes the table from scratch, in place of any earlier one.
    pub fn script(&self) -> String {
        script::from_scratch(self)
    }

    /// Names or keys of the items of a kind, with their values.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = (&str, &Value)> {
        let items = self.items.range((kind, String::new())..).take_while(move |((k, _), _)| *k == kind);
        items.filter_map(|((_, name), owners)| Some((name.as_str(), owners.values().next()?)))
    }

    /// Numbers of endpoints that addresses of a kind have, ascending.
    pub fn spreads(&self, kind: Kind) -> impl Iterator<Item = usize> {
        self.spreads.range((kind, 0)..=(kind, usize::MAX)).map(|((_, count), _)| *count)
    }

    /// Takes over the Services that changed.
    fn follow(&mut self, snapshot: &Snapshot) -> Changes {
        let mut before: BTreeMap<Item, Option<Value>> = BTreeMap::new();
        let gone: Vec<_> = self
            .plans
            .iter()
            .filter(|(key, _)| !snapshot.services.contains_key(*key))
            .map(|(_, p)| p.clone())
            .collect();
        for plan in gone {
            self.plans.remove(&plan.key);
            self.withdraw(&plan, &mut before);
        }
        for (key, plan) in &snapshot.services {
            let known = self.plans.get(key);
            if known.is_some_and(|known| Arc::ptr_eq(known, plan)) {
                continue;
            }
            if let Some(old) = self.plans.insert(key.clone(), plan.clone()) {
                self.withdraw(&old, &mut before);
            }
            for (item, value) in items(plan, self.bridge_netfilter) {
                self.remember(&item, &mut before);
                self.items.entry(item).or_default().insert(owner(plan), value);
            }
        }
        self.changes(before)
    }

    fn withdraw(&mut self, plan: &ServicePlan, before: &mut BTreeMap<Item, Option<Value>>) {
        for (item, _) in items(plan, self.bridge_netfilter) {
            self.remember(&item, before);
            if let Some(owners) = self.items.get_mut(&item) {
                owners.remove(&owner(plan));
                if owners.is_empty() {
                    self.items.remove(&item);
                }
            }
        }
    }

    fn remember(&self, item: &Item, before: &mut BTreeMap<Item, Option<Value>>) {
        if !before.contains_key(item) {
            before.insert(item.clone(), self.value(item));
        }
    }

    pub fn value(&self, item: &Item) -> Option<Value> {
        self.items.get(item)?.values().next().cloned()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.spreads.is_empty()
    }

    /// What differs from `before`; counts the addresses by endpoints anew.
    fn changes(&mut self, before: BTreeMap<Item, Option<Value>>) -> Changes {
        let mut counts: BTreeSet<(Kind, usize)> = BTreeSet::new();
        let mut changes = Changes::default();
        let were: BTreeSet<(Kind, usize)> = self.spreads.keys().copied().collect();
        for (item, old) in before {
            let new = self.value(&item);
            if old == new {
                continue;
            }
            for (value, more) in [(&old, false), (&new, true)] {
                let Some(Value::Spread(targets)) = value else { continue };
                let count = (item.0, targets.len());
                counts.insert(count);
                let known = self.spreads.entry(count).or_default();
                *known = if more { *known + 1 } else { known.saturating_sub(1) };
            }
            changes.items.insert(item, (old, new));
        }
        self.spreads.retain(|_, addresses| *addresses > 0);
        changes.new_spreads =
            counts.iter().filter(|c| !were.contains(*c) && self.spreads.contains_key(*c)).copied().collect();
        changes.old_spreads =
            counts.iter().filter(|c| were.contains(*c) && !self.spreads.contains_key(*c)).copied().collect();
        changes
    }
}

fn owner(plan: &ServicePlan) -> Owner {
    (plan.created, plan.key.clone())
}
