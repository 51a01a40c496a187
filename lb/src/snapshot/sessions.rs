//! `sessionPersistence` of a rule (GEP-1619) as a [`SessionPolicy`]. Pure.

use std::sync::Arc;
use std::time::Duration;

use scaleup_api::gateway::SessionPersistence;

use super::filters::editable;
use super::objects::RouteKey;
use super::references::Fault;
use super::routes::PathMatch;
use crate::policy::{SessionCarrier, SessionPolicy};

/// Longest name of a cookie or header, in bytes (the API's limit).
const MAX_NAME_BYTES: usize = 128;

/// What a rule says about sessions; `rule` is its name or index, `paths` are those of its matches.
pub(super) fn policy<'a>(
    written: &SessionPersistence,
    route: &RouteKey,
    rule: &str,
    paths: impl Iterator<Item = &'a PathMatch>,
) -> Result<Arc<SessionPolicy>, Fault> {
    let invalid = |message: String| Fault::new("UnsupportedValue", format!("sessionPersistence: {message}"));
    let duration = |name: &str, text: Option<&str>| -> Result<Option<Duration>, Fault> {
        let Some(text) = text else { return Ok(None) };
        let parsed = scaleup_api::duration::parse(text).filter(|duration| !duration.is_zero());
        parsed.map(Some).ok_or_else(|| invalid(format!("{name} {text:?} is not a duration such as 1h")))
    };
    let absolute = duration("absoluteTimeout", written.absolute_timeout.as_deref())?;
    let idle = duration("idleTimeout", written.idle_timeout.as_deref())?;
    let lifetime = written.cookie_config.as_ref().and_then(|config| config.lifetime_type.as_deref());
    let permanent = match lifetime.unwrap_or("Session") {
        "Session" => false,
        "Permanent" if absolute.is_some() => true,
        "Permanent" => return Err(invalid("cookieConfig.lifetimeType Permanent needs an absoluteTimeout".to_owned())),
        other => return Err(invalid(format!("cookieConfig.lifetimeType {other:?} is not supported"))),
    };
    let name = written.session_name.clone().unwrap_or_else(|| default_name(route, rule));
    if name.len() > MAX_NAME_BYTES || http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(invalid(format!("sessionName {name:?} is not the name of a cookie or header")));
    }
    let (name, carrier) = match written.r#type.as_deref().unwrap_or("Cookie") {
        "Cookie" => (name.into(), SessionCarrier::Cookie { path: cookie_path(paths), permanent }),
        "Header" => (editable(&name).map_err(|fault| invalid(fault.message))?, SessionCarrier::Header),
        other => return Err(invalid(format!("type {other:?} is not supported"))),
    };
    Ok(Arc::new(SessionPolicy { name, carrier, absolute, idle }))
}

/// Cookies of different rules must not be taken for each other. The name says nothing of the cluster.
fn default_name(route: &RouteKey, rule: &str) -> String {
    let text = format!("{} {} {rule}", route.kind.as_str(), route.key);
    // FNV-1a
    let hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("session-{hash:016x}")
}

/// The path that all matches have in common, so that the cookie is sent to none else; `/` if they differ or are no plain paths.
fn cookie_path<'a>(mut paths: impl Iterator<Item = &'a PathMatch>) -> Arc<str> {
    let plain = |path: &'a PathMatch| match path {
        PathMatch::Exact(path) | PathMatch::Prefix(path) => Some(path),
        PathMatch::Regex(_) | PathMatch::AnyService(_) => None,
    };
    let first = paths.next().and_then(plain);
    let same = first.filter(|first| paths.all(|path| plain(path) == Some(*first)));
    same.filter(|path| path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b';' | b',' | b'"' | b'\\')))
        .cloned()
        .unwrap_or_else(|| "/".into())
}

#[cfg(test)]
mod tests {
    use super::super::objects::{ObjectKey, RouteKind};
    use super::*;
    use serde_json::{Value, json};

    fn of(written: Value, paths: &[PathMatch]) -> Result<Arc<SessionPolicy>, Fault> {
        let route = RouteKey { kind: RouteKind::HTTPRoute, key: ObjectKey::new("shop", "web") };
        policy(&serde_json::from_value(written).expect("a sessionPersistence"), &route, "0", paths.iter())
    }

    fn prefix(path: &str) -> PathMatch {
        PathMatch::Prefix(path.into())
    }

    #[test]
    fn defaults_are_a_session_cookie_of_the_rules_path() {
        let policy = of(json!({}), &[prefix("/a")]).expect("valid");
        let SessionCarrier::Cookie { path, permanent } = &policy.carrier else { panic!("{policy:?}") };
        assert_eq!((&**path, permanent, policy.absolute, policy.idle), ("/a", &false, None, None));
        assert!(policy.name.starts_with("session-") && policy.name.len() == 24, "{}", policy.name);
        let path = |paths: &[PathMatch]| match &of(json!({}), paths).expect("valid").carrier {
            SessionCarrier::Cookie { path, .. } => path.to_string(),
            SessionCarrier::Header => panic!("a cookie"),
        };
        assert_eq!(path(&[prefix("/a"), PathMatch::Exact("/a".into())]), "/a");
        assert_eq!(path(&[prefix("/a"), prefix("/b")]), "/");
        assert_eq!(path(&[PathMatch::Regex("/a.*".into())]), "/");
        assert_eq!(path(&[prefix("/a;Domain=x")]), "/");
    }

    #[test]
    fn everything_that_is_said_is_followed() {
        let written = json!({"sessionName": "Sid", "absoluteTimeout": "1h", "idleTimeout": "10m", "type": "Cookie",
            "cookieConfig": {"lifetimeType": "Permanent"}});
        let policy = of(written, &[prefix("/")]).expect("valid");
        assert_eq!(
            (&*policy.name, policy.absolute, policy.idle),
            ("Sid", Some(Duration::from_secs(3_600)), Some(Duration::from_secs(600)))
        );
        assert!(matches!(&policy.carrier, SessionCarrier::Cookie { permanent: true, .. }));
        let policy = of(json!({"sessionName": "X-Session", "type": "Header"}), &[]).expect("valid");
        assert_eq!((&*policy.name, &policy.carrier), ("x-session", &SessionCarrier::Header), "found by its lower case");
    }

    #[test]
    fn what_cannot_be_followed_is_said() {
        for (written, expected) in [
            (json!({"cookieConfig": {"lifetimeType": "Permanent"}}), "needs an absoluteTimeout"),
            (json!({"absoluteTimeout": "soon"}), "not a duration"),
            (json!({"idleTimeout": "0s"}), "not a duration"),
            (json!({"type": "Address"}), "not supported"),
            (json!({"sessionName": "a b"}), "not the name"),
            (json!({"sessionName": "a=b"}), "not the name"),
            (json!({"sessionName": "Content-Length", "type": "Header"}), "cannot be changed"),
        ] {
            let fault = of(written.clone(), &[]).expect_err("not valid");
            assert!(fault.message.contains(expected), "{written}: {}", fault.message);
        }
    }
}
