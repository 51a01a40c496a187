//! Policies for ScaleUp in Rust: implement the trait of a world, name the type in [`export!`], build for `wasm32-unknown-unknown`.
//!
//! ```ignore
//! use scaleup_plugin_sdk::routing::{Decision, Input, Router};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! #[serde(rename_all = "camelCase")]
//! struct Config { header: String }
//!
//! struct Canary { config: Config }
//!
//! impl Router for Canary {
//!     type Config = Config;
//!     fn new(config: Config) -> Self { Self { config } }
//!     fn route(&self, input: Input) -> Decision {
//!         match input.request.header(&self.config.header) {
//!             Some(_) => Decision::Pick(0),
//!             None => Decision::Default,
//!         }
//!     }
//! }
//!
//! scaleup_plugin_sdk::export! {
//!     routing: Canary,
//!     schema: include_str!("../schema.json"),
//!     examples: include_str!("../examples/golden.json"),
//! }
//! ```
//!
//! | world | module, trait | decides |
//! |---|---|---|
//! | `routing` | [`routing::Router`] | which endpoint gets a request |
//! | `admission` | [`admission::Admitter`] | whether a write to the API goes through, and how |
//! | `scheduling` | [`scheduling::Placer`] | which nodes a pod may go to, and how good they are |
//! | `scaling` | [`scaling::Scaler`] | how many replicas a workload has |
//! | `pricing` | [`pricing::Pricer`] | what usage costs |
//!
//! What a plugin may use besides its input: [`log`], [`count`], [`state`], and for routing [`routing::topology`]. There is no clock, no randomness, no file and
//! no socket: time and a random number come with the input. A panic is logged, and the decision fails with the class `trap`.
//!
//! Outside WebAssembly, in a plugin's own `cargo test`, log lines go to the standard error, counters nowhere, and the state is the thread's.

#[doc(hidden)]
#[allow(unsafe_code, reason = "the calling convention of components, generated")]
pub mod bindings;
mod host;
#[doc(hidden)]
pub mod serve;

pub mod admission;
pub mod pricing;
pub mod routing;
pub mod scaling;
pub mod scheduling;
pub mod state;

pub use bindings::policy::scaleup::policy::logging::Level;
pub use host::{count, log};

/// The configuration of a plugin that has none: every JSON object is one.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
pub struct NoConfig {}

/// Makes a component out of a type: `export! { WORLD: TYPE, schema: TEXT, examples: TEXT }`, once in a crate.
///
/// `schema` is the JSON Schema of the configuration, and `examples` a JSON array of golden examples: objects with `name`, `config`, `input` and
/// `expected`. Both may be left out.
#[macro_export]
macro_rules! export {
    (routing: $($rest:tt)*) => { $crate::__export! { routing, router, Router, route, Decision, __export_routing; $($rest)* } };
    (admission: $($rest:tt)*) => { $crate::__export! { admission, admitter, Admitter, admit, Answer, __export_admission; $($rest)* } };
    (scheduling: $($rest:tt)*) => { $crate::__export! { scheduling, placer, Placer, place, Answer, __export_scheduling; $($rest)* } };
    (scaling: $($rest:tt)*) => { $crate::__export! { scaling, scaler, Scaler, scale, Answer, __export_scaling; $($rest)* } };
    (pricing: $($rest:tt)*) => { $crate::__export! { pricing, pricer, Pricer, price, Answer, __export_pricing; $($rest)* } };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    (
        $world:ident, $interface:ident, $policy:ident, $decide:ident, $answer:ident, $export:ident;
        $type:ty $(, schema: $schema:expr)? $(, examples: $examples:expr)? $(,)?
    ) => {
        const _: () = {
            struct Component;

            ::std::thread_local! {
                // Made at the first decision and kept as long as the instance is.
                static POLICY: $type = $crate::$world::$policy::new($crate::serve::config());
            }

            impl $crate::bindings::$world::exports::scaleup::policy::$interface::Guest for Component {
                fn $decide(input: $crate::$world::Input) -> $crate::$world::$answer {
                    POLICY.with(|policy| $crate::$world::$policy::$decide(policy, input))
                }
            }

            impl $crate::bindings::policy::exports::scaleup::policy::metadata::Guest for Component {
                fn config_schema() -> ::std::string::String {
                    let schema: &[&str] = &[$($schema)?];
                    schema.concat()
                }

                fn examples() -> ::std::vec::Vec<$crate::serve::Example> {
                    let examples: &[&str] = &[$($examples)?];
                    examples.iter().flat_map(|text| $crate::serve::examples(text)).collect()
                }
            }

            $crate::bindings::policy::__export_policy!(Component with_types_in $crate::bindings::policy);
            $crate::bindings::$world::$export!(Component with_types_in $crate::bindings::$world);
        };
    };
}
