//! Which image a Pod runs, for metrics by image: EndpointSlices do not say. Only when it is asked for: it watches all Pods and keeps
//! one entry for each.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;

/// Pods remembered at most; those beyond are not counted by image.
const MAX_PODS: usize = 200_000;

/// UID, and the image of the first container.
fn image_of(pod: &Pod) -> Option<(Arc<str>, &str)> {
    let image = pod.spec.as_ref()?.containers.first()?.image.as_deref()?;
    Some((pod.metadata.uid.as_deref()?.into(), image))
}

/// Pods that are there.
#[derive(Default)]
struct Known {
    now: HashSet<Arc<str>>,
    /// Of a list in progress.
    listed: Option<HashSet<Arc<str>>>,
}

impl Known {
    fn apply(&mut self, hub: &Hub, event: &Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(pod) | Event::Apply(pod) => {
                let Some((uid, image)) = image_of(pod) else { return };
                if self.now.len() >= MAX_PODS && !self.now.contains(&uid) {
                    return;
                }
                if let Some(listed) = &mut self.listed {
                    listed.insert(uid.clone());
                }
                if self.now.insert(uid.clone()) {
                    hub.set_image(&uid, image);
                }
            }
            Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    self.now = listed;
                    hub.retain_images(|uid| self.now.contains(uid));
                }
            }
            Event::Delete(pod) => {
                if let Some((uid, _)) = image_of(pod)
                    && self.now.remove(&uid)
                {
                    hub.forget_image(&uid);
                }
            }
        }
    }
}

/// Watches until `shutdown`.
pub(crate) async fn run(client: Client, hub: Arc<Hub>, shutdown: CancellationToken) {
    let pods = watcher(Api::<Pod>::all(client), watcher::Config::default()).default_backoff();
    pin_mut!(pods);
    let mut known = Known::default();
    while let Some(Some(event)) = shutdown.run_until_cancelled(pods.next()).await {
        match event {
            Ok(event) => known.apply(&hub, &event),
            Err(error) => tracing::debug!(%error, "the watch of Pods was interrupted, retrying"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, image: &str) -> Pod {
        let pod =
            json!({"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [{"name": "c", "image": image}]}});
        serde_json::from_value(pod).expect("a Pod")
    }

    #[test]
    fn images_follow_the_pods() {
        let (hub, mut known) = (Hub::new(1), Known::default());
        for event in
            [Event::Init, Event::InitApply(pod("p1", "web:1")), Event::InitApply(pod("p2", "web:2")), Event::InitDone]
        {
            known.apply(&hub, &event);
        }
        known.apply(&hub, &Event::Apply(pod("p3", "web:2")));
        assert_eq!(hub.pods_with_images(), 3);
        known.apply(&hub, &Event::Delete(pod("p3", "web:2")));
        assert_eq!(hub.pods_with_images(), 2);
        for event in [Event::Init, Event::InitApply(pod("p2", "web:2")), Event::InitDone] {
            known.apply(&hub, &event);
        }
        assert_eq!(hub.pods_with_images(), 1);
        let images: Vec<_> = hub.images().into_iter().map(|(image, _)| image.to_string()).collect();
        assert_eq!(images, ["web:1", "web:2"], "counters only ever grow");
    }
}
