//! Values by key that outlive a call: shared by all instances of the plugin in one process, lost when the process ends or a new version takes over.

pub use crate::bindings::policy::scaleup::policy::state::Refusal;

#[cfg(target_arch = "wasm32")]
use crate::bindings::policy::scaleup::policy::state as host;

/// The value, if there is one.
pub fn get(key: &str) -> Option<Vec<u8>> {
    host::get(key)
}

/// Keeps a value in place of the one that is there.
///
/// # Errors
/// If the key or the value is too long, or the plugin has as much as it may have.
pub fn set(key: &str, value: &[u8]) -> Result<(), Refusal> {
    host::set(key, value)
}

/// Forgets a value.
pub fn delete(key: &str) {
    host::delete(key);
}

/// For tests of plugins on the machine that builds them.
#[cfg(not(target_arch = "wasm32"))]
mod host {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::Refusal;

    std::thread_local! {
        static VALUES: RefCell<HashMap<String, Vec<u8>>> = RefCell::default();
    }

    pub fn get(key: &str) -> Option<Vec<u8>> {
        VALUES.with_borrow(|values| values.get(key).cloned())
    }

    pub fn set(key: &str, value: &[u8]) -> Result<(), Refusal> {
        match (key.len(), value.len()) {
            (0 | 129.., _) => Err(Refusal::InvalidKey),
            (_, 4097..) => Err(Refusal::ValueTooLong),
            _ => {
                VALUES.with_borrow_mut(|values| values.insert(key.to_owned(), value.to_owned()));
                Ok(())
            }
        }
    }

    pub fn delete(key: &str) {
        VALUES.with_borrow_mut(|values| values.remove(key));
    }
}
