//! The five worlds as wasmtime sees them, generated from `wit/`. The types of inputs and answers are ours, so that they exist once.

/// What every world imports and exports.
pub mod policy {
    wasmtime::component::bindgen!({ world: "policy", path: "wit" });
}

/// What the generated code expects of a module whose types stand for an interface without functions.
macro_rules! types_only {
    ($name:ident) => {
        pub mod $name {
            #[allow(unused_imports)]
            pub use crate::$name::*;

            pub trait HostWithStore<T> {}
            impl<T, D: ?Sized> HostWithStore<T> for D {}
            pub trait Host {}
            impl<T: ?Sized> Host for T {}

            pub fn add_to_linker<T, D>(
                _: &mut wasmtime::component::Linker<T>,
                _: fn(&mut T) -> D::Data<'_>,
            ) -> wasmtime::Result<()>
            where
                T: 'static,
                D: wasmtime::component::HasData,
                for<'a> D::Data<'a>: Host,
            {
                Ok(())
            }
        }
    };
}

pub mod types {
    types_only!(admission);
    types_only!(pricing);
    types_only!(routing);
    types_only!(scaling);
    types_only!(scheduling);
}

/// One world: its own types replace the interface's, what all have in common is [`policy`]'s.
macro_rules! world {
    ($name:ident, $world:literal, $types:literal) => {
        pub mod $name {
            wasmtime::component::bindgen!({
                world: $world,
                path: "wit",
                with: {
                    $types: super::types::$name,
                    "scaleup:policy/logging": super::policy::scaleup::policy::logging,
                    "scaleup:policy/counters": super::policy::scaleup::policy::counters,
                    "scaleup:policy/config": super::policy::scaleup::policy::config,
                    "scaleup:policy/state": super::policy::scaleup::policy::state,
                },
            });
        }
    };
}

world!(admission, "admission", "scaleup:policy/admission-types");
world!(pricing, "pricing", "scaleup:policy/pricing-types");
world!(routing, "routing", "scaleup:policy/routing-types");
world!(scaling, "scaling", "scaleup:policy/scaling-types");
world!(scheduling, "scheduling", "scaleup:policy/scheduling-types");
