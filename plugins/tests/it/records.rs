//! Decisions are recorded, bounded and redacted, and taken again exactly.

use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::Trial;
use scaleup_plugins::routing::{Decision, Header, Topology};
use scaleup_plugins::testing::{Guest, least_in_flight};
use scaleup_plugins::{Outcome, PluginKey, Record, Recording, Registry, World};

use crate::support::{Lab, generous, request, trial};

/// Picks the endpoint whose position is the length of the value at the key `k`, and sets that value one longer.
fn counts_in_state() -> Guest {
    Guest::new(
        World::Routing,
        r#"
    (local $length i32)
    (call $get (i32.const 2048) (i32.const 1) (i32.const 2064))
    (if (i32.load8_u (i32.const 2064)) (then (local.set $length (i32.load offset=8 (i32.const 2064)))))
    (call $set (i32.const 2048) (i32.const 1) (i32.const 2048) (i32.add (local.get $length) (i32.const 1)) (i32.const 2096))
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store offset=4 (i32.const 1024) (local.get $length))
    (i32.const 1024)"#,
    )
    .imports(
        r#"(import "scaleup:policy/state@0.1.0" "get" (func $get (param i32 i32 i32)))
  (import "scaleup:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32)))"#,
    )
    .extra(r#"(data (i32.const 2048) "k")"#)
}

fn everything(records: usize) -> Option<Recording> {
    Some(Recording { percent: 100, records, plain_headers: ["x-plain".into()].into() })
}

pub fn trials() -> Vec<Trial> {
    vec![
        trial("the_latest_decisions_are_kept_without_personal_data", || {
            let lab = Lab::new();
            let slot = Registry::default().slot(&PluginKey::namespaced("shop", "p"), World::Routing);
            let module = lab.module(World::Routing, &least_in_flight());
            let generation = lab.generation(&module, 7, generous(World::Routing)).expect("it starts");
            slot.policy.publish(generation).expect("the world is right");
            let topology = Arc::new(Topology { backends: vec!["shop/web:80".into()], ..Topology::default() });
            let ask = |in_flight: &[u32]| {
                let mut input = request(in_flight);
                let header = |name: &str| Header { name: name.into(), value: "ann".into() };
                input.request.headers = vec![header("x-user"), header("x-plain")];
                slot.policy.route(&input, &topology, 0, Instant::now()).expect("an answer").answer
            };
            ask(&[1, 2]);
            assert_eq!(slot.records(), [], "nobody wants them");
            slot.set_recording(everything(2));
            (1..=3).for_each(|n| assert_eq!(ask(&[n, 0, n]), Decision::Pick(1)));
            let records = slot.records();
            assert_eq!(records.len(), 2, "the latest ones");
            let last = &records[1];
            assert_eq!((last.plugin.as_str(), last.generation, last.world), ("shop/p", 7, World::Routing));
            assert_eq!(last.digest, module.digest().to_string());
            assert_eq!(last.input["endpoints"][0]["inFlight"], 3);
            assert_eq!(last.input["topology"]["backends"][0], "shop/web:80");
            let headers = &last.input["request"]["headers"];
            assert!(headers[0]["value"].as_str().expect("a text").starts_with("hashed:"), "{headers}");
            assert_eq!(headers[1]["value"], "ann");
            assert_eq!(last.outcome, Outcome::Answer(serde_json::json!({"pick": 1})));
            let line = last.line().expect("a line");
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Record>(&line).expect("a record"), *last);
            // The first of three is not kept any more; numbers go on whatever is kept.
            let from = |number: u64, most: usize| {
                let found = slot.records_since(number, most);
                found
                    .into_iter()
                    .map(|(next, one)| (next, one.input["endpoints"][0]["inFlight"].clone()))
                    .collect::<Vec<_>>()
            };
            let n = |n: u32| serde_json::json!(n);
            assert_eq!(from(0, 10), [(2, n(2)), (3, n(3))]);
            assert_eq!(from(0, 1), [(2, n(2))]);
            assert_eq!(from(2, 10), [(3, n(3))]);
            assert_eq!(from(3, 10), []);
            slot.set_recording(None);
            assert_eq!(slot.records(), [], "what is not wanted is forgotten");
            slot.set_recording(everything(2));
            ask(&[4, 0, 4]);
            assert_eq!(from(3, 10), [(4, n(4))]);
        }),
        trial("replay_takes_the_same_decisions_and_finds_others", || {
            let lab = Lab::new();
            let slot = Registry::default().slot(&PluginKey::cluster("p"), World::Routing);
            let limits = generous(World::Routing);
            let module = lab.module(World::Routing, &counts_in_state());
            slot.policy.publish(lab.generation(&module, 1, limits.clone()).expect("it starts")).expect("the world");
            slot.set_recording(everything(100));
            let topology = Arc::new(Topology::default());
            for turn in 0..4_u32 {
                let decided = slot.policy.route(&request(&[1, 1, 1]), &topology, 0, Instant::now());
                match turn {
                    3 => assert!(decided.is_err(), "there is no fourth endpoint"),
                    _ => assert_eq!(decided.expect("an answer").answer, Decision::Pick(turn)),
                }
            }
            let records = slot.records();
            assert_eq!(records.len(), 4);
            assert_eq!(records[0].state["k"], None);
            assert_eq!(records[2].state["k"].as_deref(), Some("awA="));
            for record in &records {
                let again = lab.host.replay(&module, record, None, &limits).expect("a record");
                assert_eq!(again, record.outcome);
            }
            let other = lab.module(World::Routing, &least_in_flight());
            let changed: Vec<bool> = records
                .iter()
                .map(|record| {
                    let again = lab.host.replay(&other, record, None, &limits).expect("a record");
                    again.compared() != record.outcome.compared()
                })
                .collect();
            assert_eq!(changed, [false, true, true, true]);
        }),
    ]
}
