//! A table of the files that `scaleup plugin new` writes: what is in `plugins/templates`, `plugins/wit` and `plugins/sdk` when the binary is built.

use scaleup_plugins::World;

use crate::cli::Language;

/// Path in the directory, and text; `{{name}}` and others are put in.
pub type File = (&'static str, &'static str);

macro_rules! plugins {
    ($($part:literal),+) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/", $($part),+))
    };
}

/// The interface.
pub const WIT: &[File] = &[
    ("host.wit", plugins!("wit/host.wit")),
    ("routing.wit", plugins!("wit/routing.wit")),
    ("admission.wit", plugins!("wit/admission.wit")),
    ("scheduling.wit", plugins!("wit/scheduling.wit")),
    ("scaling.wit", plugins!("wit/scaling.wit")),
    ("pricing.wit", plugins!("wit/pricing.wit")),
];

/// The SDK, without its WIT.
pub const SDK: &[File] = &[
    ("Cargo.toml", plugins!("sdk/Cargo.toml")),
    ("src/lib.rs", plugins!("sdk/src/lib.rs")),
    ("src/bindings.rs", plugins!("sdk/src/bindings.rs")),
    ("src/host.rs", plugins!("sdk/src/host.rs")),
    ("src/serve.rs", plugins!("sdk/src/serve.rs")),
    ("src/state.rs", plugins!("sdk/src/state.rs")),
    ("src/routing.rs", plugins!("sdk/src/routing.rs")),
    ("src/admission.rs", plugins!("sdk/src/admission.rs")),
    ("src/scheduling.rs", plugins!("sdk/src/scheduling.rs")),
    ("src/scaling.rs", plugins!("sdk/src/scaling.rs")),
    ("src/pricing.rs", plugins!("sdk/src/pricing.rs")),
];

/// Files that every plugin has.
pub const COMMON: &[File] =
    &[("README.md", plugins!("templates/README.md.in")), (".gitignore", plugins!("templates/gitignore.in"))];

/// The manifest of a plugin in Rust.
pub const CARGO: &str = plugins!("templates/rust/Cargo.toml.in");

macro_rules! by_world {
    ($world:expr, $before:literal, $after:literal) => {
        match $world {
            World::Routing => plugins!($before, "routing", $after),
            World::Admission => plugins!($before, "admission", $after),
            World::Scheduling => plugins!($before, "scheduling", $after),
            World::Scaling => plugins!($before, "scaling", $after),
            World::Pricing => plugins!($before, "pricing", $after),
        }
    };
}

/// The decision itself.
pub fn source(language: Language, world: World) -> File {
    match language {
        Language::Rust => ("src/lib.rs", by_world!(world, "templates/rust/worlds/", ".rs")),
        Language::Javascript => ("plugin.js", by_world!(world, "templates/javascript/worlds/", ".js")),
        Language::Python => ("app.py", by_world!(world, "templates/python/worlds/", ".py")),
        Language::C => ("plugin.c", by_world!(world, "templates/c/worlds/", ".c")),
    }
}

/// What the decision must be, in every language.
pub fn golden(world: World) -> &'static str {
    by_world!(world, "templates/worlds/", ".golden.json")
}

/// The schema of its configuration. The one in C has none, because C has no JSON.
pub fn schema(language: Language, world: World) -> &'static str {
    match (language, world) {
        (Language::C, _) | (_, World::Scheduling | World::Scaling | World::Pricing) => {
            plugins!("templates/worlds/empty.schema.json")
        }
        (_, World::Routing) => plugins!("templates/worlds/routing.schema.json"),
        (_, World::Admission) => plugins!("templates/worlds/admission.schema.json"),
    }
}

/// What building needs.
pub const fn install(language: Language) -> &'static str {
    match language {
        Language::Rust => {
            "Building needs Rust from https://rustup.rs and its target: `rustup target add wasm32-unknown-unknown`. Without \
             rustup, on Debian: `apt-get install rustc-web rust-web-src` beside any cargo."
        }
        Language::Javascript => "Building needs Node and `npm install componentize-qjs` (here, or with -g).",
        Language::Python => "Building needs Python and `pip install componentize-py`.",
        Language::C => {
            "Building needs clang, lld and wasi-libc; on Debian: `apt-get install clang lld wasi-libc libclang-rt-dev-wasm32`."
        }
    }
}
