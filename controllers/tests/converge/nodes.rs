//! Nodes that fall silent or vanish.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use scaleup_api::well_known::ANNOTATION_WANTED_POD_CIDR;
use scaleup_controllers::{Config, nodeipam};
use serde_json::json;

use crate::world::{World, config, deployment, eventually, ready};

fn impatient() -> Config {
    Config {
        node_monitor_period: Duration::from_millis(100),
        node_monitor_grace_period: Duration::from_secs(3),
        node_eviction_rate_per_second: 10.0,
        ..config()
    }
}

fn taints(node: &Node) -> Vec<String> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().map(|t| format!("{}:{}", t.key.trim_start_matches("node.kubernetes.io/"), t.effect)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_a_silent_node() {
    let mut world = World::bare().await;
    world.add_controllers(impatient(), None);
    let dying = world.add_node("n1");
    let namespace = json!({"metadata": {"name": crate::world::NS}});
    world.create::<k8s_openapi::api::core::v1::Namespace>(Api::all(world.admin.clone()), namespace).await;
    let mut body = deployment(2, "v1");
    let toleration = json!({
        "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1,
    });
    body["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(30);
    body["spec"]["template"]["spec"]["tolerations"] = json!([toleration]);
    world.create::<Deployment>(world.api(), body).await;
    world.rolled_out(2, "v1").await;
    let before = world.ready_pods().await;
    world.add_node("n2");
    let nodes: Api<Node> = Api::all(world.admin.clone());
    eventually("n2 is up", || async { nodes.get("n2").await.ok().filter(ready).map(|_| ()) }).await;

    dying.cancel();
    eventually("n1 is unreachable", || async {
        let node = nodes.get("n1").await.ok()?;
        let unknown =
            node.status.as_ref()?.conditions.as_ref()?.iter().any(|c| c.type_ == "Ready" && c.status == "Unknown");
        let all =
            ["unreachable:NoSchedule", "unreachable:NoExecute"].iter().all(|t| taints(&node).contains(&(*t).into()));
        (unknown && all).then_some(())
    })
    .await;
    eventually("the pods run on n2", || async {
        let pods = world.list::<Pod>("app=web").await;
        let on_n2 = pods.iter().filter(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some("n2"));
        (on_n2.filter(|p| scaleup_api::pods::is_ready(p)).count() == 2).then_some(())
    })
    .await;
    // Nobody stops the old ones until the node is said to be gone.
    let stuck = |p: &Pod| before.contains_key(&p.name_any()) && p.metadata.deletion_timestamp.is_some();
    assert_eq!(world.list::<Pod>("app=web").await.iter().filter(|p| stuck(p)).count(), 2);
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    eventually("they are collected", || async { (world.list::<Pod>("app=web").await.len() == 2).then_some(()) }).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_evicted_when_everything_is_down() {
    let mut world = World::bare().await;
    world.add_controllers(impatient(), None);
    let dying = world.add_node("n1");
    let nodes: Api<Node> = Api::all(world.admin.clone());
    eventually("n1 is up", || async {
        nodes.get("n1").await.ok().filter(|n| ready(n) && taints(n).is_empty()).map(|_| ())
    })
    .await;
    dying.cancel();
    eventually("n1 is unreachable", || async {
        taints(&nodes.get("n1").await.ok()?).contains(&"unreachable:NoSchedule".into()).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!taints(&nodes.get("n1").await.unwrap()).contains(&"unreachable:NoExecute".into()));
    world.add_node("n1");
    eventually("it recovers", || async { taints(&nodes.get("n1").await.ok()?).is_empty().then_some(()) }).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_nodes_share_a_pod_subnet() {
    let mut world = World::bare().await;
    let nodes: Api<Node> = Api::all(world.admin.clone());
    let node = |name: &str, cidr: Option<&str>, wanted: Option<&str>| {
        json!({
            "metadata": {"name": name, "annotations": wanted.map(|w| json!({ANNOTATION_WANTED_POD_CIDR: w}))},
            "spec": {"podCIDR": cidr.unwrap_or_default()},
        })
    };
    let create = |name: &'static str, cidr: Option<&'static str>, wanted: Option<&'static str>| {
        let (api, node) = (nodes.clone(), serde_json::from_value(node(name, cidr, wanted)).unwrap());
        async move { api.create(&PostParams::default(), &node).await.unwrap() }
    };
    // There before the controllers are, and not to be touched.
    create("old", Some("10.244.1.0/24"), None).await;
    let pods = nodeipam::Config::new("10.244.0.0/22", 24).unwrap();
    // One in five calls fails: an answer that was lost must not give a node two subnets.
    world.add_controllers(Config { pod_network: Some(pods), ..config() }, Some(7));
    let wish = Some("10.244.2.0/24");
    tokio::join!(create("a", None, wish), create("b", None, wish), create("c", None, Some("10.244.1.0/24")));
    let subnets = || async {
        let all = nodes.list(&ListParams::default()).await.ok()?;
        let of = |node: &Node| node.spec.as_ref()?.pod_cidrs.as_ref()?.first().cloned();
        Some(all.items.iter().filter_map(|n| Some((n.name_any(), of(n)?))).collect::<BTreeMap<_, _>>())
    };
    let four = eventually("all have one", || async { subnets().await.filter(|all| all.len() == 4) }).await;
    let different: BTreeSet<&String> = four.values().collect();
    assert_eq!((different.len(), four["old"].as_str()), (4, "10.244.1.0/24"), "{four:?}");
    assert!(
        [&four["a"], &four["b"]].into_iter().any(|given| Some(given.as_str()) == wish),
        "the first wish is granted: {four:?}"
    );

    // The range is full: an event says so, and the next one that goes makes room.
    create("d", None, None).await;
    let events: Api<Event> = Api::default_namespaced(world.admin.clone());
    eventually("an event tells", || async {
        let all = events.list(&ListParams::default()).await.ok()?;
        all.items.iter().any(|e| e.reason.as_deref() == Some("CIDRNotAvailable")).then_some(())
    })
    .await;
    nodes.delete("b", &DeleteParams::default()).await.unwrap();
    let then = eventually("d has the one of b", || async { subnets().await.filter(|all| all.contains_key("d")) }).await;
    assert_eq!(then["d"], four["b"]);
    world.end().await;
}
