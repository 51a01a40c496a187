//! The node authorizer.
