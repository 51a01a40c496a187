//! placeholder

pub mod algorithm;
pub mod cache;
pub mod framework;
pub mod node;
pub mod plugins;
pub mod pod;
pub mod resources;
pub mod terms;
