//! What the hashing algorithms hash: the first of the policy's sources that a request has, and the cookie that is made for those without.

use std::net::IpAddr;

use super::{cookies, hashing};
use crate::backend::Backend;
use crate::policy::{Algorithm, HashSource};
use crate::route::Head;

/// Longest value that is hashed; the rest does not matter.
const MAX_VALUE_BYTES: usize = 1_024;

/// A request's hash, and what the client must be given so that the next one has the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Affinity {
    /// `None`: the client's address decides.
    pub hash: Option<u64>,
    /// Value of a `Set-Cookie` field for the response.
    pub set_cookie: Option<String>,
}

/// See [`Affinity`]. `https` says whether the client came by TLS, so that its cookie is kept to TLS; `random` makes a new cookie's value
/// and is called once at most.
pub(crate) fn of(backend: &Backend, head: &impl Head, https: bool, random: impl FnOnce() -> u128) -> Affinity {
    let hashes = matches!(backend.policy.algorithm, Some(Algorithm::RingHash | Algorithm::Maglev));
    if !hashes || backend.policy.client_ip_affinity.is_some() {
        return Affinity::default();
    }
    for source in &backend.policy.hash_on {
        match source {
            HashSource::Header(name) => {
                if let Some(value) = head.header(name) {
                    return Affinity { hash: Some(hash(&value)), set_cookie: None };
                }
            }
            HashSource::Query(name) => {
                if let Some(hash) = query(head, name) {
                    return Affinity { hash: Some(hash), set_cookie: None };
                }
            }
            HashSource::Address => return Affinity { hash: Some(of_client(head.client())), set_cookie: None },
            HashSource::Cookie(name, path, ttl) => {
                let sent = head.header("cookie");
                if let Some(value) = sent.as_deref().and_then(|sent| cookies::find(sent, name)) {
                    return Affinity { hash: Some(hash(value)), set_cookie: None };
                }
                let value = format!("{:032x}", random());
                let Some(set_cookie) = cookies::set(name, &value, path, *ttl, https) else {
                    return Affinity::default();
                };
                return Affinity { hash: Some(hash(&value)), set_cookie: Some(set_cookie) };
            }
        }
    }
    Affinity::default()
}

fn of_client(client: IpAddr) -> u64 {
    hashing::of_ip(client.to_canonical())
}

fn hash(value: &str) -> u64 {
    hashing::of_bytes(&value.as_bytes()[..value.len().min(MAX_VALUE_BYTES)])
}

fn query(head: &impl Head, name: &str) -> Option<u64> {
    let mut pairs = url::form_urlencoded::parse(head.query()?.as_bytes());
    pairs.find(|(key, _)| *key == *name).map(|(_, value)| hash(&value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::with_policy;
    use crate::balance::tests::Request;
    use crate::policy::ServicePolicy;
    use std::time::Duration;

    fn affinity(sources: Vec<HashSource>, request: &Request) -> Affinity {
        let policy = ServicePolicy { algorithm: Some(Algorithm::Maglev), hash_on: sources, ..ServicePolicy::default() };
        of(&with_policy(&["10.0.0.1:1"], policy, |_| {}), request, false, || 0xabc)
    }

    fn request(headers: &[(&'static str, &'static str)], query: Option<&'static str>) -> Request {
        Request { headers: headers.to_vec(), query, ..Request::default() }
    }

    #[test]
    fn the_first_source_that_is_there_counts() {
        let sources = || vec![HashSource::Header("x-user".into()), HashSource::Query("u".into()), HashSource::Address];
        let get = |headers: &[(&'static str, &'static str)], query| affinity(sources(), &request(headers, query)).hash;
        assert_eq!(get(&[("x-user", "anna")], Some("u=bert")), get(&[("x-user", "anna")], None));
        assert_eq!(get(&[], Some("x=1&u=b%65rt")), get(&[], Some("u=bert")));
        assert_ne!(get(&[], Some("u=bert")), get(&[], Some("u=anna")));
        assert_eq!(get(&[], Some("v=1")), get(&[], None), "the address");
        assert_eq!(affinity(vec![], &request(&[], None)), Affinity::default());
    }

    #[test]
    fn a_cookie_is_made_once_and_leads_back() {
        let sources = |ttl| vec![HashSource::Cookie("lb".into(), "/app".into(), ttl)];
        let made = affinity(sources(Some(Duration::from_secs(60))), &request(&[("cookie", "xlb=1; lb=")], None));
        let value = "00000000000000000000000000000abc";
        let expected = format!("lb={value}; Path=/app; Max-Age=60; HttpOnly; SameSite=Lax");
        assert_eq!(made.set_cookie.as_deref(), Some(&*expected));
        let again = request(&[("cookie", "a=b; lb=00000000000000000000000000000abc; c=d")], None);
        assert_eq!(affinity(sources(None), &again), Affinity { hash: made.hash, set_cookie: None });
    }
}
