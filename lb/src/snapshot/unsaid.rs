//! Which routes' statuses [`super::statuses`] has to look at: a change of one costs nothing for the others. Never says what a status must say.

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::objects::RouteKey;

/// Statuses of routes in one plan at most: each is held whole until it is written.
const MAX_ROUTE_PATCHES: usize = 256;

/// Routes whose statuses may not say what they must. A route leaves when its status does, and comes back when something that the status depends
/// on changes.
#[derive(Debug, Default)]
pub(super) struct Unsaid {
    routes: BTreeSet<RouteKey>,
    /// Where the next plan begins, so that writes that keep failing do not hold up the others.
    next: Option<RouteKey>,
}

impl Unsaid {
    pub fn extend(&mut self, routes: impl IntoIterator<Item = RouteKey>) {
        self.routes.extend(routes);
    }

    /// Looks at as many as fit in a plan; `is_unsaid` patches what it has to. Whether there are more.
    pub fn turn(&mut self, mut is_unsaid: impl FnMut(&RouteKey) -> bool) -> bool {
        let from = self.next.take();
        let first = self.routes.range::<RouteKey, _>((from.as_ref().map_or(Unbounded, Included), Unbounded));
        let rest = from.as_ref().map(|from| self.routes.range::<RouteKey, _>((Unbounded, Excluded(from))));
        let (mut said, mut unsaid) = (Vec::new(), 0);
        for key in first.chain(rest.into_iter().flatten()) {
            if unsaid == MAX_ROUTE_PATCHES {
                self.next = Some(key.clone());
                break;
            }
            if is_unsaid(key) {
                unsaid += 1;
            } else {
                said.push(key.clone());
            }
        }
        for key in said {
            self.routes.remove(&key);
        }
        self.next.is_some()
    }
}
