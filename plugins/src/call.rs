//! Calls by value: what is asked of which world, how, and what counts as an answer.

use std::sync::Arc;

use serde::Serialize;
use wasmtime::Store;
use wasmtime::component::InstancePre;

use crate::imports::Data;
use crate::metadata::Metadata;
use crate::routing::Topology;
use crate::{Case, World, admission, bindings, pricing, routing, scaling, scheduling};

/// One line per world: variant, its module in the bindings, its type there.
macro_rules! worlds {
    ($($variant:ident, $module:ident, $pre:ident;)*) => {
        /// A component whose imports are linked and whose exports were found.
        pub(crate) enum Pre {
            $($variant(bindings::$module::$pre<Data>),)*
        }

        /// An instance of it.
        pub(crate) enum Calls {
            $($variant(bindings::$module::$variant),)*
        }

        impl Pre {
            pub fn new(world: World, pre: InstancePre<Data>) -> wasmtime::Result<Self> {
                Ok(match world {
                    $(World::$variant => Self::$variant(bindings::$module::$pre::new(pre)?),)*
                })
            }

            pub fn instantiate(&self, store: &mut Store<Data>) -> wasmtime::Result<Calls> {
                Ok(match self {
                    $(Self::$variant(pre) => Calls::$variant(pre.instantiate(store)?),)*
                })
            }
        }

        impl Calls {
            pub fn metadata(&self, store: &mut Store<Data>) -> wasmtime::Result<Metadata> {
                Ok(match self {
                    $(Self::$variant(guest) => {
                        let of = guest.scaleup_policy_metadata();
                        Metadata { config_schema: of.call_config_schema(&mut *store)?, examples: of.call_examples(store)? }
                    })*
                })
            }
        }
    };
}

worlds! {
    Routing, routing, RoutingPre;
    Admission, admission, AdmissionPre;
    Scheduling, scheduling, SchedulingPre;
    Scaling, scaling, ScalingPre;
    Pricing, pricing, PricingPre;
}

/// Something to decide.
pub(crate) trait Question {
    type Answer: PartialEq + Serialize;

    const WORLD: World;

    /// What the import `topology` answers meanwhile.
    fn topology(&self) -> Option<&Arc<Topology>> {
        None
    }

    /// Asks an instance; `None` if it is one of another world.
    fn ask(&self, calls: &Calls, store: &mut Store<Data>) -> Option<wasmtime::Result<Self::Answer>>;

    /// A copy of it, to be recorded.
    fn case(&self) -> Case;

    /// What is wrong with an answer.
    fn check(&self, answer: &Self::Answer) -> Result<(), String>;
}

/// A request, and the names that its endpoints refer to.
pub(crate) struct Route<'a>(pub &'a routing::Input, pub &'a Arc<Topology>);

impl Question for Route<'_> {
    type Answer = routing::Decision;

    const WORLD: World = World::Routing;

    fn topology(&self) -> Option<&Arc<Topology>> {
        Some(self.1)
    }

    fn ask(&self, calls: &Calls, store: &mut Store<Data>) -> Option<wasmtime::Result<Self::Answer>> {
        let Calls::Routing(guest) = calls else { return None };
        Some(guest.scaleup_policy_router().call_route(store, self.0))
    }

    fn case(&self) -> Case {
        Case::Routing(Box::new(self.0.clone()), self.1.clone())
    }

    fn check(&self, answer: &Self::Answer) -> Result<(), String> {
        answer.check(self.0.endpoints.len())
    }
}

/// One line per world with a plain input: input, its variant, interface and function, and how its answer is checked.
macro_rules! questions {
    ($($module:ident, $variant:ident, $interface:ident, $call:ident, |$input:ident, $answer:ident| $check:expr;)*) => {
        $(impl Question for $module::Input {
            type Answer = $module::Answer;

            const WORLD: World = World::$variant;

            fn ask(&self, calls: &Calls, store: &mut Store<Data>) -> Option<wasmtime::Result<Self::Answer>> {
                let Calls::$variant(guest) = calls else { return None };
                Some(guest.$interface().$call(store, self))
            }

            fn case(&self) -> Case {
                Case::$variant(Box::new(self.clone()))
            }

            fn check(&self, $answer: &Self::Answer) -> Result<(), String> {
                let $input = self;
                $check
            }
        })*
    };
}

questions! {
    admission, Admission, scaleup_policy_admitter, call_admit, |input, answer| answer.check(input.phase);
    scheduling, Scheduling, scaleup_policy_placer, call_place, |input, answer| answer.check(input.nodes.len());
    scaling, Scaling, scaleup_policy_scaler, call_scale, |input, answer| answer.check(input);
    pricing, Pricing, scaleup_policy_pricer, call_price, |input, answer| answer.check(input.usage.len());
}
