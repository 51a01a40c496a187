//! Components of the world `routing` that do one thing.

use super::Guest;
use crate::World;

fn guest(decision: &str) -> Guest {
    Guest::new(World::Routing, decision)
}

/// Picks the endpoint at this position, whether there is one or not.
pub fn picks(at: u32) -> Guest {
    guest(&format!(
        "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store offset=4 (i32.const 1024) (i32.const {at})) (i32.const 1024)"
    ))
}

/// Picks the endpoint whose position is the number of headers that it is shown.
pub fn counts_headers() -> Guest {
    guest(
        "(i32.store8 (i32.const 1024) (i32.const 1))
         (i32.store offset=4 (i32.const 1024) (i32.load offset=24 (local.get $in))) (i32.const 1024)",
    )
}

/// Leaves every request to the built-in policy.
pub fn says_default() -> Guest {
    guest("(i32.store8 (i32.const 1024) (i32.const 0)) (i32.const 1024)")
}

/// Rejects with a status and one header, whose name and value must not need escapes.
pub fn rejects(status: u16, name: &str, value: &str) -> Guest {
    let (name_len, value_len) = (name.len(), value.len());
    guest(&format!(
        "(i32.store8 (i32.const 1024) (i32.const 2)) (i32.store16 offset=4 (i32.const 1024) (i32.const {status}))
         (i32.store offset=8 (i32.const 1024) (i32.const 2048)) (i32.store offset=12 (i32.const 1024) (i32.const 1))
         (i32.store (i32.const 2048) (i32.const 2304)) (i32.store offset=4 (i32.const 2048) (i32.const {name_len}))
         (i32.store offset=8 (i32.const 2048) (i32.const 3072)) (i32.store offset=12 (i32.const 2048) (i32.const {value_len}))
         (i32.const 1024)"
    ))
    .extra(&format!(r#"(data (i32.const 2304) "{name}") (data (i32.const 3072) "{value}")"#))
}

/// Traps in every `n`th call of an instance, and says default otherwise.
pub fn traps_every(n: u32) -> Guest {
    guest(&format!(
        "(if (i32.eqz (i32.rem_u (global.get $calls) (i32.const {n}))) (then unreachable))
         (i32.store8 (i32.const 1024) (i32.const 0)) (i32.const 1024)"
    ))
}

/// Never comes back.
pub fn loops() -> Guest {
    guest("(loop $again (br $again)) (unreachable)")
}
