//! Near and far: endpoints in groups by distance, and which group a request goes to.
//!
//! A group takes all of its requests while at least `spillover_percent` of its endpoints are healthy; below, the missing share goes to
//! the next group, as with Envoy's priority levels. Pure.

use std::sync::Arc;

use crate::policy::{Locality, Prefer};
use crate::snapshot::{EndpointPlan, NodePlan};

/// Regions that are told apart for [`Prefer::Nearest`]; endpoints in others are as far as can be.
pub(crate) const MAX_REGIONS: usize = 32;
/// Group of endpoints of weight 0: used when nothing else is left.
pub(super) const LAST_RESORT: u8 = u8::MAX;

/// The group of an endpoint: 0 is nearest. For [`Prefer::Nearest`] the index of its region in the policy, in no order.
pub(super) fn group(locality: &Locality, endpoint: &EndpointPlan, node: &NodePlan) -> u8 {
    if endpoint.weight == 0 {
        return LAST_RESORT;
    }
    let same = |a: &Option<Arc<str>>, b: &Option<Arc<str>>| a.is_some() && a == b;
    let own_node = || same(&endpoint.node, &node.name);
    let own_zone = || same(&endpoint.zone, &node.zone);
    let own_region = || same(&endpoint.region, &node.region) || (own_zone() && endpoint.region.is_none());
    match &locality.prefer {
        Prefer::None => 0,
        Prefer::Node if own_node() => 0,
        Prefer::Node => 1 + u8::from(!own_zone()) + u8::from(!own_zone() && !own_region()),
        Prefer::Zone => u8::from(!own_zone()) + u8::from(!own_zone() && !own_region()),
        Prefer::Region => u8::from(!own_region()),
        Prefer::Nearest(regions) => {
            let known = regions.iter().take(MAX_REGIONS).position(|(name, ..)| endpoint.region.as_ref() == Some(name));
            known.unwrap_or(regions.len().min(MAX_REGIONS)) as u8
        }
    }
}

/// Position (in the given order) of the group for a request: `healthy` and `all` count each group's endpoints, nearest first, and
/// `random` is any number.
pub(super) fn spill(groups: impl Iterator<Item = (u32, u32)> + Clone, spillover_percent: u32, random: u32) -> usize {
    // Shares in hundredths of a percent.
    const ALL: u64 = 10_000;
    let capacity = |(healthy, all): (u32, u32)| {
        let full = u64::from(all) * u64::from(spillover_percent.clamp(1, 100));
        if all == 0 { 0 } else { (u64::from(healthy) * 100 * ALL / full.max(1)).min(ALL) }
    };
    let total: u64 = groups.clone().map(capacity).sum();
    if total == 0 {
        return 0;
    }
    // When all groups together cannot take everything, each takes its part of what there is.
    let mut at = u64::from(random) % total.min(ALL);
    for (position, counts) in groups.enumerate() {
        let share = capacity(counts);
        if at < share {
            return position;
        }
        at -= share;
    }
    0
}

/// Groups of regions in the order of their distance to a place (degrees north and east); unknown regions come last.
pub(super) fn nearest(regions: &[(Arc<str>, f64, f64)], place: (f64, f64), order: &mut [u8; MAX_REGIONS]) -> usize {
    let count = regions.len().min(MAX_REGIONS);
    let mut distances = [0.0; MAX_REGIONS];
    for (at, (_, north, east)) in regions.iter().take(count).enumerate() {
        distances[at] = haversine(place, (*north, *east));
        order[at] = at as u8;
    }
    order[..count].sort_unstable_by(|a, b| distances[usize::from(*a)].total_cmp(&distances[usize::from(*b)]));
    count
}

/// Grows with the distance of two places on a sphere.
fn haversine(a: (f64, f64), b: (f64, f64)) -> f64 {
    let half = |x: f64, y: f64| ((x - y).to_radians() / 2.0).sin().powi(2);
    half(a.0, b.0) + a.0.to_radians().cos() * b.0.to_radians().cos() * half(a.1, b.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(node: &str, zone: &str, region: &str) -> EndpointPlan {
        let some = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
        EndpointPlan {
            addr: ([10, 0, 0, 1], 80).into(),
            pod_uid: None,
            node: some(node),
            zone: some(zone),
            region: some(region),
            weight: 100,
        }
    }

    #[test]
    fn groups_go_by_distance() {
        let node = NodePlan {
            name: Some("n".into()),
            zone: Some("z".into()),
            region: Some("r".into()),
            ..NodePlan::default()
        };
        let places = [("n", "z", "r"), ("m", "z", "r"), ("m", "y", "r"), ("m", "x", "q"), ("", "", "")];
        let check = |prefer: Prefer, expected: [u8; 5]| {
            let locality = Locality { prefer, spillover_percent: 70 };
            assert_eq!(places.map(|(n, z, r)| group(&locality, &endpoint(n, z, r), &node)), expected, "{locality:?}");
        };
        check(Prefer::None, [0, 0, 0, 0, 0]);
        check(Prefer::Node, [0, 1, 2, 3, 3]);
        check(Prefer::Zone, [0, 0, 1, 2, 2]);
        check(Prefer::Region, [0, 0, 0, 1, 1]);
        check(Prefer::Nearest([("q".into(), 0.0, 0.0), ("r".into(), 0.0, 0.0)].into()), [1, 1, 1, 0, 2]);
        // Where nothing is known of the own node nothing is near.
        let locality = Locality { prefer: Prefer::Zone, spillover_percent: 70 };
        assert_eq!(group(&locality, &endpoint("", "", ""), &NodePlan::default()), 2);
    }

    /// Shares in percent of the groups.
    #[track_caller]
    fn shares(groups: &[(u32, u32)], expected: &[u32]) {
        let mut counts = vec![0; groups.len()];
        // Spread over all numbers.
        (0..10_000).for_each(|i| counts[spill(groups.iter().copied(), 70, i * 429_497)] += 1);
        let percent: Vec<u32> = counts.iter().map(|count: &u32| (count + 50) / 100).collect();
        assert_eq!(percent, expected);
    }

    #[test]
    fn traffic_spills_over_in_proportion() {
        shares(&[(10, 10), (10, 10)], &[100, 0]);
        shares(&[(7, 10), (10, 10)], &[100, 0]);
        shares(&[(35, 100), (10, 10)], &[50, 50]);
        shares(&[(0, 10), (10, 10), (5, 5)], &[0, 100, 0]);
        shares(&[(0, 0), (10, 10)], &[0, 100]);
        // Together they cannot take everything: halves of what there is.
        shares(&[(2, 10), (2, 10)], &[50, 50]);
        shares(&[(0, 10), (0, 10)], &[100, 0]);
    }

    #[test]
    fn nearest_regions_come_first() {
        let regions: Vec<(Arc<str>, f64, f64)> =
            vec![("virginia".into(), 38.9, -77.4), ("frankfurt".into(), 50.1, 8.7), ("sydney".into(), -33.9, 151.2)];
        let mut order = [0; MAX_REGIONS];
        let mut names = |place| {
            let count = nearest(&regions, place, &mut order);
            order[..count].iter().map(|at| regions[usize::from(*at)].0.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names((48.9, 2.3)), ["frankfurt", "virginia", "sydney"]);
        // Over the date line.
        assert_eq!(names((-17.7, -178.0))[0], "sydney");
    }
}
