//! x
mod bindings;
mod check;
pub mod admission;
pub mod pricing;
pub mod routing;
pub mod scaling;
pub mod scheduling;
