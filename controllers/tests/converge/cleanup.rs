//! What goes when something is deleted, and what stays.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use crate::world::{NS, World, config, deployment, eventually};

async fn settled() -> World {
    let world = World::new(config()).await;
    world.create::<Deployment>(world.api(), deployment(2, "v1")).await;
    world.rolled_out(2, "v1").await;
    world
}

async fn gone(world: &World) {
    eventually("everything is gone", || async {
        let empty = world.list::<Pod>("").await.is_empty() && world.list::<ReplicaSet>("").await.is_empty();
        (empty && world.list::<Deployment>("").await.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_go_with_their_owner() {
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        let world = settled().await;
        world.api::<Deployment>().delete("web", &params).await.unwrap();
        gone(&world).await;
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_and_are_adopted_again() {
    let world = settled().await;
    let pods = world.ready_pods().await;
    world.api::<Deployment>().delete("web", &DeleteParams::orphan()).await.unwrap();
    eventually("the set is free", || async {
        let sets = world.list::<ReplicaSet>("app=web").await;
        (world.list::<Deployment>("").await.is_empty() && sets[0].owner_references().is_empty()).then_some(())
    })
    .await;
    assert_eq!(world.ready_pods().await, pods);
    world.create::<Deployment>(world.api(), deployment(2, "v1")).await;
    world.rolled_out(2, "v1").await;
    assert_eq!(world.ready_pods().await, pods, "the same pods under a new owner");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_of_another_uid_is_no_owner() {
    let world = World::new(config()).await;
    let owner = world.create::<ConfigMap>(world.api(), json!({"metadata": {"name": "owner"}})).await;
    let dependent = |name: &str, uid: &str| {
        json!({"metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
        ]}})
    };
    world.create::<Secret>(world.api(), dependent("kept", &owner.uid().unwrap())).await;
    world.create::<Secret>(world.api(), dependent("stale", "00000000-0000-0000-0000-000000000000")).await;
    let unknown = json!({"metadata": {"name": "unknown", "ownerReferences": [
        {"apiVersion": "nowhere.io/v1", "kind": "Thing", "name": "x", "uid": "1"}
    ]}});
    world.create::<Secret>(world.api(), unknown).await;
    eventually("the stale one goes", || async {
        world.api::<Secret>().get_opt("stale").await.ok()?.is_none().then_some(())
    })
    .await;
    assert!(world.api::<Secret>().get_opt("kept").await.unwrap().is_some());
    assert!(world.api::<Secret>().get_opt("unknown").await.unwrap().is_some(), "an unknown kind proves nothing");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_emptied_and_goes() {
    let world = settled().await;
    let namespaces: Api<Namespace> = Api::all(world.admin.clone());
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    world.create::<ConfigMap>(world.api(), held).await;
    namespaces.delete(NS, &DeleteParams::default()).await.unwrap();
    eventually("the condition names the finalizer", || async {
        let status = namespaces.get(NS).await.ok()?.status?;
        let found = status.conditions?.into_iter().find(|c| c.type_ == "NamespaceFinalizersRemaining")?;
        found.message?.contains("example.com/hold in 1 resource instances").then_some(())
    })
    .await;
    assert!(world.list::<Pod>("").await.is_empty());
    world.patch::<ConfigMap>("held", json!({"metadata": {"finalizers": null}})).await;
    eventually("the namespace goes", || async { namespaces.get_opt(NS).await.ok()?.is_none().then_some(()) }).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_has_its_account_and_ca() {
    let world = World::new(config()).await;
    let present = |client: Client| async move {
        let account = Api::<ServiceAccount>::namespaced(client.clone(), NS).get_opt("default").await.ok()??;
        let ca = Api::<ConfigMap>::namespaced(client, NS).get_opt("kube-root-ca.crt").await.ok()??;
        (ca.data?["ca.crt"] == "PEM").then_some(account)
    };
    eventually("created", || present(world.admin.clone())).await;
    world.api::<ServiceAccount>().delete("default", &DeleteParams::default()).await.unwrap();
    world.patch::<ConfigMap>("kube-root-ca.crt", json!({"data": {"ca.crt": "forged"}})).await;
    eventually("repaired", || present(world.admin.clone())).await;
    world.end().await;
}
