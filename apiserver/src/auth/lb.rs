//! What RBAC cannot say about load balancers: which Secrets they may read.
//!
//! A load balancer serves TLS with the certificates in Secrets of type `kubernetes.io/tls`, and watches those. A rule on
//! `secrets` would give it tokens, passwords and keys of every other kind too, so it has none, and is allowed the watch here
//! if its field selector asks for nothing else. Only ever allows; all else is left to RBAC.

use scaleup_api::selector::FieldSelector;

use super::rbac::Attributes;
use crate::user::UserInfo;

/// User of load balancers, which are service proxies too.
pub const LB_USER: &str = "system:kube-proxy";
/// Type of the Secrets that it may read.
const TLS_SECRET_TYPE: &str = "kubernetes.io/tls";

/// Whether `user` is a load balancer.
pub fn is_load_balancer(user: &UserInfo) -> bool {
    user.name == LB_USER
}

/// Whether a load balancer may do this although no role says so; else why not, empty if it is RBAC's business.
pub fn decide(a: &Attributes<'_>) -> Result<(), &'static str> {
    if !a.path.is_empty() || (a.group, a.resource) != ("", "secrets") {
        return Err("");
    }
    let selector = FieldSelector::parse(a.field_selector).unwrap_or_default();
    let tls = selector.requirements().iter().any(|r| r.path == "type" && !r.negate && r.value == TLS_SECRET_TYPE);
    match a.verb {
        "list" | "watch" if a.subresource.is_empty() && tls => Ok(()),
        _ => Err("load balancers can only list/watch secrets with field selector type=kubernetes.io/tls"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::user;

    #[test]
    fn only_certificates_are_read() {
        let who = user(LB_USER, &[]);
        let ask = |verb, resource, name, field_selector| {
            decide(&Attributes { verb, resource, name, field_selector, ..Attributes::of(&who) })
        };
        for selector in ["type=kubernetes.io/tls", "type==kubernetes.io/tls,metadata.namespace=web"] {
            assert_eq!((ask("list", "secrets", "", selector), ask("watch", "secrets", "", selector)), (Ok(()), Ok(())));
        }
        for (verb, selector) in [
            ("list", ""),
            ("watch", ""),
            ("list", "type!=kubernetes.io/tls"),
            ("list", "type=Opaque"),
            ("list", "metadata.name=db"),
            ("list", "type"),
            ("get", ""),
            ("get", "type=kubernetes.io/tls"),
            ("delete", "type=kubernetes.io/tls"),
            ("deletecollection", "type=kubernetes.io/tls"),
            ("patch", "type=kubernetes.io/tls"),
        ] {
            assert!(ask(verb, "secrets", "db", selector).is_err_and(|why| !why.is_empty()), "{verb} {selector}");
        }
        assert_eq!(ask("list", "services", "", ""), Err(""), "that is RBAC's");
    }
}
