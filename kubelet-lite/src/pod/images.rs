//! Getting a container's image: pull policies, credentials, backoff, events (`images/image_manager.go`).

use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::core::v1::{Container as SpecContainer, Pod, Secret};
use serde_json::Value;

use super::backoff::Backoff;
use super::facts::{Failure, ImageFact};
use super::view;
use crate::agent::Agent;
use crate::clock::after;
use crate::events::Kind;
use crate::runtime::{Image, RegistryAuth, RuntimeError};

/// How long `ErrImagePull` shows before it becomes `ImagePullBackOff`.
const ERROR_SHOWN: Duration = Duration::from_secs(2);
/// Between looks for an image that must not be pulled, or whose name is wrong.
const RECHECK: Duration = Duration::from_secs(10);
/// Docker Hub under the names that credentials use for it.
const HUB: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];

/// The container's pull policy; the API sets it, older objects may lack it.
fn policy(container: &SpecContainer) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    let untagged = !image.contains('@') && image.rsplit('/').next().is_none_or(|n| !n.contains(':'));
    let latest = image.ends_with(":latest") || untagged;
    container.image_pull_policy.as_deref().unwrap_or(if latest { "Always" } else { "IfNotPresent" })
}

/// Registry host of an image name.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => HUB[0],
    }
}

/// What came of it: the fact, and the image's new pull backoff if a pull failed.
pub struct Outcome {
    /// For the plan.
    pub fact: ImageFact,
    /// For the next pull.
    pub backoff: Option<Backoff>,
}

/// Looks the image up, pulls it if the policy says so, and tells by events. `backoff` is what earlier pulls of the image left.
pub async fn ensure(agent: &Agent, pod: &Pod, container: &SpecContainer, backoff: Option<Backoff>) -> Outcome {
    let image = container.image.as_deref().unwrap_or_default();
    let event = |kind, reason, text: String| agent.events.pod(pod, Some(&container.name), kind, reason, text);
    let policy = policy(container);
    let present = match agent.runtime.image(image).await {
        Ok(present) => present,
        Err(error) => return later(agent, "ImageInspectError", format!("Failed to inspect image {image:?}: {error}")),
    };
    match (policy, present) {
        ("Never", None) => {
            let text = format!("Container image {image:?} is not present with pull policy of Never");
            event(Kind::Warning, "ErrImageNeverPull", text.clone());
            event(Kind::Warning, "Failed", "Error: ErrImageNeverPull".into());
            return later(agent, "ErrImageNeverPull", text);
        }
        ("Never" | "IfNotPresent", Some(found)) => {
            event(Kind::Normal, "Pulled", format!("Container image {image:?} already present on machine"));
            return Outcome { fact: ImageFact::Ready(found), backoff: None };
        }
        _ => {}
    }
    let now = agent.clock.now();
    if let Some(backoff) = backoff
        && let Some(until) = backoff.cooling_until(now)
    {
        event(Kind::Normal, "BackOff", format!("Back-off pulling image {image:?}"));
        event(Kind::Warning, "Failed", "Error: ImagePullBackOff".into());
        let failure = Failure {
            reason: "ImagePullBackOff",
            message: format!("Back-off pulling image {image:?}"),
            retry_at: until,
            attempts: 0,
        };
        return Outcome { fact: ImageFact::Failed(failure), backoff: Some(backoff) };
    }
    pull(agent, pod, container, backoff).await
}

async fn pull(agent: &Agent, pod: &Pod, container: &SpecContainer, backoff: Option<Backoff>) -> Outcome {
    let image = container.image.as_deref().unwrap_or_default();
    let event = |kind, reason, text: String| agent.events.pod(pod, Some(&container.name), kind, reason, text);
    event(Kind::Normal, "Pulling", format!("Pulling image {image:?}"));
    let asked = tokio::time::Instant::now();
    let auth = credentials(agent, pod, image).await;
    // Closed never: the semaphore lives as long as the agent.
    let _slot = agent.pull_slots.acquire().await.ok();
    let began = tokio::time::Instant::now();
    match agent.runtime.pull(image, auth.as_ref()).await {
        Ok(found) => {
            event(Kind::Normal, "Pulled", pulled_text(image, &found, began.elapsed(), asked.elapsed()));
            Outcome { fact: ImageFact::Ready(found), backoff: None }
        }
        Err(RuntimeError::Refused(text)) if text.contains("invalid reference format") => {
            let text = format!("Failed to apply default image tag {image:?}: couldn't parse image name: {text}");
            event(Kind::Warning, "InspectFailed", text.clone());
            event(Kind::Warning, "Failed", "Error: InvalidImageName".into());
            later(agent, "InvalidImageName", text)
        }
        Err(error) => {
            let now = agent.clock.now();
            event(Kind::Warning, "Failed", format!("Failed to pull image {image:?}: {error}"));
            event(Kind::Warning, "Failed", "Error: ErrImagePull".into());
            let backoff = Backoff::next(backoff, now, now);
            let failure = Failure {
                reason: "ErrImagePull",
                message: error.to_string(),
                retry_at: after(now, ERROR_SHOWN),
                attempts: 0,
            };
            Outcome { fact: ImageFact::Failed(failure), backoff: Some(backoff) }
        }
    }
}

fn pulled_text(image: &str, found: &Image, pulling: Duration, waiting: Duration) -> String {
    let (pulling, waiting) = (pulling.as_secs_f64(), waiting.as_secs_f64());
    format!(
        "Successfully pulled image {image:?} in {pulling:.3}s ({waiting:.3}s including waiting). Image size: {} bytes.",
        found.size_bytes
    )
}

fn later(agent: &Agent, reason: &'static str, message: String) -> Outcome {
    let retry_at = after(agent.clock.now(), RECHECK);
    Outcome { fact: ImageFact::Failed(Failure { reason, message, retry_at, attempts: 0 }), backoff: None }
}

/// Credentials for the image's registry from the pod's `imagePullSecrets`; the first that fits.
async fn credentials(agent: &Agent, pod: &Pod, image: &str) -> Option<RegistryAuth> {
    for reference in view::spec(pod).image_pull_secrets.as_deref().unwrap_or_default() {
        match agent.fetcher.secret(view::namespace(pod), &reference.name).await {
            Ok(Some(secret)) => {
                if let Some(found) = from_secret(&secret, registry(image)) {
                    return Some(found);
                }
            }
            Ok(None) => {
                let text = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    reference.name
                );
                agent.events.pod(pod, None, Kind::Warning, "FailedToRetrieveImagePullSecret", text);
            }
            Err(error) => tracing::debug!(%error, secret = reference.name, "pull secret not readable"),
        }
    }
    None
}

fn from_secret(secret: &Secret, host: &str) -> Option<RegistryAuth> {
    let data = secret.data.as_ref()?;
    let auths = if let Some(config) = data.get(".dockerconfigjson") {
        serde_json::from_slice::<Value>(&config.0).ok()?.get("auths")?.clone()
    } else {
        serde_json::from_slice(&data.get(".dockercfg")?.0).ok()?
    };
    let entries = auths.as_object()?;
    let (server, entry) = entries.iter().find(|(server, _)| same_registry(server, host))?;
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    let packed = text("auth");
    if username.is_empty() && !packed.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(packed.trim()).ok()?;
        let pair = String::from_utf8(decoded).ok()?;
        let (user, pass) = pair.split_once(':')?;
        (username, password) = (user.to_owned(), pass.trim_end_matches('\0').to_owned());
    }
    Some(RegistryAuth { username, password, identity_token: text("identitytoken"), server: server.clone() })
}

/// Whether credentials for `server` (a host, or a URL with a path) are for the registry `host`.
fn same_registry(server: &str, host: &str) -> bool {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let bare = bare.split('/').next().unwrap_or_default();
    bare == host || (HUB.contains(&bare) && HUB.contains(&host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies_default_by_tag() {
        let check = |image: &str, want: &str| {
            let container = SpecContainer { image: Some(image.into()), ..SpecContainer::default() };
            assert_eq!(policy(&container), want, "{image}");
        };
        check("nginx", "Always");
        check("nginx:latest", "Always");
        check("nginx:1", "IfNotPresent");
        check("host:5000/nginx", "Always");
        check("nginx@sha256:0", "IfNotPresent");
    }

    #[test]
    fn credentials_are_found_by_registry() {
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": base64::engine::general_purpose::STANDARD.encode("u:p:q")},
            "reg.example:5000": {"username": "a", "password": "b"}
        }});
        let bytes = serde_json::to_vec(&config).unwrap();
        let secret = Secret {
            data: Some([(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(bytes))].into()),
            ..Secret::default()
        };
        let check = |image: &str, want: Option<(&str, &str)>| {
            let got = from_secret(&secret, registry(image));
            assert_eq!(got.as_ref().map(|a| (a.username.as_str(), a.password.as_str())), want, "{image}");
        };
        check("nginx", Some(("u", "p:q")));
        check("docker.io/library/nginx", Some(("u", "p:q")));
        check("reg.example:5000/x/y:1", Some(("a", "b")));
        check("other.example/x", None);
    }
}
