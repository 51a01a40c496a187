//! The built-in rows. Adding a kind is adding a row here and its rules in `kinds/`.

use super::Registry;

/// Every built-in kind.
pub fn builtin() -> Registry {
    Registry::default()
}
