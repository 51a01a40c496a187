//! Values of fields, checked: numbers within limits, durations, names. Errors name the field.

use std::sync::Arc;
use std::time::Duration;

/// Longest name, path or value, in bytes.
const MAX_TEXT_BYTES: usize = 1024;
/// Statuses that a field lists at most.
pub(super) const MAX_STATUSES: usize = 32;

pub(super) fn check(fine: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if fine { Ok(()) } else { Err(message()) }
}

/// A number within limits, or the default.
pub(super) fn number(
    field: &str,
    value: Option<i32>,
    range: std::ops::RangeInclusive<u32>,
    default: u32,
) -> Result<u32, String> {
    Ok(optional(field, value, range)?.unwrap_or(default))
}

pub(super) fn optional(
    field: &str,
    value: Option<i32>,
    range: std::ops::RangeInclusive<u32>,
) -> Result<Option<u32>, String> {
    let Some(value) = value else { return Ok(None) };
    match u32::try_from(value) {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => Err(format!("{field}: {value} is not between {} and {}", range.start(), range.end())),
    }
}

pub(super) fn duration(field: &str, text: &str) -> Result<Duration, String> {
    scaleup_api::duration::parse(text)
        .ok_or_else(|| format!("{field}: {text:?} is not a duration such as 10s or 250ms"))
}

/// A duration that is not zero, or the default.
pub(super) fn positive(field: &str, text: Option<&str>, default: Duration) -> Result<Duration, String> {
    let Some(text) = text else { return Ok(default) };
    let parsed = duration(field, text)?;
    check(!parsed.is_zero(), || format!("{field}: must be longer than 0s"))?;
    Ok(parsed)
}

/// A limit of time; `0s` is none.
pub(super) fn limit(field: &str, text: Option<&str>) -> Result<Option<Option<Duration>>, String> {
    let Some(text) = text else { return Ok(None) };
    Ok(Some(Some(duration(field, text)?).filter(|duration| !duration.is_zero())))
}

pub(super) fn at_most(field: &str, count: usize, most: usize) -> Result<(), String> {
    check(count <= most, || format!("{field}: more than {most} entries"))
}

pub(super) fn header(field: &str, name: &str) -> Result<Arc<str>, String> {
    let lower = name.to_ascii_lowercase();
    check(http::HeaderName::from_bytes(lower.as_bytes()).is_ok(), || {
        format!("{field}: {name:?} is not a header's name")
    })?;
    Ok(lower.into())
}

/// Text that may stand in a field or a metric.
pub(super) fn text(field: &str, text: &str) -> Result<Arc<str>, String> {
    let fine =
        !text.is_empty() && text.len() <= MAX_TEXT_BYTES && text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
    check(fine, || format!("{field}: {text:?} is empty, too long or not plain ASCII text"))?;
    Ok(text.into())
}

pub(super) fn path(field: &str, text: &str) -> Result<Arc<str>, String> {
    let fine =
        text.starts_with('/') && text.len() <= MAX_TEXT_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic());
    check(fine && !text.contains('#'), || format!("{field}: {text:?} is not a path"))?;
    Ok(text.into())
}

pub(super) fn is_host(text: &str) -> bool {
    scaleup_api::names::dns1123_subdomain(&text.to_ascii_lowercase()).is_ok()
}

/// A host with perhaps a port, for `Host`.
pub(super) fn authority(field: &str, text: &str) -> Result<Arc<str>, String> {
    let host = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(text, |(host, _)| host);
    check(is_host(host), || format!("{field}: {text:?} is not a host"))?;
    Ok(text.to_ascii_lowercase().into())
}
