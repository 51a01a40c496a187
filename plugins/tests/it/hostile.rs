//! What hostile components can do to the host: fail, and be told from each other. After each of them the host still works.

use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use scaleup_plugins::routing::Decision;
use scaleup_plugins::{Class, CompileError, Failure, Limits, World};

use crate::support::{Lab, generous, route};
use scaleup_plugins::testing::{Guest, component_of, least_in_flight};

/// A test by name.
fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::test(format!("hostile::{name}"), move || {
        test();
        Ok::<(), Failed>(())
    })
}

/// Limits under which everything that goes on for ever is stopped soon.
fn tight(world: World) -> Limits {
    Limits { time: Duration::from_millis(50), ..Limits::of(world) }
}

/// Routes with this component, and with a good one beside it, before and after.
#[track_caller]
fn check(guest: &Guest, class: Class, message: &str) {
    let lab = Lab::new();
    let good = lab.policy(World::Routing, &least_in_flight());
    assert_eq!(route(&good), Ok(Decision::Pick(1)));
    let bad = lab.policy_within(World::Routing, guest, tight(World::Routing));
    let failure = route(&bad).expect_err("it must fail");
    assert_eq!(failure.class, class, "{failure}");
    assert!(failure.message.contains(message), "{failure}");
    assert_eq!(route(&good), Ok(Decision::Pick(1)));
    let all = bad.generations();
    let read = all.active.as_ref().expect("it is still there").statistics();
    assert_eq!((read.decisions, read.errors[class as usize]), (1, 1));
}

/// Compiles these bytes, and a good component after them.
#[track_caller]
fn refused(world: World, source: &[u8], limits: &Limits) -> CompileError {
    let lab = Lab::new();
    let error = lab.compile(world, source, limits).expect_err("it must be refused");
    assert_eq!(route(&lab.policy(World::Routing, &least_in_flight())), Ok(Decision::Pick(1)));
    error
}

/// A routing component whose decision is this.
fn routing(decision: &str) -> Guest {
    Guest::new(World::Routing, decision)
}

pub fn trials() -> Vec<Trial> {
    vec![
        trial("an_infinite_loop_is_stopped", || {
            check(&routing("(loop $l (br $l)) unreachable"), Class::Timeout, "its time is up");
        }),
        trial("an_infinite_loop_uses_up_its_fuel", fuel),
        trial("deep_recursion_overflows_its_own_stack", || {
            let guest = routing("(call $deep (local.get $in))")
                .extra("(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))");
            check(&guest, Class::Trap, "call stack exhausted");
        }),
        trial("memory_grows_to_the_limit_and_not_past_it", memory),
        trial("tables_grow_to_the_limit_and_not_past_it", || {
            // Grows by 1000 elements until that fails, and then traps.
            let guest = routing(
                "(loop $l (br_if $l (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)))) unreachable",
            )
            .extra("(table $t 1 funcref)");
            check(&guest, Class::Trap, "unreachable");
        }),
        trial("more_memory_than_allowed_at_the_beginning_is_refused", || {
            let guest = routing("unreachable").pages(2_000);
            let error = refused(World::Routing, &guest.component(), &generous(World::Routing));
            assert!(matches!(error, CompileError::Limits(_)), "{error}");
        }),
        trial("thousands_of_exports_do_no_harm", || {
            let exports: String = (0..5_000)
                .map(|i| format!("(func (export \"e{i}\") (param i32) (result i32) unreachable)\n"))
                .collect();
            let lab = Lab::new();
            let guest = least_in_flight().extra(&exports);
            let core = guest.core();
            // Encoding either drops or refuses what is in no world; a component of it is as good as any.
            match lab.compile(World::Routing, &core, &generous(World::Routing)) {
                Ok(module) => assert_eq!(module.world(), World::Routing),
                Err(error) => assert!(matches!(error, CompileError::Invalid(_)), "{error}"),
            }
            assert_eq!(route(&lab.policy(World::Routing, &least_in_flight())), Ok(Decision::Pick(1)));
        }),
        trial("a_compile_bomb_is_stopped", compile_bomb),
        trial("a_compile_bomb_may_not_have_the_memory", || {
            let limits = Limits { compile_memory_bytes: 256 << 20, ..generous(World::Routing) };
            let lab = Lab::new();
            lab.compile(World::Routing, &least_in_flight().core(), &limits).expect("it is enough for a good one");
            let error = refused_bomb(&limits, 600);
            assert!(matches!(error, CompileError::TooExpensive { .. }), "{error}");
        }),
        trial("a_component_of_another_world_is_refused", || {
            let guest = Guest::new(World::Scaling, "unreachable");
            let error = refused(World::Routing, &guest.component(), &generous(World::Routing));
            let message = error.to_string();
            assert!(matches!(error, CompileError::WrongWorld { .. }), "{message}");
            assert!(message.ends_with("; it is one of the world scaling"), "{message}");
        }),
        trial("a_function_of_another_type_is_refused", || {
            let source = component_of(
                "package scaleup:policy@0.1.0;
                 interface metadata { config-schema: func() -> string; examples: func() -> list<string>; }
                 interface router { route: func() -> u32; }
                 world routing { export metadata; export router; }",
                "routing",
                r#"(module (memory (export "memory") 1)
                     (func (export "scaleup:policy/metadata@0.1.0#config-schema") (result i32) (i32.const 16))
                     (func (export "scaleup:policy/metadata@0.1.0#examples") (result i32) (i32.const 16))
                     (func (export "scaleup:policy/router@0.1.0#route") (result i32) (i32.const 0)))"#,
            );
            let error = refused(World::Routing, &source, &generous(World::Routing));
            assert!(matches!(error, CompileError::WrongWorld { .. }), "{error}");
        }),
        trial("a_missing_export_is_refused", || {
            let guest = least_in_flight().without("examples");
            let error = refused(World::Routing, &guest.core(), &generous(World::Routing));
            assert!(matches!(&error, CompileError::Invalid(why) if why.contains("examples")), "{error}");
        }),
        trial("a_foreign_import_is_refused", foreign_import),
        trial("invalid_utf8_is_an_invalid_answer", || {
            // A rejection with a header whose name is two bytes at 2048.
            let guest = routing(
                "(i32.store8 (i32.const 1024) (i32.const 2)) (i32.store16 offset=4 (i32.const 1024) (i32.const 503))
                 (i32.store offset=8 (i32.const 1024) (i32.const 2560)) (i32.store offset=12 (i32.const 1024) (i32.const 1))
                 (i32.store (i32.const 2560) (i32.const 2048)) (i32.store offset=4 (i32.const 2560) (i32.const 2))
                 (i32.const 1024)",
            )
            .extra(r#"(data (i32.const 2048) "\ff\fe")"#);
            check(&guest, Class::InvalidOutput, "utf-8");
        }),
        trial("an_unknown_variant_is_an_invalid_answer", || {
            let guest = routing("(i32.store8 (i32.const 1024) (i32.const 9)) (i32.const 1024)");
            check(&guest, Class::InvalidOutput, "");
        }),
        trial("a_pointer_outside_memory_is_an_invalid_answer", || {
            check(&routing("(i32.const -16)"), Class::InvalidOutput, "");
        }),
        trial("a_pick_outside_the_list_is_an_invalid_answer", || {
            let guest = routing(
                "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store offset=4 (i32.const 1024) (i32.const 3)) (i32.const 1024)",
            );
            check(&guest, Class::InvalidOutput, "picks endpoint 3 of 3");
        }),
        trial("results_out_of_range_are_invalid_answers", out_of_range),
        trial("an_oversized_answer_is_not_copied", oversized),
        trial("a_bad_allocator_fails_the_call", || {
            let guest = least_in_flight()
                .realloc(r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const -8))"#);
            let lab = Lab::new();
            let bad = lab.policy(World::Routing, &guest);
            assert_eq!(route(&bad).map_err(|failure| failure.class), Err(Class::InvalidOutput));
        }),
        trial("a_log_flood_is_dropped", log_flood),
        trial("counters_and_state_are_bounded", state_and_counters),
        trial("a_trap_at_every_nth_call_costs_those_calls", nth_call),
        trial("a_component_that_does_not_start_is_refused", || {
            let guest = least_in_flight().extra("(func $start (loop $l (br $l))) (start $start)");
            let limits = Limits { time: Duration::from_millis(50), ..Limits::of(World::Routing) };
            let error = refused(World::Routing, &guest.component(), &limits);
            assert!(matches!(&error, CompileError::Start(failure) if failure.class == Class::Timeout), "{error}");
        }),
        trial("a_truncated_module_is_refused", || {
            let (component, core) = (least_in_flight().component(), least_in_flight().core());
            for source in [&component[..component.len() / 2], &core[..core.len() / 2], &component[..9]] {
                let error = refused(World::Routing, source, &generous(World::Routing));
                assert!(matches!(error, CompileError::Invalid(_)), "{error}");
            }
        }),
        trial("what_is_no_wasm_is_refused", || {
            for source in [&b""[..], b"#!/bin/sh\nexit 0\n", b"\0asm"] {
                let error = refused(World::Routing, source, &generous(World::Routing));
                assert_eq!(error.to_string(), "not a WebAssembly component: these bytes are no WebAssembly");
            }
        }),
        trial("a_module_that_is_too_large_is_not_looked_at", || {
            let limits = Limits { module_bytes: 100, ..generous(World::Routing) };
            let error = refused(World::Routing, &[0; 101], &limits);
            assert!(matches!(error, CompileError::TooLarge { bytes: 101, most: 100 }), "{error}");
        }),
    ]
}

fn fuel() {
    let lab = Lab::new();
    let guest = Guest::new(World::Scaling, "(loop $l (br $l)) unreachable");
    let limits = Limits { fuel: 1_000_000, ..generous(World::Scaling) };
    let policy = lab.policy_within(World::Scaling, &guest, limits);
    let failure = policy.scale(&Default::default(), Instant::now()).expect_err("it must fail");
    assert_eq!((failure.class, &*failure.message), (Class::Timeout, "deciding: its fuel is used up"));
    let fuel = policy.generations().active.as_ref().expect("it is there").statistics().fuel;
    assert_eq!(fuel, 1_000_000);
}

fn memory() {
    // Grows by pages until that fails, and then picks endpoint 0.
    let grow = |at_most: &str| {
        routing(&format!(
            "(local $pages i32)
             (block $full (loop $l
               (br_if $full (i32.eq (memory.grow (i32.const 16)) (i32.const -1)))
               (br_if $l (i32.lt_u (memory.size) (i32.const {at_most})))))
             (i32.store8 (i32.const 1024) (i32.const 1)) (i32.const 1024)"
        ))
    };
    let lab = Lab::new();
    let limits = Limits { memory_bytes: 8 << 20, ..generous(World::Routing) };
    let policy = lab.policy_within(World::Routing, &grow("1000000"), limits);
    assert_eq!(route(&policy), Ok(Decision::Pick(0)));
    let peak = policy.generations().active.as_ref().expect("it is there").statistics().peak_memory_bytes;
    assert!(peak > 7 << 20 && peak <= 8 << 20, "{peak}");
    // Touching what was not given is a trap.
    check(&routing("(i32.load (i32.const 0x7fffff00))"), Class::Trap, "out of bounds memory access");
}

/// One function with a great many blocks and values: small as text, dear to compile.
fn bomb() -> Vec<u8> {
    let body = "(local.set $in (i32.add (i32.mul (local.get $in) (local.get $in)) (i32.rotl (local.get $in) (i32.const 7))))
                (if (i32.and (local.get $in) (i32.const 1)) (then (local.set $in (i32.sub (i32.const 3) (local.get $in)))))\n"
        .repeat(200_000);
    routing(&format!("{body} (i32.const 1024)")).core()
}

#[track_caller]
fn refused_bomb(limits: &Limits, cpu_s: u64) -> CompileError {
    let limits = Limits { compile_cpu: Duration::from_secs(cpu_s), ..limits.clone() };
    refused(World::Routing, &bomb(), &limits)
}

fn compile_bomb() {
    let error = refused_bomb(&generous(World::Routing), 1);
    assert!(matches!(error, CompileError::TooExpensive { .. }), "{error}");
}

fn foreign_import() {
    let text = r#"(component
      (import "wasi:clocks/monotonic-clock@0.2.0" (instance (export "now" (func (result u64))))))"#;
    let source = wat::parse_str(text).expect("it is valid");
    let error = refused(World::Routing, &source, &generous(World::Routing)).to_string();
    assert!(error.contains("wasi:clocks/monotonic-clock@0.2.0") && error.contains("there is no WASI"), "{error}");
    let text = r#"(component (import "scaleup:policy/logging@0.9.0" (instance)))"#;
    let source = wat::parse_str(text).expect("it is valid");
    let error = refused(World::Routing, &source, &generous(World::Routing)).to_string();
    assert!(error.ends_with("this host has version 0.1"), "{error}");
    // The topology is for routing.
    let text = r#"(component (import "scaleup:policy/topology@0.1.0" (instance (export "get" (func)))))"#;
    let source = wat::parse_str(text).expect("it is valid");
    let error = refused(World::Scaling, &source, &generous(World::Scaling)).to_string();
    assert!(error.ends_with("not offered to scaling"), "{error}");
}

fn out_of_range() {
    let lab = Lab::new();
    // One million replicas.
    let guest = Guest::new(
        World::Scaling,
        "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store offset=4 (i32.const 1024) (i32.const 1000000)) (i32.const 1024)",
    );
    let policy = lab.policy(World::Scaling, &guest);
    let input = scaleup_plugins::scaling::Input { min: 1, max: 10, ..Default::default() };
    let failure = policy.scale(&input, Instant::now()).expect_err("it must fail");
    assert_eq!((failure.class, &*failure.message), (Class::InvalidOutput, "1000000 replicas are not between 1 and 10"));
    // No verdicts.
    let policy = lab.policy(World::Scheduling, &Guest::new(World::Scheduling, "(i32.const 1024)"));
    let input = scaleup_plugins::scheduling::Input { nodes: vec![Default::default()], ..Default::default() };
    let failure = policy.place(&input, 0, Instant::now()).expect_err("it must fail");
    assert_eq!((failure.class, &*failure.message), (Class::InvalidOutput, "0 verdicts for 1 nodes"));
    // A charge for usage that there is not.
    let guest = Guest::new(
        World::Pricing,
        "(i32.store (i32.const 1024) (i32.const 2048)) (i32.store offset=4 (i32.const 1024) (i32.const 1)) (i32.const 1024)",
    );
    let failure =
        lab.policy(World::Pricing, &guest).price(&Default::default(), Instant::now()).expect_err("it must fail");
    assert_eq!((failure.class, &*failure.message), (Class::InvalidOutput, "charges usage 0 of 0"));
    // A denial without a word.
    let guest = Guest::new(World::Admission, "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.const 1024)");
    let failure =
        lab.policy(World::Admission, &guest).admit(&Default::default(), Instant::now()).expect_err("it must fail");
    assert_eq!(
        (failure.class, &*failure.message),
        (Class::InvalidOutput, "the denial's message has 0 bytes, not 1 to 1024")
    );
}

fn oversized() {
    let lab = Lab::new();
    // 64 reasons that are all the same megabyte: small for the component, 64 MiB for who copies them.
    let guest = Guest::new(
        World::Scheduling,
        "(local $i i32)
         (loop $l
           (i32.store (i32.add (i32.const 2048) (local.get $i)) (i32.const 65536))
           (i32.store offset=4 (i32.add (i32.const 2048) (local.get $i)) (i32.const 1000000))
           (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const 512))))
         (i32.store offset=8 (i32.const 1024) (i32.const 2048)) (i32.store offset=12 (i32.const 1024) (i32.const 64))
         (i32.const 1024)",
    )
    .pages(32);
    let policy = lab.policy(World::Scheduling, &guest);
    let failure = policy.place(&Default::default(), 0, Instant::now()).expect_err("it must fail");
    assert_eq!(failure.class, Class::InvalidOutput, "{failure}");
    assert!(!failure.message.contains("reasons"), "copied before it was counted: {failure}");
}

fn log_flood() {
    let guest = routing(
        "(local $i i32)
         (loop $l
           (call $log (i32.const 0) (i32.const 2048) (i32.const 5))
           (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 10000))))
         (i32.store8 (i32.const 1024) (i32.const 1)) (i32.const 1024)",
    )
    .imports(r#"(import "scaleup:policy/logging@0.1.0" "log" (func $log (param i32 i32 i32)))"#)
    .extra(r#"(data (i32.const 2048) "hello")"#);
    let lab = Lab::new();
    let policy = lab.policy(World::Routing, &guest);
    assert_eq!(route(&policy), Ok(Decision::Pick(0)));
    let (written, dropped) = policy.generations().active.as_ref().expect("it is there").log_lines();
    assert_eq!(written + dropped, 10_000);
    assert!(written >= 100 && dropped > 5_000, "{written} {dropped}");
}

fn state_and_counters() {
    // Keeps 2000 values under keys of two bytes and counts each under a name of its own.
    let guest = routing(
        "(local $i i32)
         (loop $l
           (i32.store8 (i32.const 2048) (i32.add (i32.const 97) (i32.rem_u (local.get $i) (i32.const 26))))
           (i32.store8 (i32.const 2049) (i32.add (i32.const 32) (i32.div_u (local.get $i) (i32.const 26))))
           (call $set (i32.const 2048) (i32.const 2) (i32.const 2048) (i32.const 100) (i32.const 3000))
           (i32.store8 (i32.const 2049) (i32.add (i32.const 97) (i32.rem_u (i32.div_u (local.get $i) (i32.const 26)) (i32.const 26))))
           (call $add (i32.const 2048) (i32.const 2) (i64.const 1))
           (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 2000))))
         (i32.store8 (i32.const 1024) (i32.const 1)) (i32.const 1024)",
    )
    .imports(
        r#"(import "scaleup:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32)))
           (import "scaleup:policy/counters@0.1.0" "add" (func $add (param i32 i32 i64)))"#,
    );
    let lab = Lab::new();
    let policy = lab.policy(World::Routing, &guest);
    assert_eq!(route(&policy), Ok(Decision::Pick(0)));
    let all = policy.generations();
    let active = all.active.as_ref().expect("it is there");
    let (entries, bytes) = active.state().size();
    assert_eq!((entries, bytes), (1024, 1024 * 102));
    let counters = active.counters();
    assert_eq!((counters.len(), counters.iter().map(|(_, count)| count).sum::<u64>()), (32, 2000));
}

fn nth_call() {
    // Every 50th call of an instance traps. That is rare enough for the breaker to stay closed.
    let guest = routing(
        "(if (i32.eq (global.get $calls) (i32.const 50)) (then unreachable))
         (i32.store8 (i32.const 1024) (i32.const 1)) (i32.const 1024)",
    );
    let lab = Lab::new();
    let policy = lab.policy(World::Routing, &guest);
    let results: Vec<Result<Decision, Failure>> = (0..500).map(|_| route(&policy)).collect();
    let failed: Vec<usize> = (1..=500).filter(|call| results[call - 1].is_err()).collect();
    assert_eq!(failed, (1..=10).map(|n| n * 50).collect::<Vec<_>>());
    let picks = results.iter().filter(|result| **result == Ok(Decision::Pick(0))).count();
    assert_eq!(picks, 490, "a call after a trap has a new instance");
}
