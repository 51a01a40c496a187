//! Schemas of the built-in types.
