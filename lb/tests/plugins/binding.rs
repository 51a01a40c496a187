//! A plugin takes its place when its module is there, not before, and without a request that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hyper::StatusCode;
use libtest_mimic::Trial;
use scaleup_lb::policy::{PluginRef, RequestPolicy, ServicePolicy};
use scaleup_plugins::{Registry, Rollout};

use crate::decisions::{bound, in_order};
use crate::guests::*;
use crate::routed::{Routed, Setup, governed};
use crate::scripted::{addrs, until, with};
use crate::support::*;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("what_was_served_goes_on_until_the_module_is_there", what_was_served_goes_on_until_the_module_is_there),
        trial("a_route_keeps_its_plugin_until_the_next_is_there", a_route_keeps_its_plugin_until_the_next_is_there),
        trial("reloads_under_load_fail_no_request", reloads_under_load_fail_no_request),
        trial("a_candidate_takes_its_share_and_a_shadow_none", a_candidate_takes_its_share_and_a_shadow_none),
    ]
}

async fn what_was_served_goes_on_until_the_module_is_there() {
    let (endpoints, registry) = (in_order::<2>().await, Arc::new(Registry::default()));
    let addrs = addrs(&endpoints);
    let lab = Lab::start("http", &addrs, |config| config.plugins = registry.clone()).await;
    let mut client = Client::connect(lab.addr).await;
    assert_eq!(client.get("/").await.0, StatusCode::OK);
    // Refuses requests as long as it is not there: but it is not in place yet.
    lab.lb.publish(with(&addrs, bound(&wanted("p", &[])), RequestPolicy::default()));
    for _ in 0..10 {
        assert_eq!(client.get("/").await.0, StatusCode::OK);
    }
    publish(&registry, "p", 1, &rejects(403, "x", "y"), None).await;
    until("the plugin decides", async || Client::connect(lab.addr).await.get("/").await.0 == StatusCode::FORBIDDEN)
        .await;
    // Once in place it stays there, whatever happens to its module.
    registry
        .slot(&plugin_key("p"), scaleup_plugins::World::Routing)
        .policy
        .clear(scaleup_plugins::Class::Fetch, "gone");
    lab.lb.publish(with(&addrs, bound(&wanted("p", &["x-a"])), RequestPolicy::default()));
    assert_eq!(client.get("/").await.0, StatusCode::SERVICE_UNAVAILABLE);
    lab.lb.publish(with(&addrs, ServicePolicy::default(), RequestPolicy::default()));
    assert_eq!(client.get("/").await.0, StatusCode::OK);
    lab.stop().await;
}

async fn a_route_keeps_its_plugin_until_the_next_is_there() {
    let (endpoints, registry) = (in_order::<2>().await, Arc::new(Registry::default()));
    let setup = |prefix: &str, name: &str| {
        let plugin = Arc::new(PluginRef { whole_rule: true, ..PluginRef::clone(&wanted(name, &[])) });
        let policy = RequestPolicy { plugin: Some(plugin), ..RequestPolicy::default() };
        Setup::default().service("web", &addrs(&endpoints)).rules(vec![governed(prefix, "web", policy)])
    };
    publish(&registry, "a", 1, &picks(0), None).await;
    let lab = Routed::configured(&setup("/", "a"), |config| config.plugins = registry.clone()).await;
    assert_eq!(lab.get("/").await.body, "e0");
    lab.publish(&setup("/", "b"));
    for _ in 0..5 {
        assert_eq!(lab.get("/").await.body, "e0", "b is not there yet");
    }
    // A route that is new has nothing to go on with.
    lab.publish(&setup("/new", "b"));
    assert_eq!(lab.get("/new").await.status, 503);
    lab.publish(&setup("/", "a"));
    assert_eq!(lab.get("/").await.body, "e0");
    lab.publish(&setup("/", "b"));
    publish(&registry, "b", 1, &picks(1), None).await;
    until("b decides", async || lab.get("/").await.body == "e1").await;
    lab.stop().await;
}

async fn reloads_under_load_fail_no_request() {
    const RELOADS: u64 = 30;
    let (endpoints, registry) = (in_order::<2>().await, Arc::new(Registry::default()));
    let slot = publish(&registry, "p", 1, &picks(0), None).await;
    let lab = crate::decisions::lab(&endpoints, &registry, &[]).await;
    let (addr, over) = (lab.addr, Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let over = over.clone();
            tokio::spawn(async move {
                let (mut client, mut count) = (Client::connect(addr).await, 0u64);
                while !over.load(Relaxed) {
                    assert_eq!(client.get("/").await.0, StatusCode::OK);
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut generations = vec![slot.policy.generations().active.clone().unwrap()];
    for number in 2..=RELOADS {
        let next = generation("p", number, &picks((number % 2) as u32), None).await;
        slot.policy.publish(next.clone()).unwrap();
        generations.push(next);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    over.store(true, Relaxed);
    let mut sent = 0;
    for client in clients {
        sent += client.await.unwrap();
    }
    let decided: u64 = generations.iter().map(|generation| generation.statistics().decisions).sum();
    assert_eq!(decided, sent, "each request is decided by exactly one generation");
    assert!(generations.iter().all(|generation| generation.statistics().failed() == 0));
    let odd: u64 = generations.iter().filter(|g| g.number() % 2 == 1).map(|g| g.statistics().decisions).sum();
    // The first one picks the first endpoint, as those with even numbers do.
    let first = generations[0].statistics().decisions;
    assert_eq!((endpoints[1].served(), endpoints[0].served()), (odd - first, sent - odd + first));
    lab.stop().await;
}

async fn a_candidate_takes_its_share_and_a_shadow_none() {
    let (endpoints, registry) = (in_order::<2>().await, Arc::new(Registry::default()));
    let slot = publish(&registry, "p", 1, &picks(0), None).await;
    let lab = crate::decisions::lab(&endpoints, &registry, &[]).await;
    let shadow = generation("p", 2, &picks(1), None).await;
    slot.policy.stage(shadow.clone(), Rollout::Shadow).unwrap();
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..100 {
        assert_eq!(client.get("/").await.1, "e0");
    }
    assert_eq!((shadow.statistics().decisions, shadow.statistics().differences), (100, 100));
    slot.policy.stage(shadow, Rollout::Canary(30)).unwrap();
    for _ in 0..200 {
        client.get("/").await;
    }
    assert_eq!((endpoints[0].served(), endpoints[1].served()), (240, 60));
    lab.stop().await;
}
