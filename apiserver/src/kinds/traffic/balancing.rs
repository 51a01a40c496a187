//! `spec.loadBalancing`.

use std::time::Duration;

use scaleup_api::names;
use scaleup_api::traffic::{EndpointWeight, HashCookie, HashOn, LoadBalancing, Locality, Region, SlowStart};

use super::super::custom::{count, duration, range};
use super::super::field::{self, Errors, Path};
use super::super::gateway::text;
use super::{MAX_NAME, required_time};
use crate::error::FieldError;

const MAX_HASHES: usize = 8;
const MAX_WEIGHTS: usize = 64;
const MAX_REGIONS: usize = 64;
const MAX_PATH: usize = 1024;
const MAX_SLOW_START: Duration = Duration::from_secs(15 * 60);
/// By name.
pub const ALGORITHMS: &[&str] =
    &["LeastConnections", "LeastRequest", "Maglev", "PeakEWMA", "Random", "RingHash", "RoundRobin"];

pub fn load_balancing(errors: &mut Errors, at: &Path<'_>, lb: &LoadBalancing) {
    field::optional_one_of(errors, &at.child("algorithm"), &lb.algorithm, ALGORITHMS);
    let hashes = matches!(lb.algorithm.as_deref(), Some("RingHash" | "Maglev"));
    let list = at.child("hashOn");
    for (member, set) in [("hashOn", !lb.hash_on.is_empty()), ("boundedLoadPercent", lb.bounded_load_percent.is_some())]
    {
        if set && !hashes {
            let why = "may only be specified when `algorithm` is 'RingHash' or 'Maglev'";
            errors.push(FieldError::forbidden(at.child(member), why));
        }
    }
    if !count(errors, &list, lb.hash_on.len(), 0, MAX_HASHES) {
        lb.hash_on.iter().enumerate().for_each(|(i, hash)| hash_on(errors, &list.index(i), hash));
    }
    range(errors, &at.child("boundedLoadPercent"), lb.bounded_load_percent, 100, 1000);
    let list = at.child("weights");
    if !count(errors, &list, lb.weights.len(), 0, MAX_WEIGHTS) {
        lb.weights.iter().enumerate().for_each(|(i, one)| weight(errors, &list.index(i), one));
    }
    if let Some(part) = &lb.locality {
        locality(errors, &at.child("locality"), part);
    }
    if let Some(SlowStart { window, min_percent }) = &lb.slow_start {
        let at = at.child("slowStart");
        required_time(errors, &at.child("window"), window, Duration::from_millis(1), Some(MAX_SLOW_START));
        range(errors, &at.child("minPercent"), *min_percent, 1, 100);
    }
}

fn hash_on(errors: &mut Errors, at: &Path<'_>, hash: &HashOn) {
    let set = [hash.header.is_some(), hash.cookie.is_some(), hash.query_param.is_some(), hash.source_ip];
    match set.iter().filter(|set| **set).count() {
        0 => errors.push(FieldError::required(at, "exactly one of header, cookie, queryParam and sourceIp")),
        1 => {}
        _ => errors
            .push(FieldError::forbidden(at, "exactly one of header, cookie, queryParam and sourceIp may be specified")),
    }
    text::optional(errors, &at.child("header"), &hash.header, text::MAX_HEADER_NAME, text::token);
    text::optional(errors, &at.child("queryParam"), &hash.query_param, text::MAX_HEADER_NAME, text::token);
    if let Some(HashCookie { name, path, ttl }) = &hash.cookie {
        let at = at.child("cookie");
        text::required(errors, &at.child("name"), name, text::MAX_HEADER_NAME, text::token);
        text::optional(errors, &at.child("path"), path, MAX_PATH, cookie_path);
        duration(errors, &at.child("ttl"), ttl.as_deref());
    }
}

/// A path without what would end the attribute.
fn cookie_path(value: &str) -> Result<(), String> {
    if value.starts_with('/') && !value.contains(';') && text::path_characters(value) {
        Ok(())
    } else {
        Err("must be an absolute path without ';' (e.g. '/shop')".into())
    }
}

fn weight(errors: &mut Errors, at: &Path<'_>, weight: &EndpointWeight) {
    let EndpointWeight { zone, node, address, weight } = weight;
    if zone.is_none() && node.is_none() && address.is_none() {
        errors.push(FieldError::required(at, "at least one of zone, node and address"));
    }
    text::optional(errors, &at.child("zone"), zone, MAX_NAME, names::label_value);
    text::optional(errors, &at.child("node"), node, MAX_NAME, names::dns1123_subdomain);
    text::optional(errors, &at.child("address"), address, MAX_NAME, names::ip);
    if weight.is_none() {
        errors.push(FieldError::required(at.child("weight"), ""));
    }
    range(errors, &at.child("weight"), *weight, 0, 1000);
}

fn locality(errors: &mut Errors, at: &Path<'_>, locality: &Locality) {
    field::optional_one_of(errors, &at.child("prefer"), &locality.prefer, &["Nearest", "None", "Region", "Zone"]);
    range(errors, &at.child("spilloverPercent"), locality.spillover_percent, 1, 100);
    let list = at.child("regions");
    if locality.prefer.as_deref() == Some("Nearest") && locality.regions.is_empty() {
        errors.push(FieldError::required(list, "must be specified when `prefer` is 'Nearest'"));
    }
    if count(errors, &list, locality.regions.len(), 0, MAX_REGIONS) {
        return;
    }
    for (i, Region { name, latitude, longitude }) in locality.regions.iter().enumerate() {
        let at = list.index(i);
        text::required(errors, &at.child("name"), name, MAX_NAME, names::label_value);
        if locality.regions[..i].iter().any(|other| other.name == *name) {
            errors.push(FieldError::duplicate(at.child("name"), name.as_str()));
        }
        degrees(errors, &at.child("latitude"), latitude, 90.0);
        degrees(errors, &at.child("longitude"), longitude, 180.0);
    }
}

/// A decimal number between `-max` and `max`; no exponents or names, which Rust's parser would take.
fn degrees(errors: &mut Errors, at: &Path<'_>, value: &str, max: f64) {
    let plain = value.len() <= 24 && value.bytes().all(|b| b.is_ascii_digit() || b"+-.".contains(&b));
    let parsed = value.parse::<f64>().ok().filter(|_| plain);
    if value.is_empty() {
        errors.push(FieldError::required(at, "degrees, e.g. '50.11'"));
    } else if parsed.is_none_or(|degrees| degrees.abs() > max) {
        errors.push(FieldError::invalid(at, value, format!("must be a decimal number between -{max} and {max}")));
    }
}
