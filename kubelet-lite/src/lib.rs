//! The node agent: makes containers of the pods bound to its node.

pub mod clock;
pub mod runtime;
#[cfg(test)]
mod testing;
