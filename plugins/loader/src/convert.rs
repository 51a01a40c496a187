//! From what objects say to what the host takes.

use scaleup_api::plugin::{PluginFailurePolicy, PluginLimits, parse_limits};
use scaleup_plugins::{FailurePolicy, Limits, OnFailure, Recording, World};

/// Records that are kept unless somebody says how many.
const DEFAULT_RECORDS: usize = 1000;

/// The limits in force: what was asked for over the defaults of the world. What cannot be read was refused by the API, and is left out here.
pub fn limits(world: World, asked: Option<&PluginLimits>) -> Limits {
    let asked = asked.and_then(|asked| parse_limits(asked).ok()).unwrap_or_default();
    let default = Limits::of(world);
    let size = |asked: Option<u64>, default: usize| asked.and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
    Limits {
        memory_bytes: asked.memory_bytes.unwrap_or(default.memory_bytes),
        table_elements: asked.table_elements.and_then(|n| u32::try_from(n).ok()).unwrap_or(default.table_elements),
        module_bytes: size(asked.module_bytes, default.module_bytes),
        compile_cpu: asked.compile_time.unwrap_or(default.compile_cpu),
        compile_memory_bytes: asked.compile_memory_bytes.unwrap_or(default.compile_memory_bytes),
        output_bytes: size(asked.output_bytes, default.output_bytes),
        time: asked.time.unwrap_or(default.time),
        fuel: asked.fuel.unwrap_or(default.fuel),
        state_entries: size(asked.state_entries, default.state_entries),
        state_bytes: size(asked.state_bytes, default.state_bytes),
    }
}

/// What happens with decisions that a plugin could not take: `Refuse` if absent for admission, the built-in decision for the others.
pub fn failure_policy(world: World, asked: Option<&PluginFailurePolicy>) -> FailurePolicy {
    let default = if world == World::Admission { OnFailure::Refuse } else { OnFailure::BuiltIn };
    let Some(asked) = asked else { return FailurePolicy::always(default) };
    let of = |field: &Option<String>| match field.as_deref() {
        Some("Refuse") => OnFailure::Refuse,
        Some("BuiltIn") => OnFailure::BuiltIn,
        _ => default,
    };
    FailurePolicy {
        fetch: of(&asked.fetch),
        compile: of(&asked.compile),
        trap: of(&asked.trap),
        timeout: of(&asked.timeout),
        invalid_output: of(&asked.invalid_output),
    }
}

/// Which decisions are kept.
pub fn recording(asked: &scaleup_api::plugin::Recording) -> Recording {
    Recording {
        percent: asked.sample_percent.and_then(|percent| u8::try_from(percent).ok()).unwrap_or(1),
        records: asked.max_records.and_then(|most| usize::try_from(most).ok()).unwrap_or(DEFAULT_RECORDS),
        plain_headers: asked.plain_headers.iter().map(|name| name.to_ascii_lowercase().into()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scaleup_api::plugin::MOST;

    use super::*;

    #[test]
    fn what_is_absent_is_the_worlds_default() {
        assert_eq!(limits(World::Routing, None), Limits::of(World::Routing));
        let asked = PluginLimits { memory: Some("1Mi".into()), time: Some("3ms".into()), ..PluginLimits::default() };
        let got = limits(World::Pricing, Some(&asked));
        assert_eq!((got.memory_bytes, got.time), (1 << 20, Duration::from_millis(3)));
        assert_eq!(got.fuel, Limits::of(World::Pricing).fuel);
    }

    #[test]
    fn nobody_may_ask_for_more_than_the_host_gives() {
        let Limits { memory_bytes, table_elements, module_bytes, time, .. } = Limits::MOST;
        assert_eq!(
            (MOST.memory_bytes, MOST.table_elements, MOST.time),
            (memory_bytes, u64::from(table_elements), time)
        );
        assert!(MOST.module_bytes <= module_bytes as u64);
        assert_eq!(
            (MOST.compile_time, MOST.compile_memory_bytes),
            (Limits::MOST.compile_cpu, Limits::MOST.compile_memory_bytes)
        );
        assert_eq!(
            (MOST.output_bytes, MOST.state_bytes),
            (Limits::MOST.output_bytes as u64, Limits::MOST.state_bytes as u64)
        );
        assert_eq!(MOST.state_entries, Limits::MOST.state_entries as u64);
    }

    #[test]
    fn admission_refuses_unless_told_otherwise() {
        assert_eq!(failure_policy(World::Admission, None), FailurePolicy::always(OnFailure::Refuse));
        let asked = PluginFailurePolicy { trap: Some("Refuse".into()), ..PluginFailurePolicy::default() };
        let got = failure_policy(World::Routing, Some(&asked));
        assert_eq!((got.trap, got.fetch), (OnFailure::Refuse, OnFailure::BuiltIn));
    }
}
