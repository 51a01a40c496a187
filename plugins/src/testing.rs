//! Components for tests and benchmarks, written as WebAssembly text: a frame with memory, allocator and metadata, into which a test puts its
//! decision. Only with the feature `testing`; it panics where a test's text is wrong.

#![allow(clippy::expect_used, clippy::panic, reason = "for tests and benchmarks only")]

pub mod by_name;
pub mod routing;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::World;

/// A component to be.
#[derive(Clone, Debug)]
pub struct Guest {
    world: World,
    imports: String,
    decision: String,
    extra: String,
    realloc: &'static str,
    pages: u32,
    without: Option<&'static str>,
    schema: String,
    examples: Vec<[String; 4]>,
}

/// Allocates by moving a pointer up, and begins anew with every input: inputs are copied in before anything else is allocated.
const REALLOC: &str = r#"
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (if (i32.gt_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536)))
      (then (if (i32.eq (memory.grow (i32.add (i32.shr_u (local.get 3) (i32.const 16)) (i32.const 1))) (i32.const -1)) (then unreachable))))
    (local.get $at))
"#;

/// Interface and function of a world's decision.
fn decision(world: World) -> (&'static str, &'static str) {
    let function = match world {
        World::Routing => "route",
        World::Admission => "admit",
        World::Scheduling => "place",
        World::Scaling => "scale",
        World::Pricing => "price",
    };
    (world.interface(), function)
}

/// The WIT that the host offers.
pub fn resolve() -> (Resolve, wit_parser::PackageId) {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/wit")).expect("the WIT is valid");
    (resolve, package)
}

/// A core module in text with a section that says how it becomes a component of this world.
fn core(text: &str, resolve: &Resolve, package: wit_parser::PackageId, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let world = resolve.select_world(&[package], Some(world)).expect("the world is there");
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8).expect("metadata");
    module
}

fn encode(core: &[u8]) -> Vec<u8> {
    let encoder = ComponentEncoder::default().validate(true).module(core);
    encoder.and_then(|mut encoder| encoder.encode()).unwrap_or_else(|error| panic!("{error:#}"))
}

/// A component of a world of another WIT.
pub fn component_of(wit: &str, world: &str, text: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("test.wit", wit).expect("the WIT is valid");
    encode(&core(text, &resolve, package, world))
}

impl Guest {
    /// `decision` is the body of the function: `(param $in i32) (result i32)`, pointers to the input and to the answer. There is room for
    /// the answer at 1024, which is all zeros, `$calls` counts calls, and 2048 to 4095 are free.
    pub fn new(world: World, decision: &str) -> Self {
        Self {
            world,
            imports: String::new(),
            decision: decision.into(),
            extra: String::new(),
            realloc: REALLOC,
            pages: 1,
            without: None,
            schema: String::new(),
            examples: Vec::new(),
        }
    }

    /// Core functions that it imports.
    #[must_use]
    pub fn imports(mut self, text: &str) -> Self {
        self.imports = text.into();
        self
    }

    /// More of a module: functions, tables, data.
    #[must_use]
    pub fn extra(mut self, text: &str) -> Self {
        self.extra = text.into();
        self
    }

    /// Without this export.
    #[must_use]
    pub fn without(mut self, export: &'static str) -> Self {
        self.without = Some(export);
        self
    }

    /// Pages of memory that it begins with.
    #[must_use]
    pub fn pages(mut self, pages: u32) -> Self {
        self.pages = pages;
        self
    }

    /// Another allocator.
    #[must_use]
    pub fn realloc(mut self, text: &'static str) -> Self {
        self.realloc = text;
        self
    }

    /// What it says of itself: examples are name, configuration, input and what is expected.
    #[must_use]
    pub fn metadata(mut self, schema: &str, examples: &[[&str; 4]]) -> Self {
        self.schema = schema.into();
        self.examples = examples.iter().map(|example| example.map(str::to_owned)).collect();
        self
    }

    /// The core module's text.
    pub fn text(&self) -> String {
        let (interface, function) = decision(self.world);
        // Texts of the metadata lie from 32 KiB on, their list at 8 KiB.
        let (mut texts, mut list) = (Vec::new(), Vec::new());
        let mut put = |text: &str| {
            let at = 32_768 + texts.len() as u32;
            texts.extend_from_slice(text.as_bytes());
            [at, text.len() as u32]
        };
        let schema = put(&self.schema);
        self.examples.iter().flatten().for_each(|text| list.extend(put(text)));
        let data = |at: u32, bytes: &[u8]| {
            let escaped: String = bytes.iter().map(|byte| format!("\\{byte:02x}")).collect();
            format!("  (data (i32.const {at}) \"{escaped}\")\n")
        };
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let export = |name: &str, body: String| {
            if self.without == Some(name.rsplit(['#', '/']).next().unwrap_or(name)) { String::new() } else { body }
        };
        // Inputs of up to 16 values come as such, larger ones as a pointer.
        let more = if self.world == World::Pricing { "(param i32 i32 i32 i64 i64 i32 i32)" } else { "" };
        let metadata = [
            export(
                "config-schema",
                r#"  (func (export "scaleup:policy/metadata@0.1.0#config-schema") (result i32) (i32.const 512))"#
                    .into(),
            ),
            export(
                "examples",
                r#"  (func (export "scaleup:policy/metadata@0.1.0#examples") (result i32) (i32.const 520))"#.into(),
            ),
            export(
                function,
                format!(
                    r#"  (func (export "scaleup:policy/{interface}@0.1.0#{function}") (param $in i32) {more} (result i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (call $decide (local.get $in)))
  (func $decide (param $in i32) (result i32)
{})
  (func (export "cabi_post_scaleup:policy/{interface}@0.1.0#{function}") (param i32) (global.set $heap (i32.const 65536)))"#,
                    self.decision
                ),
            ),
        ];
        format!(
            "(module\n{}\n  (memory (export \"memory\") {})\n  (global $heap (mut i32) (i32.const 65536))\n  (global $calls (mut i32) (i32.const 0))\n{}\n{}{}{}{}\n{}\n)",
            self.imports,
            self.pages,
            self.realloc,
            data(512, &words(&[schema[0], schema[1], 8192, self.examples.len() as u32])),
            data(8192, &words(&list)),
            data(32_768, &texts),
            metadata.join("\n"),
            self.extra,
        )
    }

    /// The core module with a section that says how it becomes a component.
    pub fn core(&self) -> Vec<u8> {
        let (resolve, package) = resolve();
        core(&self.text(), &resolve, package, self.world.name())
    }

    /// The component.
    pub fn component(&self) -> Vec<u8> {
        encode(&self.core())
    }
}

/// Picks the endpoint with the fewest requests in flight, the first of several.
pub fn least_in_flight() -> Guest {
    Guest::new(
        World::Routing,
        r#"
    (local $at i32) (local $end i32) (local $index i32) (local $best i32) (local $least i32)
    (local.set $least (i32.const -1))
    (local.set $at (i32.load offset=80 (local.get $in)))
    (local.set $end (i32.add (local.get $at) (i32.mul (i32.load offset=84 (local.get $in)) (i32.const 40))))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (if (i32.lt_u (i32.load offset=24 (local.get $at)) (local.get $least))
        (then (local.set $least (i32.load offset=24 (local.get $at))) (local.set $best (local.get $index))))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (local.set $at (i32.add (local.get $at) (i32.const 40)))
      (br $next)))
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store offset=4 (i32.const 1024) (local.get $best))
    (i32.const 1024)"#,
    )
}
