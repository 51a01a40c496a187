//! Which world a module is of, by what it exports. It validates nothing: whether a module is a component of that world is for
//! [`crate::Host::compile`] to say.

use wasmparser::{Parser, Payload};

use crate::World;

/// The world whose decision this component, or core module with bindings, exports.
///
/// # Errors
/// If the bytes are no WebAssembly, or if no world or more than one fits.
pub fn world_of(source: &[u8]) -> Result<World, String> {
    if !source.starts_with(b"\0asm") {
        return Err("these bytes are no WebAssembly".into());
    }
    let mut found: Vec<World> = Vec::new();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(source) {
        let payload = payload.map_err(|error| format!("not a WebAssembly module: {error}"))?;
        let mut note = |name: &str| {
            let interface = name.strip_prefix("scaleup:policy/").and_then(|rest| rest.split_once('@'));
            let world = interface
                .and_then(|(interface, _)| World::ALL.into_iter().find(|world| world.interface() == interface));
            found.extend(world.filter(|world| !found.contains(world)));
        };
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(exports) if depth == 0 => {
                exports.into_iter().flatten().for_each(|export| note(export.name.name));
            }
            Payload::ExportSection(exports) if depth == 0 => {
                exports.into_iter().flatten().for_each(|export| note(export.name));
            }
            _ => {}
        }
    }
    match found[..] {
        [world] => Ok(world),
        [] => Err("it exports none of router, admitter, placer, scaler and pricer of scaleup:policy".into()),
        _ => Err(format!("it exports the decisions of {} worlds; a component takes one", found.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Guest;

    #[test]
    fn components_and_modules_are_told_by_their_exports() {
        for world in World::ALL {
            let guest = Guest::new(world, "(i32.const 1024)");
            assert_eq!((world_of(&guest.component()), world_of(&guest.core())), (Ok(world), Ok(world)));
        }
        let empty = wat::parse_str("(module)").unwrap();
        assert!(world_of(&empty).unwrap_err().starts_with("it exports none of"));
        assert_eq!(world_of(b"#!/bin/sh"), Err("these bytes are no WebAssembly".into()));
        let cut = Guest::new(World::Routing, "(i32.const 1024)").component();
        assert!(world_of(&cut[..cut.len() / 2]).is_err());
    }
}
