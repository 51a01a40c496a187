//! Which container, which part of its log, and why there may be none (`registry/core/pod/strategy.go`). Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec};

use crate::error::{ApiError, FieldError};
use crate::request::Query;

/// `PodLogOptions`
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Container asked for; empty if none was.
    pub container: String,
    /// Of the run before this one.
    pub previous: bool,
    /// The other parameters, checked, as `name=value`.
    rest: Vec<(&'static str, String)>,
}

fn number(query: &Query, name: &str, least: i64, errors: &mut Vec<FieldError>) -> Result<Option<i64>, ApiError> {
    let value = query.int(name)?;
    if let Some(value) = value.filter(|v| *v < least) {
        let text = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
        errors.push(FieldError::invalid(name, value, text));
    }
    Ok(value)
}

impl LogOptions {
    /// Checks a query (`ValidatePodLogOptions`).
    pub fn parse(query: &Query, pod: &str) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        let mut rest = Vec::new();
        for (name, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
            if let Some(value) = number(query, name, least, &mut errors)? {
                rest.push((name, value.to_string()));
            }
        }
        let text = query.get("sinceTime");
        if !text.is_empty() {
            let time: jiff::Timestamp = text.parse().map_err(|_| {
                ApiError::bad_request(format!(
                    "parsing time {text:?} as an RFC 3339 time failed (query parameter \"sinceTime\")"
                ))
            })?;
            if rest.iter().any(|(name, _)| *name == "sinceSeconds") {
                errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
            }
            rest.push(("sinceTime", time.to_string()));
        }
        let flags = ["follow", "timestamps", "previous"].into_iter().filter(|name| query.flag(name));
        rest.extend(flags.map(|name| (name, "true".to_owned())));
        if !errors.is_empty() {
            return Err(ApiError::invalid("", "PodLogOptions", pod, &errors));
        }
        Ok(Self { container: query.get("container").to_owned(), previous: query.flag("previous"), rest })
    }

    /// The query for the agent. Every value is digits, letters or a time: nothing needs escaping but the colon's friends.
    pub fn query(&self) -> String {
        let pairs = self.rest.iter().map(|(name, value)| format!("{name}={}", value.replace('+', "%2B")));
        pairs.collect::<Vec<_>>().join("&")
    }
}

fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

/// `spec.nodeName`, if the pod has been scheduled.
pub fn node_name(pod: &Pod) -> Option<&str> {
    spec(pod)?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// The container that is meant; `asked` is empty if the client leaves it open (`validateContainer`).
pub fn container<'a>(pod: &'a Pod, asked: &str) -> Result<&'a str, ApiError> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let names = |list: &'a [k8s_openapi::api::core::v1::Container]| -> Vec<&'a str> {
        list.iter().map(|c| c.name.as_str()).collect()
    };
    let containers = spec(pod).map(|s| names(&s.containers)).unwrap_or_default();
    let inits = spec(pod).and_then(|s| s.init_containers.as_deref()).map(names).unwrap_or_default();
    if !asked.is_empty() {
        let found = containers.iter().chain(&inits).find(|c| **c == asked).copied();
        return found.ok_or_else(|| ApiError::bad_request(format!("container {asked} is not valid for pod {name}")));
    }
    match containers.as_slice() {
        [only] => Ok(only),
        [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {name}"))),
        several => {
            let mut text =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", several.join(" "));
            if !inits.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
            }
            Err(ApiError::bad_request(text))
        }
    }
}

fn status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [status.container_statuses.as_deref(), status.init_container_statuses.as_deref()];
    lists.into_iter().flatten().flatten().find(|s| s.name == container)
}

/// Why the node has no log of a container (`validateContainerLogStatus`).
pub fn no_log_yet(pod: &Pod, container: &str, previous: bool) -> ApiError {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if previous {
        return ApiError::bad_request(format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    let state = status(pod, container).and_then(|s| s.state.as_ref());
    let reason = state.and_then(|s| s.waiting.as_ref()?.reason.as_deref());
    if state.is_some_and(|s| s.terminated.is_some()) {
        return ApiError::bad_request(format!("container {container:?} in pod {name:?} is terminated"));
    }
    let why = match reason {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        None => "ContainerCreating",
    };
    ApiError::bad_request(format!("container {container:?} in pod {name:?} is waiting to start: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: &[&str], inits: &[&str], status: serde_json::Value) -> Pod {
        let list = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
        serde_json::from_value(json!({
            "metadata": {"name": "p"}, "spec": {"containers": list(containers), "initContainers": list(inits)},
            "status": {"containerStatuses": [status]}
        }))
        .unwrap()
    }

    #[test]
    fn the_container_must_be_clear() {
        let check = |containers: &[&str], inits: &[&str], asked: &str, want: Result<&str, &str>| {
            let pod = pod(containers, inits, json!({"name": "x"}));
            let got = container(&pod, asked).map_err(|e| e.message);
            assert_eq!(got, want.map_err(str::to_owned));
        };
        check(&["a"], &[], "", Ok("a"));
        check(&["a"], &["i"], "i", Ok("i"));
        check(&["a", "b"], &[], "", Err("a container name must be specified for pod p, choose one of: [a b]"));
        check(
            &["a", "b"],
            &["i"],
            "",
            Err(
                "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
            ),
        );
        check(&["a"], &[], "z", Err("container z is not valid for pod p"));
    }

    #[test]
    fn options_are_checked_and_passed_on() {
        let parse = |query: &str| LogOptions::parse(&Query::parse(Some(query)).unwrap(), "p");
        let got = parse("follow=true&tailLines=5&sinceTime=2026-01-02T03:04:05%2B01:00&container=c&pretty=1").unwrap();
        assert_eq!(got.container, "c");
        assert_eq!(got.query(), "tailLines=5&sinceTime=2026-01-02T02:04:05Z&follow=true");
        for (bad, code, text) in [
            ("tailLines=-1", 422, "tailLines: Invalid value: -1: must be greater than or equal to 0"),
            ("limitBytes=0", 422, "limitBytes: Invalid value: 0: must be greater than 0"),
            ("tailLines=x", 400, "invalid syntax"),
            ("sinceTime=then", 400, "RFC 3339"),
            ("sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z", 422, "at most one of"),
        ] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.code.as_u16(), code, "{bad}");
            assert!(error.message.contains(text), "{bad}: {}", error.message);
        }
    }

    #[test]
    fn what_a_container_waits_for_is_said() {
        let check = |state: serde_json::Value, previous: bool, want: &str| {
            let pod = pod(&["c"], &[], json!({"name": "c", "state": state}));
            assert_eq!(no_log_yet(&pod, "c", previous).message, want);
        };
        check(
            json!({"waiting": {"reason": "ContainerCreating"}}),
            false,
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating",
        );
        check(
            json!({"waiting": {"reason": "ImagePullBackOff"}}),
            false,
            "container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image",
        );
        check(json!({}), false, "container \"c\" in pod \"p\" is waiting to start: ContainerCreating");
        check(json!({}), true, "previous terminated container \"c\" in pod \"p\" not found");
    }
}
