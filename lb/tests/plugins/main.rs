//! Routing plugins between real sockets: what they say is done, what they do wrong harms nobody else.
//!
//! A binary of its own, because the host compiles modules in a child process, which is this program again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "helpers are shared with the other tests")]

#[path = "../../../tests/src/claims.rs"]
mod claims;
#[path = "../it/h2_support.rs"]
mod h2_support;
#[path = "../it/routed.rs"]
mod routed;
#[path = "../it/scripted.rs"]
mod scripted;
#[path = "../it/support.rs"]
mod support;

mod binding;
mod decisions;
mod failures;
mod guests;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == scaleup_plugins::SUBCOMMAND) {
        return scaleup_plugins::compile_child(&arguments[1..]);
    }
    let trials = [decisions::trials(), failures::trials(), binding::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// A test of this name.
pub fn trial<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> libtest_mimic::Trial {
    libtest_mimic::Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test());
        Ok(())
    })
}
