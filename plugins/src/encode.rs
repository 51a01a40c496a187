//! Core modules made into components: toolchains give the one, the host takes the other.

/// First bytes of a component: magic number, version 13, layer 1.
const COMPONENT: [u8; 8] = [0, b'a', b's', b'm', 0x0d, 0, 1, 0];
/// First bytes of a core module: magic number, version 1.
const MODULE: [u8; 8] = [0, b'a', b's', b'm', 1, 0, 0, 0];

/// The component that the source is, or is made into with the sections that bindings leave in it. What it parses may be hostile: the host calls it
/// in the compiler's process alone.
///
/// # Errors
/// Why it cannot be one.
pub fn component(source: Vec<u8>) -> Result<Vec<u8>, String> {
    if source.starts_with(&COMPONENT) {
        return Ok(source);
    }
    if !source.starts_with(&MODULE) {
        return Err("these bytes are no WebAssembly".into());
    }
    let encoder = wit_component::ComponentEncoder::default().validate(true).module(&source);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|error| {
        format!("a core module that cannot be made a component (build it with bindings for scaleup:policy): {error:#}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_is_refused() {
        assert_eq!(component(b"#!/bin/sh".to_vec()), Err("these bytes are no WebAssembly".into()));
        assert_eq!(component(Vec::new()), Err("these bytes are no WebAssembly".into()));
        let reason = component([&MODULE[..], &[1, 99]].concat()).unwrap_err();
        assert!(reason.starts_with("a core module that cannot be made a component"), "{reason}");
    }
}
