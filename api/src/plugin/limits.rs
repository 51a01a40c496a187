//! Limits of a plugin as numbers.

use std::time::Duration;

use super::PluginLimits;
use crate::{Quantity, duration};

/// Limits as they were asked for, as numbers; `None` is the default of the plugin's world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AskedLimits {
    pub memory_bytes: Option<u64>,
    pub table_elements: Option<u64>,
    pub module_bytes: Option<u64>,
    pub time: Option<Duration>,
    pub fuel: Option<u64>,
    pub output_bytes: Option<u64>,
    pub compile_time: Option<Duration>,
    pub compile_memory_bytes: Option<u64>,
    pub state_entries: Option<u64>,
    pub state_bytes: Option<u64>,
}

/// What nobody can have more of: the host's own limits.
pub const MOST: Most = Most {
    memory_bytes: 256 << 20,
    table_elements: 65_536,
    module_bytes: super::MAX_MODULE_BYTES as u64,
    time: Duration::from_secs(60),
    output_bytes: 64 << 20,
    compile_time: Duration::from_secs(600),
    compile_memory_bytes: 16 << 30,
    state_entries: 1 << 20,
    state_bytes: 64 << 20,
};

/// See [`MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    pub memory_bytes: u64,
    pub table_elements: u64,
    pub module_bytes: u64,
    pub time: Duration,
    pub output_bytes: u64,
    pub compile_time: Duration,
    pub compile_memory_bytes: u64,
    pub state_entries: u64,
    pub state_bytes: u64,
}

/// The numbers, or what is wrong with which field.
///
/// # Errors
/// Every mistake, with the field's name in JSON.
pub fn parse_limits(limits: &PluginLimits) -> Result<AskedLimits, Vec<(&'static str, String)>> {
    let mut errors = Vec::new();
    let parsed = AskedLimits {
        memory_bytes: size(&mut errors, "memory", &limits.memory, MOST.memory_bytes),
        table_elements: number(&mut errors, "tableElements", limits.table_elements, MOST.table_elements),
        module_bytes: size(&mut errors, "moduleSize", &limits.module_size, MOST.module_bytes),
        time: time(&mut errors, "time", &limits.time, Duration::from_millis(1), MOST.time),
        fuel: number(&mut errors, "fuel", limits.fuel, i64::MAX as u64),
        output_bytes: size(&mut errors, "output", &limits.output, MOST.output_bytes),
        compile_time: time(&mut errors, "compileTime", &limits.compile_time, Duration::from_secs(1), MOST.compile_time),
        compile_memory_bytes: size(&mut errors, "compileMemory", &limits.compile_memory, MOST.compile_memory_bytes),
        state_entries: number(&mut errors, "stateEntries", limits.state_entries, MOST.state_entries),
        state_bytes: size(&mut errors, "stateSize", &limits.state_size, MOST.state_bytes),
    };
    if errors.is_empty() { Ok(parsed) } else { Err(errors) }
}

type Errors = Vec<(&'static str, String)>;

fn number<N: Into<i64>>(errors: &mut Errors, field: &'static str, value: Option<N>, most: u64) -> Option<u64> {
    let value: i64 = value?.into();
    let good = u64::try_from(value).ok().filter(|value| (1..=most).contains(value));
    if good.is_none() {
        errors.push((field, format!("must be between 1 and {most}, inclusive")));
    }
    good
}

fn size(errors: &mut Errors, field: &'static str, value: &Option<String>, most: u64) -> Option<u64> {
    let parsed = Quantity::parse(value.as_deref()?).map_err(|error| error.to_string());
    let good = parsed.and_then(|quantity| {
        let bytes = u64::try_from(quantity.value()).unwrap_or(0);
        let why = || format!("must be between 1 and {} bytes, inclusive", most);
        (1..=most).contains(&bytes).then_some(bytes).ok_or_else(why)
    });
    good.map_err(|why| errors.push((field, why))).ok()
}

fn time(
    errors: &mut Errors,
    field: &'static str,
    value: &Option<String>,
    least: Duration,
    most: Duration,
) -> Option<Duration> {
    let parsed = duration::parse(value.as_deref()?).filter(|time| (least..=most).contains(time));
    if parsed.is_none() {
        errors.push((field, format!("must be a duration between {least:?} and {}s (e.g. '20ms')", most.as_secs())));
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_mistakes() {
        let text = |text: &str| Some(text.to_owned());
        let limits =
            PluginLimits { memory: text("32Mi"), time: text("20ms"), fuel: Some(7), ..PluginLimits::default() };
        let parsed = parse_limits(&limits).unwrap();
        assert_eq!((parsed.memory_bytes, parsed.time), (Some(32 << 20), Some(Duration::from_millis(20))));
        assert_eq!((parsed.fuel, parsed.output_bytes), (Some(7), None));
        let limits = PluginLimits {
            memory: text("1Gi"),
            output: text("x"),
            time: text("0s"),
            compile_time: text("500ms"),
            table_elements: Some(0),
            fuel: Some(-1),
            ..PluginLimits::default()
        };
        let fields: Vec<_> = parse_limits(&limits).unwrap_err().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["memory", "tableElements", "time", "fuel", "output", "compileTime"]);
    }
}
