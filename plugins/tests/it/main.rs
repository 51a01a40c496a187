//! The host with real components: what works, and what hostile ones can do to it, which is nothing.
//!
//! The compiler's process is this program again, as the platform's is the platform.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod hostile;
mod records;
mod support;
mod works;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == scaleup_plugins::SUBCOMMAND) {
        return scaleup_plugins::compile_child(&arguments[1..]);
    }
    let trials = [works::trials(), records::trials(), hostile::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}
