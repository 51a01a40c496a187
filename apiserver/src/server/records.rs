//! `/plugins/records?plugin=[NAMESPACE/]NAME`: decisions of a plugin that were recorded, one JSON object per line.
//!
//! `GET` gives those of this process and those that others have handed in with `POST`: schedulers and load balancers that run alone. The pipeline
//! has authorised the caller for the path (nonResourceURL `/plugins/records`). What is recorded has no personal data any more.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use scaleup_api::plugin::GROUP;
use scaleup_plugins::{PluginKey, Record};

use super::Server;
use super::pipeline::Scope;
use super::received::Line;
use crate::cache::{Cached, Reader};
use crate::error::ApiError;

/// Content type of JSON lines.
const JSON_LINES: &str = "application/jsonl";
/// Most bytes that are handed in at once.
const MAX_BODY_BYTES: usize = 8 << 20;

/// The plugin that a query names.
fn key(name: &str) -> Result<PluginKey, ApiError> {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    if name.is_empty() || name.contains('/') {
        return Err(ApiError::bad_request("say which plugin: /plugins/records?plugin=NAMESPACE/NAME, or plugin=NAME"));
    }
    Ok(PluginKey::namespaced(namespace, name))
}

impl Server {
    fn plugin(&self, key: &PluginKey) -> Option<Arc<Cached>> {
        let plural = if key.namespace.is_empty() { "clusterwasmplugins" } else { "wasmplugins" };
        self.caches.get(GROUP, plural, &key.namespace, &key.name)
    }

    /// The plugin's UID and world, if its decisions are recorded. If they are not, what was handed in is forgotten.
    async fn recorded(self: &Arc<Self>, key: &PluginKey) -> Result<Option<(Box<str>, String)>, ApiError> {
        let Some(plugin) = self.plugin(key) else {
            let mut error = ApiError::no_such_path();
            error.message = format!("there is no plugin {:?}", key.to_string());
            return Err(error);
        };
        // It may have a module in it.
        let (uid, value) = (plugin.uid.to_string(), tokio::task::spawn_blocking(move || plugin.value()).await);
        let spec = &value.map_err(ApiError::internal)?["spec"];
        if spec["recording"].is_object() {
            return Ok(Some((uid.into(), spec["world"].as_str().unwrap_or_default().to_owned())));
        }
        self.received.forget(key);
        Ok(None)
    }
}

/// Those of this process and those of others, by time.
pub(super) async fn read(
    State(server): State<Arc<Server>>,
    Extension(scope): Extension<Scope>,
) -> Result<Response<Body>, ApiError> {
    let key = key(scope.query.get("plugin"))?;
    let mut lines = match server.recorded(&key).await? {
        Some((uid, _)) => server.received.lines(&key, &uid),
        None => Vec::new(),
    };
    let mut slots = server.config.plugins.slots();
    slots.retain(|(known, _)| *known == key);
    // Up to ten thousand decisions become text.
    let text = tokio::task::spawn_blocking(move || {
        let records = slots.iter().flat_map(|(_, slot)| slot.records());
        lines.extend(
            records.filter_map(|record| Some(Line { time_ms: record.time_ms, text: record.line().ok()?.into() })),
        );
        lines.sort_by_key(|line| line.time_ms);
        lines.iter().fold(String::new(), |text, line| text + &line.text + "\n")
    });
    let mut response = Response::new(Body::from(text.await.map_err(ApiError::internal)?));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON_LINES));
    Ok(response)
}

/// Takes the records of another process.
pub(super) async fn hand_in(
    State(server): State<Arc<Server>>,
    Extension(scope): Extension<Scope>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let key = key(scope.query.get("plugin"))?;
    let Some((uid, world)) = server.recorded(&key).await? else {
        let text = format!("the decisions of plugin {:?} are not recorded: it has no spec.recording", key.to_string());
        return Err(ApiError::bad_request(text));
    };
    let body = server.read_body_of(request, MAX_BODY_BYTES).await?;
    let (name, own) = (key.to_string(), world);
    let lines = tokio::task::spawn_blocking(move || parse(&body, &name, &own)).await;
    let lines = lines.map_err(ApiError::internal)?.map_err(ApiError::bad_request)?;
    let is_there = |key: &PluginKey, uid: &str| server.plugin(key).is_some_and(|plugin| *plugin.uid == *uid);
    server.received.keep(&key, &uid, lines, is_there);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Records of this plugin and world, one on each line.
fn parse(body: &[u8], plugin: &str, world: &str) -> Result<Vec<Line>, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the body is not UTF-8".to_owned())?;
    let line = |(number, text): (usize, &str)| {
        let wrong = |why: String| format!("line {}: {why}", number + 1);
        let record: Record = serde_json::from_str(text).map_err(|error| wrong(format!("no record: {error}")))?;
        if record.plugin != plugin || record.world.name() != world {
            let found = format!("{} of the world {}", record.plugin, record.world);
            return Err(wrong(format!("a decision of {found}, expected one of {plugin} of the world {world}")));
        }
        // As it is written here, on one line.
        let text = record.line().map_err(|error| wrong(error.to_string()))?.into();
        Ok(Line { time_ms: record.time_ms, text })
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_named_with_or_without_namespace() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(key(name).ok().map(|key| key.to_string()).as_deref(), expected, "{name}");
        };
        check("shop/guard", Some("shop/guard"));
        check("guard", Some("guard"));
        check("", None);
        check("shop/", None);
        check("a/b/c", None);
    }

    #[test]
    fn only_records_of_the_plugin_are_taken() {
        let record = |plugin: &str, world: &str| {
            serde_json::json!({"world": world, "plugin": plugin, "generation": 1, "digest": "00", "timeMs": 7, "config": {}, "input": {}, "answer": {"pick": 0}}).to_string()
        };
        let good = record("shop/p", "routing");
        let lines = parse(format!("{good}\n\n{good}").as_bytes(), "shop/p", "routing").unwrap();
        assert_eq!((lines.len(), lines[0].time_ms), (2, 7));
        let check = |body: String, why: &str| {
            let error = parse(body.as_bytes(), "shop/p", "routing").unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        check(format!("{good}\n{}", record("shop/q", "routing")), "line 2: a decision of shop/q");
        check(record("shop/p", "scaling"), "of the world scaling, expected");
        check("{}".into(), "line 1: no record");
    }
}
