//! Deployments from first apply to rollback.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Event, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::world::{World, config, deployment, eventually};

fn image(image: &str) -> Value {
    let container = json!({"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]});
    json!({"spec": {"template": {"spec": {"containers": [container]}}}})
}

fn condition(d: &Deployment, kind: &str) -> String {
    let conditions = d.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let found = conditions.iter().find(|c| c.type_ == kind).expect("a condition");
    format!("{} {}", found.status, found.reason.clone().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_update_scale_and_roll_back() {
    let world = World::new(config()).await;
    let service = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    world.create::<Service>(world.api(), service).await;
    world.create::<Deployment>(world.api(), deployment(3, "v1")).await;
    world.rolled_out(3, "v1").await;

    let d = world.api::<Deployment>().get("web").await.unwrap();
    assert_eq!(condition(&d, "Available"), "True MinimumReplicasAvailable");
    eventually("the rollout is over", || async {
        let d = world.api::<Deployment>().get("web").await.ok()?;
        (condition(&d, "Progressing") == "True NewReplicaSetAvailable").then_some(())
    })
    .await;
    eventually("endpoints", || async {
        let slices = world.list::<EndpointSlice>("kubernetes.io/service-name=web").await;
        let endpoints = world.api::<Endpoints>().get("web").await.ok()?;
        let ready: usize = slices.iter().map(|s| s.endpoints.len()).sum();
        let addresses = endpoints.subsets?.first()?.addresses.as_ref()?.len();
        (ready == 3 && addresses == 3).then_some(())
    })
    .await;

    world.patch::<Deployment>("web", image("v2")).await;
    world.rolled_out(3, "v2").await;
    assert_eq!(world.revisions().await.keys().collect::<Vec<_>>(), ["1", "2"]);

    world.patch::<Deployment>("web", json!({"spec": {"replicas": 5}})).await;
    world.rolled_out(5, "v2").await;

    // `kubectl rollout undo` puts the old template back: the old set is used again and becomes the newest revision.
    let first = world.revisions().await["1"].name_any();
    world.patch::<Deployment>("web", image("v1")).await;
    world.rolled_out(5, "v1").await;
    let revisions = world.revisions().await;
    assert_eq!(revisions.keys().collect::<Vec<_>>(), ["2", "3"]);
    assert_eq!(revisions["3"].name_any(), first);
    let d = world.api::<Deployment>().get("web").await.unwrap();
    assert_eq!(d.annotations()["deployment.kubernetes.io/revision"], "3");

    eventually("events say what happened", || async {
        let events = world.list::<Event>("").await;
        let has = |reason: &str, text: &str| {
            let said = |e: &Event| {
                e.reason.as_deref() == Some(reason) && e.message.as_ref().is_some_and(|m| m.starts_with(text))
            };
            events.iter().any(said)
        };
        let all = has("ScalingReplicaSet", &format!("Scaled up replica set {first} from 0 to 3"))
            && has("SuccessfulCreate", &format!("Created pod: {first}-"));
        all.then_some(())
    })
    .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn availability_is_kept_during_a_rollout() {
    let world = World::new(config()).await;
    world.create::<Deployment>(world.api(), deployment(4, "v1")).await;
    world.rolled_out(4, "v1").await;
    let mut body = image("v2");
    body["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    world.patch::<Deployment>("web", body).await;
    eventually("the new template is everywhere", || async {
        let (all, ready) = (world.list::<Pod>("app=web").await, world.ready_pods().await);
        let active = all.iter().filter(|p| scaleup_api::pods::is_active(p)).count();
        assert!(ready.len() >= 4 || active < 4, "{} ready", ready.len());
        assert!(active <= 5, "{active} active");
        (ready.len() == 4 && ready.values().all(|i| i == "v2")).then_some(())
    })
    .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_replaces_what_dies_and_adopts_what_fits() {
    let world = World::new(config()).await;
    world.create::<Deployment>(world.api(), deployment(3, "v1")).await;
    world.rolled_out(3, "v1").await;
    let victim = world.ready_pods().await.into_keys().next().unwrap();
    world.api::<Pod>().delete(&victim, &DeleteParams::default()).await.unwrap();
    eventually("a new pod", || async {
        let pods = world.ready_pods().await;
        (pods.len() == 3 && !pods.contains_key(&victim)).then_some(())
    })
    .await;
    // A pod that no longer matches is released and replaced; it stays.
    let freed = world.ready_pods().await.into_keys().next().unwrap();
    world.patch::<Pod>(&freed, json!({"metadata": {"labels": {"app": "debug"}}})).await;
    eventually("released and replaced", || async {
        let freed = world.api::<Pod>().get(&freed).await.ok()?;
        (freed.owner_references().is_empty() && world.ready_pods().await.len() == 3).then_some(())
    })
    .await;
    // Back again it is one too many.
    world.patch::<Pod>(&freed, json!({"metadata": {"labels": {"app": "web"}}})).await;
    eventually("three again", || async {
        let pods = world.list::<Pod>("app=web").await;
        let owned = pods.iter().all(|p| !p.owner_references().is_empty());
        (pods.len() == 3 && owned && world.ready_pods().await.len() == 3).then_some(())
    })
    .await;
    let set = world.list::<ReplicaSet>("app=web").await.remove(0);
    assert_eq!(set.spec.unwrap().replicas, Some(3));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pausing_holds_a_rollout() {
    let world = World::new(config()).await;
    world.create::<Deployment>(world.api(), deployment(2, "v1")).await;
    world.rolled_out(2, "v1").await;
    let mut body = image("v2");
    body["spec"]["paused"] = json!(true);
    world.patch::<Deployment>("web", body).await;
    eventually("paused", || async {
        let d = world.api::<Deployment>().get("web").await.ok()?;
        (condition(&d, "Progressing") == "Unknown DeploymentPaused").then_some(())
    })
    .await;
    assert_eq!(world.revisions().await.len(), 1);
    world.patch::<Deployment>("web", json!({"spec": {"paused": false}})).await;
    world.rolled_out(2, "v2").await;
    world.end().await;
}
