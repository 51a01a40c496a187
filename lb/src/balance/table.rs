//! A backend's endpoints prepared for choosing: groups by distance, turns by weight, hash tables. Built when a backend is compiled,
//! immutable.

use std::net::IpAddr;
use std::sync::Arc;

use super::geo::Geo;
use super::hashing::{self, Member};
use super::locality::{LAST_RESORT, MAX_REGIONS, group, nearest};
use super::turns::turns;
use crate::policy::{Algorithm, Prefer, ServicePolicy};
use crate::snapshot::{EndpointPlan, NodePlan};

/// Name, degrees north and east.
type Regions = Arc<[(Arc<str>, f64, f64)]>;

/// Groups that an order can name.
pub(super) const MAX_GROUPS: usize = MAX_REGIONS + 1;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// Nearest first; for `Nearest` by region.
    pub groups: Box<[Group]>,
    /// Of each endpoint.
    pub group_of: Box<[u8]>,
    /// Of each endpoint; 1 for those that are a last resort.
    pub weights: Box<[u32]>,
    /// Group of endpoints of weight 0.
    pub last_resort: Option<usize>,
    /// For `Nearest`.
    by_client: Option<(Regions, Arc<Geo>)>,
    /// The group to begin with for a client of unknown place.
    home: u8,
}

/// Endpoints that are equally near.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Indices.
    pub members: Box<[u32]>,
    /// Indices in the order of their turns, as often as their weight says.
    pub order: Box<[u32]>,
    /// For the hashing algorithms.
    pub hash: Option<hashing::Table>,
    /// Sum of weights.
    pub weight: u64,
}

impl Table {
    pub fn new(plans: &[EndpointPlan], policy: &ServicePolicy, node: &NodePlan, geo: &Arc<Geo>) -> Self {
        let mut group_of: Box<[u8]> = plans.iter().map(|plan| group(&policy.locality, plan, node)).collect();
        let has_last_resort = group_of.contains(&LAST_RESORT);
        // Distances and regions that nobody is at get empty groups, so that a group's number says which it is.
        let farthest = group_of.iter().filter(|group| **group != LAST_RESORT).max();
        let near = match &policy.locality.prefer {
            Prefer::Nearest(regions) => regions.len().min(MAX_REGIONS) + 1,
            _ => farthest.map_or(0, |group| usize::from(*group) + 1),
        };
        group_of.iter_mut().filter(|group| **group == LAST_RESORT).for_each(|group| *group = near as u8);
        let weights: Box<[u32]> = plans.iter().map(|plan| plan.weight.max(1)).collect();
        let groups = (0..near + usize::from(has_last_resort))
            .map(|at| {
                let members = (0..).zip(&group_of).filter(|(_, group)| usize::from(**group) == at);
                Group::new(members.map(|(index, _)| index).collect(), plans, &weights, policy.algorithm)
            })
            .collect();
        let by_client = match &policy.locality.prefer {
            Prefer::Nearest(regions) => Some((regions.clone(), geo.clone())),
            _ => None,
        };
        let home = match &policy.locality.prefer {
            Prefer::Nearest(regions) => regions.iter().position(|(name, ..)| node.region.as_ref() == Some(name)),
            _ => None,
        };
        let last_resort = has_last_resort.then_some(near);
        Self { groups, group_of, weights, last_resort, by_client, home: home.unwrap_or(0).min(MAX_REGIONS) as u8 }
    }

    /// Writes the groups in the order in which `client` prefers them and returns how many there are (the last resort is not among them).
    pub fn order(&self, client: IpAddr, order: &mut [u8; MAX_GROUPS]) -> usize {
        let count = (self.groups.len() - usize::from(self.last_resort.is_some())).min(MAX_GROUPS);
        order.iter_mut().enumerate().for_each(|(at, slot)| *slot = at as u8);
        let Some((regions, geo)) = &self.by_client else { return count };
        let mut near = [0; MAX_REGIONS];
        let known = match geo.place(client) {
            Some(place) => nearest(regions, place, &mut near),
            None => {
                // As if it were here.
                order[..=usize::from(self.home)].rotate_right(1);
                0
            }
        };
        order[..known].copy_from_slice(&near[..known]);
        count
    }
}

impl Group {
    fn new(members: Box<[u32]>, plans: &[EndpointPlan], weights: &[u32], algorithm: Option<Algorithm>) -> Self {
        let weighted: Vec<(u32, u32)> = members.iter().map(|index| (*index, weights[*index as usize])).collect();
        let placed = || -> Vec<Member> {
            weighted.iter().map(|(index, weight)| (*index, plans[*index as usize].addr, *weight)).collect()
        };
        Self {
            order: turns(&weighted),
            hash: match algorithm {
                Some(Algorithm::RingHash) => Some(hashing::Table::ring(&placed())),
                Some(Algorithm::Maglev) => Some(hashing::Table::maglev(&placed())),
                _ => None,
            },
            weight: weighted.iter().map(|(_, weight)| u64::from(*weight)).sum(),
            members,
        }
    }
}
