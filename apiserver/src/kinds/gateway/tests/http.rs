//! HTTPRoutes.

use scaleup_api::gateway as api;
use serde_json::json;

use super::super::text;
use super::{check, filled};

#[track_caller]
fn rule(rule: &str, expected: &[&str]) {
    check::<api::HTTPRoute>(&format!("{{rules: [{rule}]}}"), expected);
}

#[test]
fn http_routes_are_filled_in() {
    let everything = json!([{"path": {"type": "PathPrefix", "value": "/"}}]);
    filled::<api::HTTPRoute>("{}", json!({"spec": {"rules": [{"matches": everything}]}}));
    filled::<api::HTTPRoute>(
        "{parentRefs: [{name: g}], rules: [{matches: [{headers: [{name: a, value: b}]}, {path: {value: /x}}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}, fraction: {numerator: 1}}}, {type: CORS, cors: {}}], backendRefs: [{name: b, port: 80}], sessionPersistence: {cookieConfig: {}}}, {filters: [{type: RequestRedirect, requestRedirect: {}}]}]}",
        json!({"spec": {
            "parentRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway"}],
            "rules": [{
                "matches": [
                    {"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"type": "Exact"}]},
                    {"path": {"type": "PathPrefix", "value": "/x"}},
                ],
                "filters": [
                    {"requestMirror": {"backendRef": {"group": "", "kind": "Service"}, "fraction": {"denominator": 100}}},
                    {"cors": {"maxAge": 5}},
                ],
                "backendRefs": [{"group": "", "kind": "Service", "weight": 1}],
                "sessionPersistence": {"type": "Cookie", "cookieConfig": {"lifetimeType": "Session"}},
            }, {"matches": everything, "filters": [{"requestRedirect": {"statusCode": 302}}]}],
        }}),
    );
}

#[test]
fn parents_and_hostnames() {
    let parents = |list: &str, expected: &[&str]| check::<api::HTTPRoute>(&format!("{{parentRefs: {list}}}"), expected);
    let why = |what: &str| {
        format!(
            "spec.parentRefs[1]: Invalid value: \"g\": sectionName or port {what} when parentRefs includes 2 or more references to the same parent"
        )
    };
    parents("[{name: g, sectionName: a}, {name: g, sectionName: b}, {name: g, namespace: other}]", &[]);
    parents("[{name: g, port: 1}, {name: g, port: 2}]", &[]);
    parents("[{name: g}, {name: g}]", &[&why("must be unique")]);
    parents("[{name: g}, {name: g, sectionName: a}]", &[&why("must be specified")]);
    parents(
        "[{kind: '', name: '', port: 70000}]",
        &[
            "spec.parentRefs[0].kind: Required value",
            "spec.parentRefs[0].name: Required value",
            "spec.parentRefs[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ],
    );
    check::<api::HTTPRoute>(
        "{hostnames: [a.example, '*.example', '*', 10.0.0.1]}",
        &[
            &format!("spec.hostnames[2]: Invalid value: \"*\": {}", text::hostname("*").expect_err("bad")),
            &format!(
                "spec.hostnames[3]: Invalid value: \"10.0.0.1\": {}",
                text::hostname("10.0.0.1").expect_err("bad")
            ),
        ],
    );
}

#[test]
fn matches() {
    rule("{matches: [{path: {type: RegularExpression, value: '/a(b|c)'}}, {method: GET}]}", &[]);
    rule(
        "{matches: [{path: {type: Exact, value: a}}, {path: {value: /a//b}}, {path: {type: Glob, value: /}}]}",
        &[
            "$.matches[0].path.value: Invalid value: \"a\": must be an absolute path and start with '/'",
            "$.matches[1].path.value: Invalid value: \"/a//b\": must not contain '//'",
            "$.matches[2].path.type: Unsupported value: \"Glob\": supported values: \"Exact\", \"PathPrefix\", \"RegularExpression\"",
        ],
    );
    rule(
        "{matches: [{method: get, headers: [{name: A, value: b}, {name: a, value: c, type: Prefix}, {name: 'a b'}], queryParams: [{name: q, value: a}, {name: Q, value: b}, {name: q, value: c}]}]}",
        &[
            "$.matches[0].method: Unsupported value: \"get\": supported values: \"CONNECT\", \"DELETE\", \"GET\", \"HEAD\", \"OPTIONS\", \"PATCH\", \"POST\", \"PUT\", \"TRACE\"",
            "$.matches[0].headers[1].name: Duplicate value: \"a\"",
            "$.matches[0].headers[1].type: Unsupported value: \"Prefix\": supported values: \"Exact\", \"RegularExpression\"",
            &format!("$.matches[0].headers[2].name: Invalid value: \"a b\": {}", text::token("a b").expect_err("bad")),
            "$.matches[0].headers[2].value: Required value",
            "$.matches[0].queryParams[2].name: Duplicate value: \"q\"",
        ],
    );
    let rules: Vec<String> = (0..3).map(|_| format!("{{matches: [{}]}}", vec!["{}"; 43].join(", "))).collect();
    check::<api::HTTPRoute>(
        &format!("{{rules: [{}]}}", rules.join(", ")),
        &["spec.rules: Invalid value: 129: the rules of a route may have 128 matches together"],
    );
    check::<api::HTTPRoute>("{rules: [{name: a}, {name: a}]}", &["spec.rules[1].name: Duplicate value: \"a\""]);
}

#[test]
fn backends() {
    rule("{backendRefs: [{name: a, port: 80, weight: 0}, {group: a.b, kind: Bucket, name: c}]}", &[]);
    rule(
        "{backendRefs: [{name: a}, {name: b, port: 80, weight: -1}, {name: c, namespace: A, port: 80, weight: 1000001}]}",
        &[
            "$.backendRefs[0].port: Required value: a reference to a Service must have a port",
            "$.backendRefs[1].weight: Invalid value: -1: must be between 0 and 1000000, inclusive",
            &format!(
                "$.backendRefs[2].namespace: Invalid value: \"A\": {}",
                scaleup_api::names::dns1123_label("A").expect_err("bad")
            ),
            "$.backendRefs[2].weight: Invalid value: 1000001: must be between 0 and 1000000, inclusive",
        ],
    );
}

#[test]
fn filters() {
    rule(
        "{filters: [{type: URLRewrite}, {type: CORS, cors: {}, urlRewrite: {}}, {type: Magic}, {}]}",
        &[
            "$.filters[0].urlRewrite: Required value: must be specified for type URLRewrite",
            "$.filters[1].urlRewrite: Forbidden: may only be specified for type URLRewrite",
            "$.filters[2].type: Unsupported value: \"Magic\": supported values: \"RequestHeaderModifier\", \"ResponseHeaderModifier\", \"RequestMirror\", \"RequestRedirect\", \"URLRewrite\", \"CORS\", \"ExtensionRef\"",
            "$.filters[3].type: Required value",
        ],
    );
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}}}";
    rule(&format!("{{filters: [{mirror}, {mirror}]}}"), &[]);
    rule(
        "{filters: [{type: RequestRedirect, requestRedirect: {}}, {type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}], backendRefs: [{name: a, port: 80}]}",
        &[
            "$.filters[1]: Invalid value: \"RequestRedirect\": RequestRedirect filter cannot be repeated",
            "$.filters: Forbidden: RequestRedirect and URLRewrite must not be used together",
            "$.backendRefs: Forbidden: must not be used together with a RequestRedirect filter",
        ],
    );
    rule(
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: \"b\\r\\nc: d\"}], add: [{name: b, value: c}], remove: [a, '']}}]}",
        &[
            "$.filters[0].requestHeaderModifier.set[0].value: Invalid value: \"b\\r\\nc: d\": must not contain control characters",
            "$.filters[0].requestHeaderModifier.remove[0]: Duplicate value: \"a\"",
            "$.filters[0].requestHeaderModifier.remove[1]: Required value",
        ],
    );
    rule(
        "{filters: [{type: RequestRedirect, requestRedirect: {scheme: ftp, hostname: '*.a', port: 0, statusCode: 200, path: {type: ReplaceFullPath, replacePrefixMatch: /a}}}]}",
        &[
            "$.filters[0].requestRedirect.scheme: Unsupported value: \"ftp\": supported values: \"http\", \"https\"",
            &format!(
                "$.filters[0].requestRedirect.hostname: Invalid value: \"*.a\": {}",
                text::precise_hostname("*.a").expect_err("bad")
            ),
            "$.filters[0].requestRedirect.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "$.filters[0].requestRedirect.statusCode: Invalid value: 200: must be one of 301, 302, 303, 307, 308",
            "$.filters[0].requestRedirect.path.replaceFullPath: Required value: must be specified for type ReplaceFullPath",
            "$.filters[0].requestRedirect.path.replacePrefixMatch: Forbidden: may only be specified for type ReplacePrefixMatch",
        ],
    );
    rule(
        "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a}, percent: 101, fraction: {numerator: 3, denominator: 2}}}, {type: CORS, cors: {allowOrigins: ['*', 'https://a'], allowMethods: [GET, GET, got], maxAge: 0}}]}",
        &[
            "$.filters[0].requestMirror.backendRef.port: Required value: a reference to a Service must have a port",
            "$.filters[0].requestMirror.percent: Invalid value: 101: must be between 0 and 100, inclusive",
            "$.filters[0].requestMirror.fraction: Forbidden: only one of percent and fraction may be specified",
            "$.filters[0].requestMirror.fraction.numerator: Invalid value: 3: must be between 0 and 2, inclusive",
            "$.filters[1].cors.allowOrigins: Invalid value: \"*\": must be the only item",
            "$.filters[1].cors.allowMethods[1]: Duplicate value: \"GET\"",
            "$.filters[1].cors.allowMethods[2]: Invalid value: \"got\": must be '*' or a method, e.g. 'GET'",
            "$.filters[1].cors.maxAge: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ],
    );
}

#[test]
fn prefixes_are_replaced_where_there_is_one() {
    let rewrite =
        "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]";
    rule(&format!("{{{rewrite}}}"), &[]);
    rule(&format!("{{{rewrite}, matches: [{{path: {{value: /a}}}}]}}"), &[]);
    let why = "must be exactly one, of type PathPrefix, when a filter has path.replacePrefixMatch";
    rule(
        &format!("{{{rewrite}, matches: [{{path: {{type: Exact, value: /a}}}}]}}"),
        &[&format!("$.matches: Invalid value: 1: {why}")],
    );
    rule(
        &format!("{{matches: [{{}}, {{}}], backendRefs: [{{name: a, port: 80, {rewrite}}}]}}"),
        &[&format!("$.matches: Invalid value: 2: {why}")],
    );
}

#[test]
fn times_and_retries() {
    rule("{timeouts: {request: 10s, backendRequest: 1s}, retry: {codes: [503], attempts: 0, backoff: 10ms}}", &[]);
    rule("{timeouts: {request: 0s, backendRequest: 1s}}", &[]);
    let format = "must be a duration: one to four numbers with a unit of h, m, s or ms (e.g. '1m30s')";
    rule(
        "{timeouts: {request: 1s, backendRequest: 2s}, retry: {codes: [200], attempts: -1, backoff: 1.5s}, sessionPersistence: {sessionName: 'a;b', type: IP, cookieConfig: {lifetimeType: Permanent}}}",
        &[
            "$.timeouts.backendRequest: Invalid value: \"2s\": must not be longer than the request timeout",
            "$.retry.codes[0]: Invalid value: 200: must be between 400 and 599, inclusive",
            "$.retry.attempts: Invalid value: -1: must be between 0 and 1000, inclusive",
            &format!("$.retry.backoff: Invalid value: \"1.5s\": {format}"),
            &format!(
                "$.sessionPersistence.sessionName: Invalid value: \"a;b\": {}",
                text::token("a;b").expect_err("bad")
            ),
            "$.sessionPersistence.type: Unsupported value: \"IP\": supported values: \"Cookie\", \"Header\"",
            "$.sessionPersistence.absoluteTimeout: Required value: must be specified when cookieConfig.lifetimeType is Permanent",
        ],
    );
}
