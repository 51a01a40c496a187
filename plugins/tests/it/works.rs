//! What components do that do what they should: decide, keep apart, be replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use scaleup_plugins::routing::{Decision, Topology};
use scaleup_plugins::{BreakerState, Class, ExampleError, Policy, Rollout, World, admission, scheduling};

use crate::support::{Lab, THREADS, generous, request, route, trial};
use scaleup_plugins::testing::{Guest, least_in_flight};

/// Picks this endpoint.
fn picks(index: u32) -> Guest {
    Guest::new(
        World::Routing,
        &format!(
            "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store offset=4 (i32.const 1024) (i32.const {index})) (i32.const 1024)"
        ),
    )
}

/// Always fails.
fn traps() -> Guest {
    Guest::new(World::Routing, "unreachable")
}

pub fn trials() -> Vec<Trial> {
    vec![
        trial("a_request_is_routed", || {
            let lab = Lab::new();
            let policy = lab.policy(World::Routing, &least_in_flight());
            assert_eq!(route(&policy), Ok(Decision::Pick(1)));
            let decided = policy.route(&request(&[9, 8, 7, 7]), &Arc::new(Topology::default()), 1, Instant::now());
            let decided = decided.expect("it decides");
            assert_eq!((decided.answer, decided.generation), (Decision::Pick(2), 1));
        }),
        trial("a_core_module_is_made_a_component", || {
            let lab = Lab::new();
            let module = lab.compile(World::Routing, &least_in_flight().core(), &generous(World::Routing));
            assert_eq!(module.expect("it compiles").world(), World::Routing);
        }),
        trial("the_parent_never_compiles", cache),
        trial("nodes_are_scored", || {
            // Verdict i for node i.
            let guest = Guest::new(
                World::Scheduling,
                "(local $n i32) (local $i i32)
                 (i32.store (i32.const 1024) (i32.const 2048))
                 (i32.store offset=4 (i32.const 1024) (i32.const 3))
                 (loop $l
                   (i32.store (i32.add (i32.const 2048) (i32.shl (local.get $i) (i32.const 2))) (local.get $i))
                   (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 3))))
                 (i32.const 1024)",
            );
            let lab = Lab::new();
            let policy = lab.policy(World::Scheduling, &guest);
            let input = scheduling::Input { nodes: vec![scheduling::Node::default(); 3], ..Default::default() };
            let decided = policy.place(&input, 0, Instant::now()).expect("it decides");
            assert_eq!(decided.answer.verdicts, [0, 1, 2]);
        }),
        trial("a_write_is_admitted_by_a_fresh_instance_each_time", || {
            // Allows only the first call of an instance.
            let guest = Guest::new(
                World::Admission,
                "(if (i32.ne (global.get $calls) (i32.const 1)) (then unreachable)) (i32.const 1024)",
            );
            let lab = Lab::new();
            let policy = lab.policy(World::Admission, &guest);
            let input = admission::Input { object: Some("{}".into()), ..Default::default() };
            for _ in 0..3 {
                let decided = policy.admit(&input, Instant::now()).expect("it decides");
                assert_eq!(decided.answer.verdict, admission::Verdict::Allow);
            }
            let read = policy.generations().active.as_ref().expect("it is there").statistics();
            assert!(read.decisions == 3 && read.fuel > 0 && read.peak_memory_bytes >= 65_536, "{read:?}");
        }),
        trial("examples_are_probed", examples),
        trial("a_module_of_one_world_is_no_policy_of_another", || {
            let lab = Lab::new();
            let module = lab.module(World::Routing, &picks(0));
            let generation = lab.generation(&module, 1, generous(World::Routing)).expect("it starts");
            let policy = Policy::new("shop/p", World::Admission);
            assert!(policy.publish(generation).is_err());
            let failure = policy.admit(&Default::default(), Instant::now()).expect_err("nothing is loaded");
            assert_eq!((failure.class, failure.skipped), (Class::Fetch, true));
        }),
        trial("what_is_absent_fails_with_the_class_that_it_was_given", || {
            let policy = Policy::new("shop/p", World::Routing);
            policy.set_absent(Class::Compile, "it does not compile");
            let failure = route(&policy).expect_err("nothing is loaded");
            assert_eq!((failure.class, &*failure.message), (Class::Compile, "it does not compile"));
        }),
        trial("a_failing_generation_gives_way_to_the_one_before", || {
            let lab = Lab::new();
            let policy = lab.policy(World::Routing, &picks(2));
            let module = lab.module(World::Routing, &traps());
            policy
                .publish(lab.generation(&module, 2, generous(World::Routing)).expect("it starts"))
                .expect("the world");
            let failures = (0..100).filter(|_| route(&policy).is_err()).count();
            assert_eq!(failures, 5, "and then the generation before decides");
            let all = policy.generations();
            assert_eq!(all.active.as_ref().map(|active| active.number()), Some(1));
            assert_eq!(all.tripped.as_ref().map(|tripped| tripped.number()), Some(2));
        }),
        trial("unusable_answers_are_failures", || {
            let lab = Lab::new();
            let policy = lab.policy(World::Routing, &picks(2));
            let module = lab.module(World::Routing, &picks(1));
            policy
                .publish(lab.generation(&module, 2, generous(World::Routing)).expect("it starts"))
                .expect("the world");
            for _ in 0..5 {
                assert_eq!(route(&policy), Ok(Decision::Pick(1)));
                assert_eq!(policy.unusable(2, "of no use", Instant::now()).class, Class::InvalidOutput);
            }
            assert_eq!(route(&policy), Ok(Decision::Pick(2)), "the generation before decides again");
            let tripped = policy.generations().tripped.clone().expect("it is known");
            assert_eq!((tripped.statistics().decisions, tripped.statistics().failed()), (5, 5));
        }),
        trial("a_failing_generation_without_predecessor_is_given_a_rest", || {
            let lab = Lab::new();
            let policy = lab.policy(World::Routing, &traps());
            let skipped = (0..20).filter(|_| route(&policy).is_err_and(|failure| failure.skipped)).count();
            assert_eq!(skipped, 15);
            let all = policy.generations();
            let active = all.active.as_ref().expect("it stays");
            assert_eq!((active.breaker(), active.statistics().decisions), (BreakerState::Open, 5));
        }),
        trial("a_failing_canary_hurts_nobody_and_is_taken_out", || {
            let lab = Lab::new();
            let policy = lab.policy(World::Routing, &picks(2));
            let module = lab.module(World::Routing, &traps());
            let candidate = lab.generation(&module, 2, generous(World::Routing)).expect("it starts");
            policy.stage(candidate.clone(), Rollout::Canary(50)).expect("the world");
            assert!((0..200).all(|_| route(&policy) == Ok(Decision::Pick(2))));
            assert!(policy.generations().candidate.is_none());
            assert_eq!(candidate.statistics().failed(), 5);
        }),
        trial("a_canary_gets_its_share_and_a_shadow_only_counts", || {
            let lab = Lab::new();
            let policy = lab.policy(World::Routing, &picks(2));
            let module = lab.module(World::Routing, &picks(0));
            let candidate = lab.generation(&module, 2, generous(World::Routing)).expect("it starts");
            policy.stage(candidate.clone(), Rollout::Shadow).expect("the world");
            assert!((0..100).all(|_| route(&policy) == Ok(Decision::Pick(2))));
            assert_eq!((candidate.statistics().decisions, candidate.statistics().differences), (100, 100));
            policy.stage(candidate.clone(), Rollout::Canary(10)).expect("the world");
            assert_eq!((0..1000).filter(|_| route(&policy) == Ok(Decision::Pick(0))).count(), 100);
            policy.publish(candidate).expect("the world");
            assert_eq!(route(&policy), Ok(Decision::Pick(0)));
            assert_eq!(policy.roll_back(), Some(1));
            assert_eq!(route(&policy), Ok(Decision::Pick(2)));
            assert_eq!(policy.roll_back(), Some(2), "there and back");
        }),
        trial("replacing_a_generation_a_hundred_times_fails_nobody", replacing),
    ]
}

fn cache() {
    let lab = Lab::new();
    let source = least_in_flight().component();
    let compile = |lab: &Lab| lab.compile(World::Routing, &source, &generous(World::Routing)).expect("it compiles");
    let module = compile(&lab);
    assert_eq!(lab.host.cache_counts(), (1, 0), "what the child compiled was found");
    assert!(Arc::ptr_eq(&module, &compile(&lab)), "equal modules are one");
    // After a restart, from the disk.
    let Lab { cache, .. } = lab;
    let lab = Lab::at(cache);
    compile(&lab);
    assert_eq!(lab.host.cache_counts(), (1, 0));
}

fn examples() {
    let input = r#"{"endpoints": [{"inFlight": 3}, {"inFlight": 1}]}"#;
    let guest = least_in_flight().metadata(
        r#"{"type": "object"}"#,
        &[
            ["right", "{}", input, r#"{"pick": 1}"#],
            ["wrong", "{}", input, r#"{"pick": 0}"#],
            ["broken", "{}", "{", r#"{"pick": 0}"#],
        ],
    );
    let lab = Lab::new();
    let module = lab.module(World::Routing, &guest);
    assert_eq!(module.metadata().config_schema, r#"{"type": "object"}"#);
    let probe = |at: usize| lab.host.probe(&module, &module.metadata().examples[at], &generous(World::Routing));
    assert_eq!(module.metadata().examples.len(), 3);
    assert_eq!(probe(0), Ok(()));
    let answer = serde_json::json!({"pick": 1});
    assert_eq!(probe(1), Err(ExampleError::Differs { path: "/pick".into(), answer }));
    assert!(matches!(probe(2), Err(ExampleError::Unreadable { part: "input", .. })), "{:?}", probe(2));
}

fn replacing() {
    let lab = Lab::new();
    let policy = lab.policy(World::Routing, &picks(1));
    let modules = [lab.module(World::Routing, &picks(0)), lab.module(World::Routing, &picks(1))];
    let (stop, decided) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (policy, stop, decided) = (&policy, &stop, &decided);
            scope.spawn(move || {
                let (input, topology) = (request(&[1, 2]), Arc::new(Topology::default()));
                while !stop.load(Ordering::Relaxed) {
                    let got = policy.route(&input, &topology, thread, Instant::now()).expect("nobody fails");
                    // Generations with even numbers pick 0, the others 1: an answer belongs to the generation that gave it.
                    assert_eq!(got.answer, Decision::Pick((got.generation % 2) as u32));
                    decided.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for number in 2..102 {
            let module = &modules[number as usize % 2];
            let generation = lab.generation(module, number, generous(World::Routing)).expect("it starts");
            policy.publish(generation).expect("the world");
            // Until it has decided something.
            let before = decided.load(Ordering::Relaxed);
            while decided.load(Ordering::Relaxed) < before + 10 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(decided.load(Ordering::Relaxed) >= 1000);
    assert_eq!(policy.generations().active.as_ref().map(|active| active.number()), Some(101));
}
