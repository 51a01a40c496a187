//! What a scheduling plugin is, and the profile that lists them.
//!
//! A plugin rejects nodes, scores them, or both. For each pod it may prepare whatever it needs once; the prepared filter
//! or score is then asked node by node. The built-in plugins and those of users stand in the same list. Plugins decide;
//! they never do I/O.

use std::borrow::Cow;
use std::fmt;
use std::ops::BitOr;
use std::sync::Arc;

use crate::cache::{Cache, NodeIndex};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// Best score of a plugin (upstream's `MaxNodeScore`); the worst is 0.
pub const MAX_SCORE: i64 = 100;

/// Kinds of changes in the cluster, as a set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Events(u16);

impl Events {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A node came.
    pub const NODE_ADDED: Self = Self(1);
    /// A node went.
    pub const NODE_REMOVED: Self = Self(1 << 1);
    /// A node offers more or less.
    pub const NODE_ALLOCATABLE: Self = Self(1 << 2);
    /// A node's labels changed.
    pub const NODE_LABELS: Self = Self(1 << 3);
    /// A node's taints changed, or whether it is schedulable.
    pub const NODE_TAINTS: Self = Self(1 << 4);
    /// A pod is on a node, or its labels changed.
    pub const POD_ADDED: Self = Self(1 << 5);
    /// A pod is gone, has ended or needs less.
    pub const POD_REMOVED: Self = Self(1 << 6);
    /// A namespace or its labels.
    pub const NAMESPACE: Self = Self(1 << 7);
    /// Another version of a user's plugin decides, or its binding changed.
    pub const PLUGIN: Self = Self(1 << 8);
    /// Anything.
    pub const ALL: Self = Self(u16::MAX);

    /// Whether the sets have something in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Events {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Events({:#b})", self.0)
    }
}

/// Why a node does not do, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection(pub Vec<Cow<'static, str>>);

impl Rejection {
    /// One reason that is always the same.
    pub fn because(reason: &'static str) -> Self {
        Self(vec![Cow::Borrowed(reason)])
    }
}

/// A filter prepared for one pod.
pub trait Filter {
    /// Whether the pod may go to the node.
    ///
    /// # Errors
    /// Every reason why it may not.
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection>;
}

/// A score prepared for one pod.
pub trait Score {
    /// Raw score of one node.
    fn score(&self, node: &NodeInfo) -> i64;

    /// Brings the raw scores of all feasible nodes into `0..=MAX_SCORE`.
    fn normalize(&self, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}
}

/// A scheduling plugin.
pub trait Plugin: Send + Sync {
    /// As in upstream's configuration and metrics.
    fn name(&self) -> &'static str;

    /// What may make a node acceptable that this plugin rejected.
    fn woken_by(&self) -> Events {
        Events::NONE
    }

    /// Whether, for this pod, the plugin looks at nothing but the single node (and at what [`Cache::structure`] covers),
    /// and needs no normalization. Then its answers are kept and reused for equal pods.
    fn is_local(&self, _pod: &PodInfo, _cache: &Cache) -> bool {
        true
    }

    /// The filter for a pod; `None` if it rejects nothing.
    fn filter<'a>(&'a self, _pod: &'a PodInfo, _cache: &'a Cache) -> Option<Box<dyn Filter + 'a>> {
        None
    }

    /// The score for a pod, given the nodes that passed the filters (all of them or none may be given if
    /// [`Plugin::is_local`]); `None` if all nodes are equal to it.
    fn score<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _cache: &'a Cache,
        _feasible: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        None
    }
}

/// A plugin's place in a profile.
#[derive(Clone)]
pub struct Enabled {
    /// The plugin.
    pub plugin: Arc<dyn Plugin>,
    /// Factor of its score.
    pub weight: i64,
}

/// The plugins of a scheduler, by its name.
#[derive(Clone)]
pub struct Profile {
    /// Pods with this `spec.schedulerName` are ours.
    pub scheduler_name: String,
    /// In the order in which filters are asked.
    pub plugins: Vec<Enabled>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plugins = self.plugins.iter().map(|enabled| (enabled.plugin.name(), enabled.weight));
        f.debug_struct("Profile")
            .field("scheduler_name", &self.scheduler_name)
            .field("plugins", &plugins.collect::<Vec<_>>())
            .finish()
    }
}

/// Scales scores so that the largest becomes [`MAX_SCORE`]; `reverse` makes small ones good (upstream's
/// `DefaultNormalizeScore`).
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { *score * MAX_SCORE / max };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizing_scales_to_the_best() {
        let check = |mut scores: Vec<i64>, reverse, expected: &[i64]| {
            normalize(&mut scores, reverse);
            assert_eq!(scores, expected);
        };
        check(vec![0, 5, 10], false, &[0, 50, 100]);
        check(vec![0, 1, 3], true, &[100, 67, 0]);
        check(vec![0, 0], false, &[0, 0]);
        check(vec![0, 0], true, &[100, 100]);
    }
}
