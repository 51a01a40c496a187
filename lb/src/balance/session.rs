//! Sessions of a rule (`sessionPersistence`, GEP-1619): a client comes back to the endpoint that it was given a [`token`] for, whatever
//! weights and algorithm say; if that one is gone or not well, to another, for which it is given a new token.
//!
//! Only rules that ask for sessions pay for them. Nothing is remembered here: the token is all there is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::cookies;
use super::token::{self, Key, Tag, Token};
use crate::backend::{Backend, EndpointState};
use crate::policy::{SessionCarrier, SessionPolicy};
use crate::route::{Head, Rule};

/// A session's last use is told anew after this part of `idleTimeout`, not with each request.
const RENEW_PART: u32 = 8;

/// Where a request goes, before an endpoint is chosen.
pub(crate) struct Chosen {
    /// Index in the rule's backends; `None`: there is nobody.
    pub share: Option<usize>,
    /// `None`: the share's reference is not valid.
    pub backend: Option<Arc<Backend>>,
    /// If the rule keeps sessions.
    pub session: Option<Box<Session>>,
}

/// A request's session.
pub(crate) struct Session {
    policy: Arc<SessionPolicy>,
    /// Index of its endpoint in the chosen backend.
    pinned: Option<u32>,
    /// Unix seconds: when it began, and now.
    began: u32,
    now: u32,
    /// The client must be told even if its endpoint stays.
    renew: bool,
    https: bool,
}

/// Endpoints of a backend by what stands for them; made when the first session asks.
#[derive(Debug)]
pub(crate) struct Tags {
    key: Key,
    by_tag: HashMap<Tag, u32>,
}

impl Tags {
    /// Of the endpoints of a port of the Service with this UID.
    pub fn new(uid: &str, port: u16, endpoints: &[Arc<EndpointState>]) -> Self {
        let key = Key::new(uid, port);
        let by_tag = (0..).zip(endpoints).map(|(index, endpoint)| (key.tag(endpoint.addr), index)).collect();
        Self { key, by_tag }
    }
}

/// Chooses a share of `rule`; `random` gives any number. `https`: the client came over TLS.
pub(crate) fn choose(rule: &Rule, head: &impl Head, https: bool, random: impl FnOnce() -> u32) -> Chosen {
    let Some(policy) = &rule.policy.session else {
        let (share, backend) = by_weight(rule, random);
        return Chosen { share, backend, session: None };
    };
    let mut session = Box::new(Session::new(policy.clone(), https, now()));
    let (share, backend) = match session.resume(rule, head) {
        Some((share, backend)) => (Some(share), Some(backend)),
        None => by_weight(rule, random),
    };
    Chosen { share, backend, session: Some(session) }
}

/// Likewise for a request whose share, and its backend, somebody has chosen.
pub(crate) fn with_share(
    rule: &Rule,
    head: &impl Head,
    https: bool,
    share: usize,
    backend: Option<Arc<Backend>>,
) -> Chosen {
    let session = rule.policy.session.as_ref().map(|policy| {
        let new = || Box::new(Session::new(policy.clone(), https, now()));
        let mut session = new();
        match (session.resume(rule, head), &backend) {
            (Some((known, other)), Some(backend)) if known == share && Arc::ptr_eq(&other, backend) => session,
            _ => new(),
        }
    });
    Chosen { share: Some(share), backend, session }
}

fn by_weight(rule: &Rule, random: impl FnOnce() -> u32) -> (Option<usize>, Option<Arc<Backend>>) {
    let share = rule.choose(random);
    let cell = share.and_then(|index| rule.backends.get(index)?.cell.as_ref());
    (share, cell.map(|cell| cell.load_full()))
}

/// Unix seconds.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

impl Session {
    fn new(policy: Arc<SessionPolicy>, https: bool, now: u32) -> Self {
        Self { policy, pinned: None, began: now, now, renew: false, https }
    }

    /// Index of the endpoint to go on with, in the backend that was chosen with it.
    pub fn pinned(&self) -> Option<u32> {
        self.pinned
    }

    /// Goes on with the session that a request names: its share (of whatever weight) and backend.
    fn resume(&mut self, rule: &Rule, head: &impl Head) -> Option<(usize, Arc<Backend>)> {
        let SessionPolicy { name, carrier, absolute, idle } = &*self.policy;
        let is_cookie = matches!(carrier, SessionCarrier::Cookie { .. });
        let sent = head.header(if is_cookie { "cookie" } else { name })?;
        let token = Token::parse(if is_cookie { cookies::find(&sent, name)? } else { &sent })?;
        let (share, backend, index) = rule.backends.iter().enumerate().find_map(|(share, weighted)| {
            let backend = weighted.cell.as_ref()?.load_full();
            let index = *backend.tags().by_tag.get(&token.tag)?;
            Some((share, backend, index))
        })?;
        if self.policy.is_timed() {
            let times = token.times(&backend.tags().key)?;
            if token::is_over(times, self.now, *absolute, *idle) {
                return None;
            }
            let unused = Duration::from_secs(self.now.saturating_sub(times.1).into());
            self.renew = idle.is_some_and(|idle| unused >= (idle / RENEW_PART).max(Duration::from_secs(1)));
            self.began = times.0;
        }
        self.pinned = Some(index);
        Some((share, backend))
    }

    /// Name and value of the field that the client must be given when `endpoint` of `backend` has answered.
    pub fn field(&self, backend: &Backend, endpoint: &EndpointState) -> Option<(&str, String)> {
        let pinned = self.pinned.and_then(|index| backend.endpoints.get(index as usize));
        let stays = pinned.is_some_and(|pinned| pinned.id == endpoint.id);
        if stays && !self.renew {
            return None;
        }
        let SessionPolicy { name, carrier, absolute, .. } = &*self.policy;
        // Another endpoint's session is a new one.
        let began = if stays { self.began } else { self.now };
        let key = &backend.tags().key;
        let tag = key.tag(endpoint.addr);
        let token = if self.policy.is_timed() { Token::timed(key, tag, began, self.now) } else { Token::untimed(tag) };
        match carrier {
            SessionCarrier::Header => Some((name, token.text())),
            SessionCarrier::Cookie { path, permanent } => {
                let passed = Duration::from_secs(self.now.saturating_sub(began).into());
                let age = absolute.filter(|_| *permanent).map(|absolute| absolute.saturating_sub(passed));
                Some(("set-cookie", cookies::set(name, &token.text(), path, age, self.https)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendCell;
    use crate::backend::tests::backend;
    use crate::balance::tests::Request;
    use crate::policy::RequestPolicy;
    use crate::snapshot::routes::RuleId;
    use crate::stats::RouteStats;

    fn seconds(n: u64) -> Option<Duration> {
        Some(Duration::from_secs(n))
    }

    fn rule(absolute: Option<Duration>, idle: Option<Duration>, carrier: SessionCarrier) -> Rule {
        let session = SessionPolicy { name: "sid".into(), carrier, absolute, idle };
        let policy = RequestPolicy { session: Some(Arc::new(session)), ..RequestPolicy::default() };
        let cell = Arc::new(BackendCell::from_pointee(backend(&["10.0.0.1:1", "10.0.0.2:1"], false)));
        Rule::of_service(RuleId::default(), cell, Arc::new(policy), Arc::new(RouteStats::new(1)))
    }

    /// What the client is given at `now` when it comes with `token`; the endpoint is the second, or the one it had.
    fn ask(rule: &Rule, token: Option<&str>, now: u32) -> (Option<u32>, Option<String>) {
        let policy = rule.policy.session.clone().expect("sessions");
        let mut session = Session::new(policy.clone(), true, now);
        let name = if policy.carrier == SessionCarrier::Header { "sid" } else { "cookie" };
        let sent: &'static str = token.unwrap_or_default().to_owned().leak();
        let head = Request { headers: vec![(name, sent)], ..Request::default() };
        let resumed = session.resume(rule, &head);
        let backend = rule.backends[0].cell.as_ref().expect("a backend").load_full();
        assert_eq!(resumed.is_some(), session.pinned().is_some());
        let endpoint = &backend.endpoints[session.pinned().unwrap_or(1) as usize];
        (session.pinned(), session.field(&backend, endpoint).map(|(_, value)| value))
    }

    #[test]
    fn a_session_ends_by_its_age_or_when_it_is_not_used() {
        let header = SessionCarrier::Header;
        let by_age = rule(seconds(100), None, header.clone());
        let token = ask(&by_age, None, 1_000).1.expect("a token");
        assert_eq!(ask(&by_age, Some(&token), 1_099), (Some(1), None));
        let (pinned, new) = ask(&by_age, Some(&token), 1_100);
        assert!(pinned.is_none() && new.is_some_and(|new| new != token));
        let by_use = rule(None, seconds(80), header);
        let token = ask(&by_use, None, 1_000).1.expect("a token");
        assert_eq!(ask(&by_use, Some(&token), 1_009), (Some(1), None), "used a moment ago: nothing new to say");
        let (pinned, renewed) = ask(&by_use, Some(&token), 1_070);
        let renewed = renewed.expect("told that it was used");
        assert_eq!(pinned, Some(1));
        assert_eq!(ask(&by_use, Some(&renewed), 1_149).0, Some(1));
        assert_eq!(ask(&by_use, Some(&token), 1_149).0, None);
    }

    #[test]
    fn being_used_makes_no_session_older_than_it_may_be() {
        let both = rule(seconds(100), seconds(80), SessionCarrier::Header);
        let token = ask(&both, None, 1_000).1.expect("a token");
        let renewed = ask(&both, Some(&token), 1_060).1.expect("renewed");
        assert_eq!(ask(&both, Some(&renewed), 1_099).0, Some(1));
        assert_eq!(ask(&both, Some(&renewed), 1_101).0, None);
    }

    #[test]
    fn a_permanent_cookie_lives_as_long_as_its_session() {
        let rule = rule(seconds(100), seconds(80), SessionCarrier::Cookie { path: "/a".into(), permanent: true });
        let field = ask(&rule, None, 1_000).1.expect("a cookie");
        assert!(field.ends_with("; Path=/a; Max-Age=100; HttpOnly; SameSite=Lax; Secure"), "{field}");
        let sent = field.split(';').next().expect("a pair");
        let field = ask(&rule, Some(sent), 1_060).1.expect("renewed");
        assert!(field.contains("; Max-Age=40;"), "{field}");
    }

    #[test]
    fn a_token_without_times_is_none_where_sessions_end() {
        let endless = rule(None, None, SessionCarrier::Header);
        let token = ask(&endless, None, 1_000).1.expect("a token");
        assert_eq!(ask(&endless, Some(&token), u32::MAX), (Some(1), None));
        assert_eq!(ask(&rule(seconds(100), None, SessionCarrier::Header), Some(&token), 1_000).0, None);
    }
}
