//! What becomes of an object whose owners were looked up (upstream's `attemptToDeleteItem`). Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PropagationPolicy;
use scaleup_api::well_known::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN};

use super::graph::{Dependent, has_finalizer};

/// What a live look at an owner found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// It exists.
    Solid,
    /// It does not exist (any more), or another object has its name.
    Absent,
    /// It is being deleted and waits for its dependents.
    Waiting,
}

/// What to do with the object.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Leave it.
    Keep,
    /// An owner is left: drop the references to these UIDs.
    DropReferences(Vec<String>),
    /// No owner is left: delete it. `unblock` first makes its references non-blocking, because owner and dependent
    /// wait for each other.
    Delete {
        /// How its own dependents are treated.
        policy: PropagationPolicy,
        /// See above.
        unblock: bool,
    },
}

/// Decides on an object by its live metadata, its owners' states and its dependents.
pub fn decide(meta: &ObjectMeta, owners: &[(OwnerReference, OwnerState)], dependents: &[Dependent]) -> Decision {
    let any = |state| owners.iter().any(|(_, s)| *s == state);
    if owners.is_empty() {
        return Decision::Keep;
    }
    if any(OwnerState::Solid) {
        let others = owners.iter().filter(|(_, s)| *s != OwnerState::Solid);
        let uids: Vec<String> = others.map(|(r, _)| r.uid.clone()).collect();
        return if uids.is_empty() { Decision::Keep } else { Decision::DropReferences(uids) };
    }
    if any(OwnerState::Waiting) && !dependents.is_empty() {
        let unblock = dependents.iter().any(|d| d.foreground);
        return Decision::Delete { policy: PropagationPolicy::Foreground, unblock };
    }
    let policy = if has_finalizer(meta, FINALIZER_ORPHAN) {
        PropagationPolicy::Orphan
    } else if has_finalizer(meta, FINALIZER_FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    };
    Decision::Delete { policy, unblock: false }
}

#[cfg(test)]
mod tests {
    use super::OwnerState::{Absent, Solid, Waiting};
    use super::*;

    fn dependent(foreground: bool) -> Dependent {
        Dependent { uid: "d".into(), blocking: true, foreground }
    }

    fn check(finalizers: &[&str], owners: &[OwnerState], dependents: &[Dependent], want: Decision) {
        let finalizers = Some(finalizers.iter().map(|f| (*f).to_owned()).collect());
        let meta = ObjectMeta { finalizers, ..ObjectMeta::default() };
        let reference = |n: usize| OwnerReference { uid: n.to_string(), ..OwnerReference::default() };
        let owners: Vec<_> = owners.iter().enumerate().map(|(n, s)| (reference(n), *s)).collect();
        assert_eq!(decide(&meta, &owners, dependents), want, "{owners:?}");
    }

    fn delete(policy: PropagationPolicy) -> Decision {
        Decision::Delete { policy, unblock: false }
    }

    #[test]
    fn an_object_goes_when_no_owner_is_left() {
        use PropagationPolicy::{Background, Foreground, Orphan};
        check(&[], &[], &[], Decision::Keep);
        check(&[], &[Solid], &[], Decision::Keep);
        check(&[], &[Solid, Absent, Waiting], &[], Decision::DropReferences(vec!["1".into(), "2".into()]));
        check(&[], &[Absent], &[], delete(Background));
        check(&["orphan"], &[Absent], &[], delete(Orphan));
        check(&["foregroundDeletion"], &[Absent], &[], delete(Foreground));
        check(&[], &[Waiting], &[], delete(Background));
        check(&[], &[Waiting, Absent], &[dependent(false)], delete(Foreground));
        check(&[], &[Waiting], &[dependent(true)], Decision::Delete { policy: Foreground, unblock: true });
    }
}
