//! Which plugins are in place where.
//!
//! A binding whose module is not there yet does not take the place of another, or of none: what was served there goes on as it was, until
//! [`super::Hub::rebind`] finds the module. Where nothing was served before there is nothing to go on with: the binding is put in place, and
//! the plugin's failure policy decides until the module comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use scaleup_plugins::{PluginKey, Registry, World};

use super::{PortKey, SiteKey};
use crate::balance::geo::Geo;
use crate::plugin::{Binding, Counts, GenerationTotals};
use crate::policy::PluginRef;
use crate::snapshot::routes::RuleId;

/// What a plugin is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A route's rule.
    Rule(RuleId),
    /// A port of a Service with a plugin of its own.
    Port(PortKey),
}

/// What must be compiled again when a module comes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiting {
    Site(SiteKey),
    Port(PortKey),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Plugins {
    registry: Arc<Registry>,
    in_place: BTreeMap<Place, Arc<PluginRef>>,
    pub waiting: BTreeSet<Waiting>,
    counts: BTreeMap<PluginKey, Arc<Counts>>,
}

impl Plugins {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, ..Self::default() }
    }

    /// The binding for a place where `wanted` is asked for, and whether it waits for its module. `known`: something was served there before.
    pub fn bind(
        &mut self,
        place: Place,
        wanted: Option<&Arc<PluginRef>>,
        known: bool,
        (geo, threads): (&Arc<Geo>, usize),
    ) -> (Option<Arc<Binding>>, bool) {
        let before = self.in_place.get(&place);
        let absent = |wanted: &Arc<PluginRef>| self.registry.slot(&wanted.key, World::Routing).policy.is_absent();
        let same = |wanted: &Arc<PluginRef>| before.is_some_and(|before| before.key == wanted.key);
        let waits = wanted.is_some_and(|wanted| known && !same(wanted) && absent(wanted));
        let Some(used) = (if waits { before } else { wanted }).cloned() else {
            self.in_place.remove(&place);
            return (None, waits);
        };
        self.in_place.insert(place, used.clone());
        let slot = self.registry.slot(&used.key, World::Routing);
        let counts = self.counts.entry(used.key.clone()).or_insert_with(|| Arc::new(Counts::new(threads))).clone();
        (Some(Arc::new(Binding::new(used, slot, counts, geo.clone()))), waits)
    }

    /// Remembers whether something waits for a module.
    pub fn note(&mut self, what: Waiting, waits: bool) {
        if waits {
            self.waiting.insert(what);
        } else {
            self.waiting.remove(&what);
        }
    }

    /// Forgets what is in place where nothing is served any more, and counts of plugins that are nowhere in place.
    pub fn retain(&mut self, is_served: impl Fn(&Place) -> bool) {
        self.in_place.retain(|place, _| is_served(place));
        self.counts.retain(|_, counts| Arc::strong_count(counts) > 1);
    }

    /// Decisions by plugin and generation.
    pub fn totals(&self) -> Vec<(PluginKey, BTreeMap<Option<u64>, GenerationTotals>)> {
        self.counts.iter().map(|(key, counts)| (key.clone(), counts.totals())).collect()
    }
}
