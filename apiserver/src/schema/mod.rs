//! Schemas of the built-in types: what fields there are and how their lists and maps merge.
//!
//! The types themselves come from k8s-openapi ([`roots`]) and `scaleup-api` ([`custom`]), what they leave out from one table ([`table`]). [`graph`] is the
//! small part that stays in memory: field names, shapes and merge keys, without descriptions. [`protobuf`] decodes bodies by it.
//! Nothing here knows of requests.

mod custom;
pub mod graph;
pub mod protobuf;
pub mod roots;
pub mod table;
