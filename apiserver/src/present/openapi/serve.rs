//! `/openapi/…` over HTTP: content negotiation, ETags and the hash in the URL, as `k8s.io/kube-openapi` does it.

use axum::body::Body;
use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, EXPIRES, IF_NONE_MATCH, LOCATION, VARY};
use http::{HeaderMap, Response, StatusCode};

use super::{to_bytes, v2, v2_hash, v2_protobuf, v3_group, v3_hash, v3_index};
use crate::error::ApiError;
use crate::registry::Registry;

const JSON: &str = "application/json";
/// What client-go has asked for since 1.27.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What it asked for before.
const PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// A document whose hash is in the URL never changes. A date far ahead, as `Expires` of one year would be.
const NEVER: &str = "Fri, 31 Dec 9999 23:59:59 GMT";

/// Answers GET of `path`, which begins with `/openapi/`. 404 for what does not exist, 406 for what cannot be served.
pub fn serve(
    registry: &Registry,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    match path.strip_prefix("/openapi/").map(|rest| rest.trim_end_matches('/')) {
        Some("v2") => serve_v2(registry, headers),
        Some("v3") => {
            accept(headers, &[(JSON, JSON)])?;
            Ok(answer(JSON, to_bytes(&v3_index(registry))))
        }
        Some(rest) => match rest.strip_prefix("v3/") {
            Some(group) => serve_v3(registry, group, query, headers),
            None => Err(ApiError::no_such_path()),
        },
        None => Err(ApiError::no_such_path()),
    }
}

fn serve_v2(registry: &Registry, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let kind = accept(headers, &[(JSON, JSON), (PROTOBUF_OLD, PROTOBUF), (PROTOBUF, PROTOBUF)])?;
    let etag = format!("\"{}\"", v2_hash(registry));
    let mut response = match () {
        () if matches_etag(headers, &etag) => not_modified(),
        () if kind == PROTOBUF => answer(kind, v2_protobuf(registry)),
        () => answer(kind, v2(registry)),
    };
    insert(&mut response, ETAG, &etag);
    insert(&mut response, VARY, "Accept");
    Ok(response)
}

fn serve_v3(
    registry: &Registry,
    group: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let hash = v3_hash(registry, group).ok_or_else(ApiError::no_such_path)?;
    accept(headers, &[(JSON, JSON)])?;
    let asked = query.into_iter().flat_map(|q| q.split('&')).find_map(|pair| pair.strip_prefix("hash="));
    if asked.is_some_and(|asked| asked != hash) {
        let mut response = answer(JSON, Bytes::new());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        insert(&mut response, LOCATION, &format!("/openapi/v3/{group}?hash={hash}"));
        return Ok(response);
    }
    let etag = format!("\"{hash}\"");
    let mut response = match v3_group(registry, group) {
        Some(_) if matches_etag(headers, &etag) => not_modified(),
        Some(body) => answer(JSON, body),
        None => return Err(ApiError::no_such_path()),
    };
    insert(&mut response, ETAG, &etag);
    insert(&mut response, VARY, "Accept");
    if asked.is_some() {
        insert(&mut response, CACHE_CONTROL, "public, immutable");
        insert(&mut response, EXPIRES, NEVER);
    }
    Ok(response)
}

/// The content type of the first media range that is offered; offers are (asked for, answered with), the first is the default.
fn accept(headers: &HeaderMap, offers: &[(&'static str, &'static str)]) -> Result<&'static str, ApiError> {
    let default = offers.first().map_or(JSON, |o| o.1);
    let mut asked = false;
    for range in headers.get_all(ACCEPT).iter().filter_map(|h| h.to_str().ok()).flat_map(|h| h.split(',')) {
        asked = true;
        match range.split(';').next().unwrap_or_default().trim() {
            "*/*" | "application/*" | "" => return Ok(default),
            range => {
                if let Some((_, answer)) = offers.iter().find(|(name, _)| *name == range) {
                    return Ok(answer);
                }
            }
        }
    }
    if asked { Err(ApiError::not_acceptable(&offers.iter().map(|o| o.0).collect::<Vec<_>>())) } else { Ok(default) }
}

fn matches_etag(headers: &HeaderMap, etag: &str) -> bool {
    let asked = headers.get_all(IF_NONE_MATCH).iter().filter_map(|h| h.to_str().ok());
    asked.flat_map(|h| h.split(',')).any(|tag| matches!(tag.trim(), "*") || tag.trim().trim_start_matches("W/") == etag)
}

fn answer(content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    insert(&mut response, CONTENT_TYPE, content_type);
    response
}

fn not_modified() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// Every value is ours: hexadecimal hashes, group names and constants.
fn insert(response: &mut Response<Body>, name: http::HeaderName, value: &str) {
    if let Ok(value) = http::HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::present::fixtures::registry;

    fn get(path: &str, headers: &[(http::HeaderName, &str)]) -> Result<Response<Body>, ApiError> {
        let headers = headers.iter().map(|(k, v)| (k.clone(), v.parse().unwrap())).collect();
        let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
        serve(&registry(), path, query, &headers)
    }

    fn header<'a>(response: &'a Response<Body>, name: &http::HeaderName) -> &'a str {
        response.headers().get(name).map_or("", |v| v.to_str().unwrap())
    }

    #[test]
    fn v2_is_json_or_protobuf() {
        let check = |accept: &str, want: &str| {
            let response = get("/openapi/v2", &[(ACCEPT, accept)]).unwrap();
            assert_eq!(header(&response, &CONTENT_TYPE), want, "{accept}");
        };
        check(PROTOBUF_OLD, PROTOBUF);
        check(PROTOBUF, PROTOBUF);
        check("application/json", JSON);
        check("*/*", JSON);
        check("text/html, application/json;q=0.5", JSON);
        assert_eq!(header(&get("/openapi/v2", &[]).unwrap(), &CONTENT_TYPE), JSON);
        assert_eq!(get("/openapi/v2", &[(ACCEPT, "text/html")]).unwrap_err().code.as_u16(), 406);
        assert_eq!(get("/openapi/v3", &[(ACCEPT, "text/html")]).unwrap_err().code.as_u16(), 406);
    }

    #[test]
    fn unchanged_documents_are_not_sent_again() {
        for path in ["/openapi/v2", "/openapi/v3/apis/apps/v1"] {
            let first = get(path, &[]).unwrap();
            let etag = header(&first, &ETAG).to_owned();
            assert_eq!(etag.len(), 66);
            let again = get(path, &[(IF_NONE_MATCH, &etag)]).unwrap();
            assert_eq!(again.status(), 304, "{path}");
            assert_eq!(get(path, &[(IF_NONE_MATCH, "\"x\"")]).unwrap().status(), 200);
        }
    }

    #[test]
    fn the_hash_in_the_url_is_checked() {
        let hash = v3_hash(&registry(), "api/v1").unwrap();
        let right = get(&format!("/openapi/v3/api/v1?hash={hash}"), &[]).unwrap();
        assert_eq!(header(&right, &CACHE_CONTROL), "public, immutable");
        let wrong = get("/openapi/v3/api/v1?hash=ABC", &[]).unwrap();
        assert_eq!(wrong.status(), 301);
        assert_eq!(header(&wrong, &LOCATION), format!("/openapi/v3/api/v1?hash={hash}"));
        assert_eq!(header(&get("/openapi/v3/api/v1", &[]).unwrap(), &CACHE_CONTROL), "");
    }

    #[test]
    fn other_paths_are_404() {
        for path in
            ["/openapi/", "/openapi/v4", "/openapi/v3/api", "/openapi/v3/apis/nope/v1", "/openapi/v3/../v2", "/x"]
        {
            assert_eq!(get(path, &[]).unwrap_err().code.as_u16(), 404, "{path}");
        }
    }
}
