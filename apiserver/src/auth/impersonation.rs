//! `Impersonate-*` headers (`kubectl --as`): a user who may, acts as another.
//!
//! Every part that is taken on (user, groups, UID, extra) needs the verb `impersonate` on it, as in upstream's
//! `WithImpersonation`. Without these headers nothing here costs anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue};

use super::rbac::{Attributes, Authorizer, Decision};
use crate::error::ApiError;
use crate::user::UserInfo;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";
/// Values (groups and extra) one request may take on.
const MAX_VALUES: usize = 128;
const AUTHENTICATION: &str = "authentication.k8s.io";

/// What the headers ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

/// `user`, or whom they impersonate. 400 for headers that make no sense, 403 for what they may not take on.
pub(crate) fn apply(
    authorizer: &Authorizer,
    user: Arc<UserInfo>,
    headers: &HeaderMap,
) -> Result<Arc<UserInfo>, ApiError> {
    let Some(wanted) = parse(headers)? else { return Ok(user) };
    authorize(authorizer, &user, &wanted)?;
    Ok(Arc::new(assume(wanted)))
}

fn parse(headers: &HeaderMap) -> Result<Option<Wanted>, ApiError> {
    if !headers.keys().any(|k| k.as_str().starts_with("impersonate-")) {
        return Ok(None);
    }
    let text = |value: &HeaderValue| {
        value.to_str().map(str::to_owned).map_err(|_| ApiError::bad_request("impersonation headers must be ASCII"))
    };
    let mut wanted = Wanted::default();
    let mut values = 0;
    for (name, value) in headers {
        match name.as_str() {
            USER if wanted.user.is_empty() => wanted.user = text(value)?,
            UID if wanted.uid.is_empty() => wanted.uid = text(value)?,
            USER | UID => return Err(ApiError::bad_request(format!("header {name} is given twice"))),
            GROUP => wanted.groups.push(text(value)?),
            other => {
                let Some(key) = other.strip_prefix(EXTRA_PREFIX) else { continue };
                wanted.extra.entry(unescape(key)).or_default().push(text(value)?);
            }
        }
        values += 1;
        if values > MAX_VALUES {
            return Err(ApiError::bad_request(format!("more than {MAX_VALUES} impersonation headers")));
        }
    }
    if wanted == Wanted::default() {
        return Ok(None);
    }
    if wanted.user.is_empty() {
        return Err(ApiError::bad_request(
            "requested to impersonate groups, a UID or extra values without impersonating a user: set Impersonate-User",
        ));
    }
    Ok(Some(wanted))
}

/// Undoes percent-encoding in the key of an extra header; what is not well-formed stays as it is, as upstream does.
fn unescape(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match (first, tail) {
            (b'%', [a, b, after @ ..]) => match (hex(*a), hex(*b)) {
                (Some(a), Some(b)) => {
                    out.push(a * 16 + b);
                    rest = after;
                }
                _ => return key.to_owned(),
            },
            (b'%', _) => return key.to_owned(),
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

/// Namespace and name of `system:serviceaccount:NS:NAME`.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

fn authorize(authorizer: &Authorizer, user: &UserInfo, wanted: &Wanted) -> Result<(), ApiError> {
    let base = Attributes { verb: "impersonate", ..Attributes::of(user) };
    let (namespace, resource, name) = match service_account(&wanted.user) {
        Some((namespace, name)) => (namespace, "serviceaccounts", name),
        None => ("", "users", wanted.user.as_str()),
    };
    let mut asked = vec![Attributes { namespace, resource, name, ..base }];
    asked.extend(wanted.groups.iter().map(|name| Attributes { resource: "groups", name, ..base }));
    if !wanted.uid.is_empty() {
        asked.push(Attributes { group: AUTHENTICATION, resource: "uids", name: &wanted.uid, ..base });
    }
    for (key, values) in &wanted.extra {
        let of = |name| Attributes { group: AUTHENTICATION, resource: "userextras", subresource: key, name, ..base };
        asked.extend(values.iter().map(|value| of(value.as_str())));
    }
    for attributes in &asked {
        if let Decision::Deny { reason } = authorizer.authorize(attributes) {
            return Err(attributes.forbidden_error(&reason));
        }
    }
    Ok(())
}

fn assume(wanted: Wanted) -> UserInfo {
    let mut groups = wanted.groups;
    if let (true, Some((namespace, _))) = (groups.is_empty(), service_account(&wanted.user)) {
        groups.extend(["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
    }
    let anonymous = wanted.user == "system:anonymous";
    let told = groups.iter().any(|g| g == "system:authenticated" || g == "system:unauthenticated");
    if anonymous && !groups.iter().any(|g| g == "system:unauthenticated") {
        groups.push("system:unauthenticated".into());
    } else if !anonymous && !told {
        groups.push("system:authenticated".into());
    }
    UserInfo { name: wanted.user, uid: wanted.uid, groups, extra: wanted.extra }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::testing::{MapReader, user};
    use serde_json::json;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(k, v)| (http::HeaderName::from_static(k), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn authorizer() -> Authorizer {
        let rbac = "rbac.authorization.k8s.io";
        Authorizer::new(MapReader::new(&[
            (
                rbac,
                "clusterroles",
                json!({"metadata": {"name": "imp"}, "rules": [
                    {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"]},
                    {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["devs"]},
                    {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["serviceaccounts"]},
                    {"verbs": ["impersonate"], "apiGroups": [AUTHENTICATION], "resources": ["userextras/scopes"],
                     "resourceNames": ["view"]},
                ]}),
            ),
            (
                rbac,
                "clusterrolebindings",
                json!({"metadata": {"name": "imp"}, "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "imp"},
                       "subjects": [{"kind": "User", "apiGroup": rbac, "name": "alice"}]}),
            ),
        ]))
    }

    fn ask(who: UserInfo, list: &[(&'static str, &str)]) -> Result<Arc<UserInfo>, ApiError> {
        apply(&authorizer(), Arc::new(who), &headers(list))
    }

    #[test]
    fn only_what_is_allowed_may_be_taken_on() {
        let alice = || user("alice", &[]);
        assert_eq!(ask(alice(), &[]).unwrap().name, "alice");
        let bob = ask(alice(), &[(USER, "bob"), (GROUP, "devs"), ("impersonate-extra-scopes", "view")]).unwrap();
        assert_eq!(bob.name, "bob");
        assert_eq!(bob.groups, ["devs", "system:authenticated"]);
        assert_eq!(bob.extra["scopes"], ["view"]);
        let sa = ask(alice(), &[(USER, "system:serviceaccount:web:default")]).unwrap();
        assert_eq!(sa.groups, ["system:serviceaccounts", "system:serviceaccounts:web", "system:authenticated"]);
        for denied in [
            &[(USER, "carol")][..],
            &[(USER, "bob"), (GROUP, "system:masters")],
            &[(USER, "bob"), (UID, "1")],
            &[(USER, "bob"), ("impersonate-extra-scopes", "admin")],
            &[(USER, "bob"), ("impersonate-extra-other", "view")],
        ] {
            assert_eq!(ask(alice(), denied).unwrap_err().code.as_u16(), 403, "{denied:?}");
        }
        let error = ask(alice(), &[(USER, "carol")]).unwrap_err();
        assert_eq!(
            error.message,
            "users \"carol\" is forbidden: User \"alice\" cannot impersonate resource \"users\" in API group \"\" at the \
             cluster scope"
        );
        assert_eq!(ask(user("mallory", &[]), &[(USER, "bob")]).unwrap_err().code.as_u16(), 403);
    }

    #[test]
    fn nonsense_is_a_bad_request() {
        let admin = || user("admin", &["system:masters"]);
        for bad in [&[(GROUP, "devs")][..], &[(USER, "a"), (USER, "b")], &[(UID, "1")], &[(USER, "")]] {
            let answer = ask(admin(), bad);
            match bad {
                [(USER, "")] => assert_eq!(answer.unwrap().name, "admin"),
                _ => assert_eq!(answer.unwrap_err().code.as_u16(), 400, "{bad:?}"),
            }
        }
        let many: Vec<_> = std::iter::once((USER, "a")).chain((0..MAX_VALUES).map(|_| (GROUP, "g"))).collect();
        assert_eq!(ask(admin(), &many).unwrap_err().code.as_u16(), 400);
    }

    #[test]
    fn anonymous_stays_unauthenticated() {
        let anonymous = ask(user("admin", &["system:masters"]), &[(USER, "system:anonymous")]).unwrap();
        assert_eq!(anonymous.groups, ["system:unauthenticated"]);
    }

    #[test]
    fn extra_keys_are_unescaped() {
        for (key, expected) in
            [("a%2fb", "a/b"), ("plain", "plain"), ("bad%2", "bad%2"), ("bad%zz", "bad%zz"), ("%ff", "%ff")]
        {
            assert_eq!(unescape(key), expected);
        }
    }
}
