//! The five worlds as wasmtime sees them, generated from `wit/`: which exports there are and how they are called. The types of inputs and
//! answers are ours, so that they exist once, and imports are linked by hand in [`crate::imports`].

/// What the generated code expects of a module that stands for an interface.
macro_rules! interface {
    ($name:ident: $($types:tt)*) => {
        pub mod $name {
            #[allow(unused_imports)]
            pub use $($types)*;

            #[allow(dead_code)]
            pub trait HostWithStore<T>: wasmtime::component::HasData {}
            impl<T, D: wasmtime::component::HasData + ?Sized> HostWithStore<T> for D {}
            #[allow(dead_code)]
            pub trait Host {}
            impl<T: ?Sized> Host for T {}

            #[allow(dead_code)]
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

mod interfaces {
    interface!(admission: crate::admission::*);
    interface!(pricing: crate::pricing::*);
    interface!(routing: crate::routing::*);
    interface!(scaling: crate::scaling::*);
    interface!(scheduling: crate::scheduling::*);
    interface!(imports: crate::imports::*);
    interface!(metadata: crate::metadata::*);
}

macro_rules! world {
    ($name:ident, $world:literal, $types:literal $(, $topology:literal)?) => {
        pub mod $name {
            wasmtime::component::bindgen!({
                world: $world,
                path: "wit",
                with: {
                    $types: crate::bindings::interfaces::$name,
                    "scaleup:policy/logging": crate::bindings::interfaces::imports,
                    "scaleup:policy/counters": crate::bindings::interfaces::imports,
                    "scaleup:policy/config": crate::bindings::interfaces::imports,
                    "scaleup:policy/state": crate::bindings::interfaces::imports,
                    "scaleup:policy/metadata-types": crate::bindings::interfaces::metadata,
                    $($topology: crate::bindings::interfaces::routing,)?
                },
            });
        }
    };
}

world!(admission, "admission", "scaleup:policy/admission-types");
world!(pricing, "pricing", "scaleup:policy/pricing-types");
world!(routing, "routing", "scaleup:policy/routing-types", "scaleup:policy/topology");
world!(scaling, "scaling", "scaleup:policy/scaling-types");
world!(scheduling, "scheduling", "scaleup:policy/scheduling-types");
