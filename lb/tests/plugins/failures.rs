//! Plugins that give no decision: the failure policy is followed, and nobody else notices.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use libtest_mimic::Trial;
use scaleup_lb::policy::RequestPolicy;
use scaleup_plugins::testing::Guest;
use scaleup_plugins::{Class, FailurePolicy, OnFailure, Registry};

use crate::decisions::{bound, in_order, lab, served};
use crate::guests::*;
use crate::h2_support::H2Client;
use crate::routed::{Routed, Setup, governed, rule};
use crate::scripted::addrs;
use crate::support::*;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("each_failure_is_dealt_with_as_its_policy_says", each_failure_is_dealt_with_as_its_policy_says),
        trial("a_plugin_that_is_not_there_refuses_or_does_not", a_plugin_that_is_not_there_refuses_or_does_not),
        trial("traps_now_and_then_cost_no_request", traps_now_and_then_cost_no_request),
        trial("others_do_not_notice_a_loop", others_do_not_notice_a_loop),
    ]
}

/// One class refuses, all others do not.
fn only(class: Class, answer: OnFailure) -> FailurePolicy {
    let mut policy =
        FailurePolicy::always(if answer == OnFailure::Refuse { OnFailure::BuiltIn } else { OnFailure::Refuse });
    match class {
        Class::Fetch => policy.fetch = answer,
        Class::Compile => policy.compile = answer,
        Class::Trap => policy.trap = answer,
        Class::Timeout => policy.timeout = answer,
        Class::InvalidOutput => policy.invalid_output = answer,
    }
    policy
}

async fn each_failure_is_dealt_with_as_its_policy_says() {
    let failing: [(Class, Guest, Option<Duration>); 3] = [
        (Class::Trap, traps_every(1), None),
        (Class::Timeout, loops(), Some(Duration::from_millis(2))),
        (Class::InvalidOutput, picks(3), None),
    ];
    for (class, guest, time) in failing {
        let (endpoints, registry) = (in_order::<3>().await, Arc::new(Registry::default()));
        let slot = publish(&registry, "p", 1, &guest, time).await;
        slot.set_failure(only(class, OnFailure::Refuse));
        let lab = lab(&endpoints, &registry, &[]).await;
        let mut client = Client::connect(lab.addr).await;
        // Some before and some after it is given a rest.
        for _ in 0..12 {
            let response = client.send("GET", "/", text_body("")).await.unwrap();
            let after = response.headers().get("retry-after").map(|after| after.to_str().unwrap().parse::<u64>());
            assert_eq!(
                (response.status(), after.is_some_and(|after| after.is_ok())),
                (StatusCode::SERVICE_UNAVAILABLE, true)
            );
            http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        }
        let answer = H2Client::connect(lab.addr).await.get("/").await;
        assert_eq!(answer.status, 503, "{class:?}");
        assert!(answer.field("retry-after").parse::<u64>().is_ok());
        assert_eq!(served(&endpoints), [0, 0, 0], "{class:?}");

        slot.set_failure(only(class, OnFailure::BuiltIn));
        for _ in 0..12 {
            assert_eq!(client.get("/").await.0, StatusCode::OK, "{class:?}");
        }
        assert_eq!(served(&endpoints), [4, 4, 4], "{class:?}: in turn, as without plugin");
        lab.stop().await;
    }
}

async fn a_plugin_that_is_not_there_refuses_or_does_not() {
    let (endpoints, registry) = (in_order::<1>().await, Arc::new(Registry::default()));
    let slot = registry.slot(&plugin_key("p"), scaleup_plugins::World::Routing);
    // Nothing was served before that could go on.
    let setup = Setup::default().service_with("web", &addrs(&endpoints), bound(&wanted("p", &[])));
    let setup = setup.rules(vec![rule("/", "web")]);
    let lab = Routed::configured(&setup, |config| config.plugins = registry.clone()).await;
    assert_eq!(lab.get("/").await.status, 503, "nothing is known of it yet");
    slot.set_failure(only(Class::Fetch, OnFailure::BuiltIn));
    assert_eq!(lab.get("/").await.status, 200);
    slot.policy.set_absent(Class::Compile, "it does not compile");
    assert_eq!(lab.get("/").await.status, 503);
    slot.set_failure(only(Class::Compile, OnFailure::BuiltIn));
    assert_eq!(lab.get("/").await.status, 200);
    lab.stop().await;
}

async fn traps_now_and_then_cost_no_request() {
    let (endpoints, registry) = (in_order::<2>().await, Arc::new(Registry::default()));
    let slot = publish(&registry, "p", 1, &traps_every(5), None).await;
    let lab = lab(&endpoints, &registry, &[]).await;
    let mut client = Client::connect(lab.addr).await;
    for _ in 0..100 {
        assert_eq!(client.get("/").await.0, StatusCode::OK);
    }
    let active = slot.policy.generations().active.clone().unwrap();
    assert!(active.statistics().failed() >= 5, "{:?}", active.statistics());
    lab.stop().await;
}

async fn others_do_not_notice_a_loop() {
    let (endpoints, registry) = (in_order::<2>().await, Arc::new(Registry::default()));
    publish(&registry, "p", 1, &loops(), Some(Duration::from_millis(2))).await;
    let addrs = addrs(&endpoints);
    let setup = Setup::default()
        .service_with("hostile", &addrs[..1], bound(&wanted("p", &[])))
        .service("other", &addrs[1..])
        .rules(vec![rule("/hostile", "hostile"), governed("/other", "other", RequestPolicy::default())]);
    let lab = Routed::configured(&setup, |config| config.plugins = registry.clone()).await;
    let addr = lab.addr;
    let hostile = tokio::spawn(async move {
        let mut client = Client::connect(addr).await;
        for _ in 0..200 {
            client.get("/hostile").await;
        }
    });
    let mut client = Client::connect(addr).await;
    for _ in 0..200 {
        assert_eq!(client.get("/other").await, (StatusCode::OK, "e1".to_owned()));
    }
    hostile.await.unwrap();
    assert_eq!(endpoints[0].served(), 200, "the built-in policy decides");
    lab.stop().await;
}
