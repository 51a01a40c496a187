//! What clients see of the registry and of objects: discovery, OpenAPI, tables and metadata-only views.
//!
//! Everything here is pure: registry rows or an object go in, JSON comes out. Nothing reads the store, and nothing but
//! [`age`] reads the clock.

pub mod age;
pub mod columns;
pub mod discovery;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod openapi;
pub mod partial;
pub mod table;
