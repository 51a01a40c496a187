//! x
mod bindings;
pub mod routing;
