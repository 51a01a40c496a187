//! What every part of ScaleUp shares about Kubernetes objects: quantities, selectors, names, owners, pod readiness, durations, and the kinds that
//! k8s-openapi does not have.
//!
//! Pure functions over k8s-openapi types. Nothing here does I/O, and nothing here knows the store, the API server or a role.

#[macro_use]
mod data;

pub mod duration;
pub mod gateway;
pub mod kind;
pub mod names;
pub mod owner;
pub mod plugin;
pub mod pods;
pub mod quantity;
pub mod selector;
pub mod subnet;
pub mod time;
pub mod traffic;
pub mod well_known;

pub use quantity::Quantity;
pub use selector::{FieldSelector, LabelSelector};
