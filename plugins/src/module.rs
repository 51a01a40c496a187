//! A component of one world: its code is resident, its imports are linked, its exports are there.

use std::fmt;
use std::sync::Arc;

use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker};

use crate::call::Pre;
use crate::check::clip;
use crate::imports::{self, Data};
use crate::metadata::Metadata;
use crate::routing::Topology;
use crate::{CompileError, Limits, World};

/// Longest reason: a component's names are in it.
const MAX_REASON_BYTES: usize = 512;

/// SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    /// Lower-case hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

/// See the module's description. Made by [`crate::Host::compile`].
pub struct Module {
    pub(crate) digest: Digest,
    pub(crate) world: World,
    pub(crate) size_bytes: usize,
    pub(crate) metadata: Metadata,
    engine: Engine,
    pre: Pre,
    no_topology: Arc<Topology>,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("world", &self.world).field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Module {
    /// Links a component, without what it says of itself.
    pub(crate) fn link(
        world: World,
        component: &Component,
        linker: &Linker<Data>,
        digest: Digest,
        size_bytes: usize,
        limits: &Limits,
    ) -> Result<Self, CompileError> {
        let wrong = |why: String| CompileError::WrongWorld { world, why: clip(&why, MAX_REASON_BYTES).to_owned() };
        fits(component, limits)?;
        imports_are_ours(world, component).map_err(wrong)?;
        exports_are_there(world, component).map_err(wrong)?;
        let pre = linker.instantiate_pre(component).and_then(|pre| Pre::new(world, pre));
        Ok(Self {
            digest,
            world,
            size_bytes,
            metadata: Metadata::default(),
            engine: component.engine().clone(),
            pre: pre.map_err(|error| wrong(format!("{error:#}")))?,
            no_topology: Arc::default(),
        })
    }

    /// Of the bytes that were brought.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Which decision it takes.
    pub fn world(&self) -> World {
        self.world
    }

    /// Size of the bytes that were brought.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// What it says of itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn pre(&self) -> &Pre {
        &self.pre
    }

    pub(crate) fn no_topology(&self) -> Arc<Topology> {
        self.no_topology.clone()
    }
}

/// What a component can never have is said when it is loaded, not when it is called.
fn fits(component: &Component, limits: &Limits) -> Result<(), CompileError> {
    const PAGE_BYTES: u64 = 64 << 10;
    let Some(needs) = component.resources_required() else {
        return Err(CompileError::Limits("it imports core modules".into()));
    };
    let memory = needs.max_initial_memory_size.unwrap_or(0).saturating_mul(PAGE_BYTES);
    if memory > limits.memory_bytes {
        return Err(CompileError::Limits(format!(
            "it begins with {memory} bytes of memory, {} are allowed",
            limits.memory_bytes
        )));
    }
    let elements = needs.max_initial_table_size.unwrap_or(0);
    if elements > u64::from(limits.table_elements) {
        let most = limits.table_elements;
        return Err(CompileError::Limits(format!("it begins with a table of {elements} elements, {most} are allowed")));
    }
    Ok(())
}

/// The interface's name, if it is one of ours in a version that we have.
fn ours(name: &str) -> Option<&str> {
    let (interface, version) = name.strip_prefix("scaleup:policy/")?.split_once('@')?;
    (version == "0.1" || version.starts_with("0.1.")).then_some(interface)
}

fn imports_are_ours(world: World, component: &Component) -> Result<(), String> {
    let offered = imports::offered(world);
    let engine = component.engine();
    for (name, import) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(instance) = import.ty else {
            return Err(format!("it imports {name:?}, which is not offered"));
        };
        let Some(interface) = ours(name) else {
            let hint = if name.starts_with("wasi:") {
                ": there is no WASI (build without it, or with stubs)"
            } else if name.starts_with("scaleup:policy/") {
                ": this host has version 0.1"
            } else {
                ""
            };
            return Err(format!("it imports {name:?}, which is not offered{hint}"));
        };
        let only_types = || {
            let mut items = instance.exports(engine);
            items.all(|(_, item)| matches!(item.ty, ComponentItem::Type(_)))
        };
        let known = offered.contains(&interface) || interface.ends_with("-types") && only_types();
        if !known {
            return Err(format!("it imports {name:?}, which is not offered to {world}"));
        }
    }
    Ok(())
}

fn exports_are_there(world: World, component: &Component) -> Result<(), String> {
    let kind = component.component_type();
    let exported: Vec<&str> = kind.exports(component.engine()).filter_map(|(name, _)| ours(name)).collect();
    if !exported.contains(&world.interface()) {
        let other = World::ALL.into_iter().find(|other| exported.contains(&other.interface()));
        let is = other.map(|other| format!("; it is one of the world {other}")).unwrap_or_default();
        return Err(format!("it does not export {:?}{is}", imports::interface(world.interface())));
    }
    if !exported.contains(&"metadata") {
        return Err(format!("it does not export {:?}", imports::interface("metadata")));
    }
    Ok(())
}
