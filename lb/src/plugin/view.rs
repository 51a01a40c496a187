//! What plugins see of backends' endpoints: the part that changes with a snapshot, made once, and how the rest is filled in for a request.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use scaleup_plugins::routing::{self, Endpoint, MAX_ENDPOINTS, Proximity, Topology, Zone};

use crate::backend::{Backend, Health, Tried};
use crate::balance::hashing;
use crate::policy::Prefer;
use crate::snapshot::{EndpointPlan, NodePlan};

/// Numbers of topologies: no two of a process have the same.
static VERSIONS: AtomicU64 = AtomicU64::new(1);

/// See the module. Immutable.
#[derive(Debug)]
pub(super) struct View {
    /// Whose it is; they do not live longer for it.
    backends: Box<[Weak<Backend>]>,
    /// Where the endpoints of each begin, and where the last ones end.
    starts: Box<[usize]>,
    /// Their part that does not change, of all backends in order.
    fixed: Box<[Endpoint]>,
    pub topology: Arc<Topology>,
    pub version: u64,
}

/// The endpoints that a plugin is shown: all of a range, or of a long one as many as may be shown, from `start` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    first: usize,
    count: usize,
    start: usize,
}

/// Name and region of a zone.
type ZoneKey = (Option<Arc<str>>, Option<Arc<str>>);

/// Zones and their positions.
#[derive(Default)]
struct Zones {
    known: HashMap<ZoneKey, u32>,
    list: Vec<Zone>,
}

impl Zones {
    fn of(&mut self, zone: &Option<Arc<str>>, region: &Option<Arc<str>>, backend: &Backend) -> u32 {
        let next = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        *self.known.entry((zone.clone(), region.clone())).or_insert_with(|| {
            let name = |name: &Option<Arc<str>>| name.as_deref().unwrap_or_default().to_owned();
            let place = match &backend.policy.locality.prefer {
                Prefer::Nearest(regions) => regions.iter().find(|(name, ..)| region.as_ref() == Some(name)),
                _ => None,
            };
            let place =
                place.map(|(_, latitude, longitude)| routing::Place { latitude: *latitude, longitude: *longitude });
            self.list.push(Zone { name: name(zone), region: name(region), place });
            next
        })
    }
}

fn proximity(plan: &EndpointPlan, node: &NodePlan) -> Proximity {
    let same = |a: &Option<Arc<str>>, b: &Option<Arc<str>>| a.is_some() && a == b;
    if same(&plan.node, &node.name) {
        Proximity::Node
    } else if same(&plan.zone, &node.zone) {
        Proximity::Zone
    } else if same(&plan.region, &node.region) {
        Proximity::Region
    } else {
        Proximity::Elsewhere
    }
}

impl View {
    /// Of a rule's backends; `None` is one whose reference is not valid.
    pub fn new(backends: &[Option<Arc<Backend>>]) -> Self {
        let (mut zones, mut fixed, mut starts) = (Zones::default(), Vec::new(), vec![0]);
        let mut topology = Topology::default();
        for (position, backend) in (0..).zip(backends) {
            topology.backends.push(backend.as_ref().map(|b| format!("{}:{}", b.service, b.port)).unwrap_or_default());
            let endpoints =
                backend.iter().flat_map(|backend| backend.endpoints.iter().enumerate().zip(std::iter::repeat(backend)));
            for ((index, endpoint), backend) in endpoints {
                let plan = backend.places.plans.get(index);
                let (zone, region) = plan.map(|plan| (plan.zone.clone(), plan.region.clone())).unwrap_or_default();
                fixed.push(Endpoint {
                    key: hashing::of_addr(endpoint.addr),
                    backend: position,
                    zone: zones.of(&zone, &region, backend),
                    proximity: plan.map_or(Proximity::Elsewhere, |plan| proximity(plan, &backend.places.node)),
                    weight: plan.map_or(0, |plan| plan.weight),
                    ..Endpoint::default()
                });
            }
            starts.push(fixed.len());
        }
        let here = backends.iter().flatten().map(|backend| &backend.places.node).find(|node| node.zone.is_some());
        topology.here = here.and_then(|node| zones.known.get(&(node.zone.clone(), node.region.clone())).copied());
        topology.zones = zones.list;
        Self {
            backends: backends.iter().map(|one| one.as_ref().map(Arc::downgrade).unwrap_or_default()).collect(),
            starts: starts.into(),
            fixed: fixed.into(),
            topology: Arc::new(topology),
            version: VERSIONS.fetch_add(1, Relaxed),
        }
    }

    /// Whether it is of these. A backend that is held weakly keeps its address, so that no other can be taken for it.
    pub fn is_of(&self, backends: &[Option<Arc<Backend>>]) -> bool {
        self.backends.len() == backends.len() && (0..).zip(backends).all(|(at, backend)| self.has(at, backend.as_ref()))
    }

    /// Whether this is the backend at a position.
    pub fn has(&self, position: usize, backend: Option<&Arc<Backend>>) -> bool {
        self.backends.get(position).is_some_and(|known| match backend {
            Some(backend) => std::ptr::eq(known.as_ptr(), Arc::as_ptr(backend)),
            None => known.ptr_eq(&Weak::new()),
        })
    }

    /// What is shown of the backends at these positions; `None` if they have no endpoints.
    pub fn offer(&self, positions: Range<usize>, random: u64) -> Option<Offer> {
        let (first, end) = (*self.starts.get(positions.start)?, *self.starts.get(positions.end)?);
        let count = end.checked_sub(first).filter(|count| *count > 0)?;
        let start = if count > MAX_ENDPOINTS { (random % count as u64) as usize } else { 0 };
        Some(Offer { first, count, start })
    }

    /// Position of the backend, and index in it, of the endpoint that was shown at `at`.
    pub fn place(&self, offer: Offer, at: usize) -> (usize, usize) {
        let place = offer.first + (offer.start + at) % offer.count;
        let position = self.starts.partition_point(|start| *start <= place).saturating_sub(1);
        (position, place - self.starts.get(position).copied().unwrap_or_default())
    }

    /// Writes the endpoints of an offer as they are now. `backends` are those of this view.
    pub fn fill(
        &self,
        backends: &[Option<Arc<Backend>>],
        offer: Offer,
        tried: Tried,
        now_ms: u64,
        out: &mut Vec<Endpoint>,
    ) {
        out.clear();
        let shown = offer.count.min(MAX_ENDPOINTS);
        let (from, end) = (offer.first + offer.start, offer.first + offer.count);
        let before_end = shown.min(end - from);
        self.push(backends, from..from + before_end, tried, now_ms, out);
        self.push(backends, offer.first..offer.first + (shown - before_end), tried, now_ms, out);
    }

    fn push(
        &self,
        backends: &[Option<Arc<Backend>>],
        places: Range<usize>,
        tried: Tried,
        now_ms: u64,
        out: &mut Vec<Endpoint>,
    ) {
        for (bounds, backend) in self.starts.windows(2).zip(backends) {
            let (Some(backend), &[start, end]) = (backend, bounds) else { continue };
            let (from, to) = (start.max(places.start), end.min(places.end));
            let both =
                self.fixed.get(from..to).zip(backend.endpoints.get(from.wrapping_sub(start)..to.wrapping_sub(start)));
            let Some((fixed, endpoints)) = both else { continue };
            for ((index, endpoint), fixed) in (from - start..).zip(endpoints).zip(fixed) {
                let (latency_us, failures) = endpoint.latency(false).seen(now_ms);
                out.push(Endpoint {
                    health: health(backend, index, now_ms),
                    tried: tried.contains(index),
                    in_flight: u32::try_from(endpoint.in_flight()).unwrap_or(u32::MAX),
                    latency_us,
                    failures,
                    ..*fixed
                });
            }
        }
    }
}

fn health(backend: &Backend, index: usize, now_ms: u64) -> routing::Health {
    if backend.availability.is_honoured(index) {
        return routing::Health::Healthy;
    }
    match backend.endpoints.get(index).map(|endpoint| endpoint.health_at(now_ms).0) {
        None | Some(Health::Healthy) => routing::Health::Healthy,
        Some(Health::Suspect) => routing::Health::Suspect,
        Some(Health::Ejected) => routing::Health::Ejected,
        Some(Health::Failing) => routing::Health::Failing,
    }
}
