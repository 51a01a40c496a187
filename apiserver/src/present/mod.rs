//! What clients see of the registry and of objects: discovery, OpenAPI, tables and metadata-only views.
//!
//! Everything here is pure: a registry row or an object goes in, JSON comes out. Nothing reads the store.

pub mod columns;
pub mod discovery;
pub mod openapi;
pub mod partial;
pub mod table;
