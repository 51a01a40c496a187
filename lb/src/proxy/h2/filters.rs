//! What [`crate::proxy::filters`] decides, applied to heads as this module has them.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};

use super::answer::Answer;
use super::head::Head;
use crate::proxy::filters::{Edits, Fields, Filters, Place};
use crate::route::{Head as _, Rule};

/// The answer to a request that is not forwarded.
pub(super) fn answer(filters: Filters<'_>, head: &Head, rule: &Rule, place: Place) -> Option<Answer> {
    let ready = filters.answer(head, &rule.path, place)?;
    let mut fields = HeaderMap::new();
    for (name, value) in ready.fields {
        if let Ok(value) = HeaderValue::from_str(&value) {
            fields.append(HeaderName::from_static(name), value);
        }
    }
    Some(Answer { status: ready.status, text: String::new(), retry_after: None, fields })
}

/// Changes a request on its way. What would make no valid head is left as it was.
pub(super) fn request(filters: Filters<'_>, head: &mut Head, rule: &Rule) {
    let new = filters.rewrite(head, &rule.path);
    let host = new.host.and_then(|host| Authority::try_from(host).ok());
    let path = new.path.map(|path| match head.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    });
    if let Some(path) = path.and_then(|path| PathAndQuery::try_from(path).ok()) {
        head.path = path;
    }
    if let Some(host) = host {
        head.set_authority(host);
    }
    edit(filters.request_edits(), &mut head.fields);
}

/// Changes a response on its way; `own` are fields of ours, `session` tells the client its session.
pub(super) fn response(filters: Filters<'_>, own: &Fields, session: Option<&(&str, String)>, fields: &mut HeaderMap) {
    let edits = filters.response_edits(own).with_session(session);
    if !edits.is_empty() {
        edit(edits, fields);
    }
}

/// Takes from a head of class 1xx what would be taken from the response's.
pub(super) fn interim(filters: Filters<'_>, own: &Fields, fields: &mut HeaderMap) {
    if !filters.is_empty() || !own.is_empty() {
        drop_fields(filters.response_edits(own), fields);
    }
}

fn drop_fields(edits: Edits<'_>, fields: &mut HeaderMap) {
    let dropped: Vec<HeaderName> = fields.keys().filter(|name| edits.drops(name.as_str())).cloned().collect();
    for name in dropped {
        fields.remove(name);
    }
}

fn edit(edits: Edits<'_>, fields: &mut HeaderMap) {
    drop_fields(edits, fields);
    for (name, value) in edits.added() {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            fields.append(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use http::{Request, StatusCode};

    use super::*;
    use crate::backend::BackendCell;
    use crate::backend::tests::backend;
    use crate::config::ProxyConfig;
    use crate::policy::RequestPolicy;
    use crate::snapshot::routes::{Filter, HeaderEdits, PathMatch, PathRewrite, RedirectPlan, RuleId};
    use crate::stats::RouteStats;

    fn rule(filters: Vec<Filter>) -> Rule {
        let cell = Arc::new(BackendCell::from_pointee(backend(&[], false)));
        let stats = Arc::new(RouteStats::new(1));
        let mut rule = Rule::of_service(RuleId::default(), cell, Arc::new(RequestPolicy::default()), stats);
        rule.path = PathMatch::Prefix("/old".into());
        rule.filters = filters.into();
        rule
    }

    fn head() -> Head {
        let request = Request::builder().uri("http://a.example/old/x?q=1").header("x-gone", "1").header("x-kept", "1");
        let config = ProxyConfig::default();
        Head::check(request.body(()).expect("a request"), true, IpAddr::from([192, 0, 2, 7]), &config)
            .expect("a good head")
    }

    fn edits() -> HeaderEdits {
        let pair = |name: &str, value: &str| (name.into(), value.into());
        HeaderEdits { set: vec![pair("x-set", "2")], add: vec![pair("x-kept", "3")], remove: vec!["x-gone".into()] }
    }

    #[test]
    fn requests_are_rewritten_for_both_versions() {
        let path = Some(PathRewrite::Prefix("/new".into()));
        let rewrite = Filter::Rewrite { hostname: Some("B.example".into()), path };
        let rule = rule(vec![rewrite, Filter::RequestHeaders(edits())]);
        let mut head = head();
        request(Filters::of_rule(&rule), &mut head, &rule);
        let mut out = Vec::new();
        head.write_http1(None, &mut out);
        let expected = "GET /new/x?q=1 HTTP/1.1|host: B.example|x-kept: 1|x-kept: 3|x-set: 2||";
        assert_eq!(String::from_utf8_lossy(&out).replace("\r\n", "|"), expected);
        assert_eq!(head.host(), "b.example");
        let request = head.to_http2(true).expect("a head");
        assert_eq!(request.uri(), "https://B.example/new/x?q=1");
    }

    #[test]
    fn redirects_answer() {
        let plan = RedirectPlan { scheme: Some("https".into()), hostname: None, port: None, path: None, status: 301 };
        let rule = rule(vec![Filter::Redirect(plan)]);
        let place = Place { https: false, port: 80 };
        let answer = answer(Filters::of_rule(&rule), &head(), &rule, place).expect("an answer");
        assert_eq!(answer.status, StatusCode::MOVED_PERMANENTLY);
        assert_eq!(answer.fields.get("location").map(HeaderValue::as_bytes), Some(&b"https://a.example/old/x?q=1"[..]));
    }

    #[test]
    fn responses_are_edited() {
        let rule = rule(vec![Filter::ResponseHeaders(edits())]);
        let mut fields = HeaderMap::from_iter([(HeaderName::from_static("x-gone"), HeaderValue::from_static("1"))]);
        response(Filters::of_rule(&rule), &vec![("access-control-allow-origin", "*".to_owned())], None, &mut fields);
        assert!(!fields.contains_key("x-gone"));
        assert_eq!(
            (fields["x-set"].as_bytes(), fields["access-control-allow-origin"].as_bytes()),
            (&b"2"[..], &b"*"[..])
        );
    }
}
