//! EndpointSlice (discovery.k8s.io).

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use scaleup_api::names;

use super::endpoints::{validate_port_name, validate_port_target};
use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_TOPOLOGY_LABELS: usize = 16;
const MAX_HINTS: usize = 8;
const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];

/// Rules of EndpointSlices.
pub struct EndpointSliceRules;

impl Rules for EndpointSliceRules {
    type Object = EndpointSlice;

    fn default(&self, object: &mut EndpointSlice) {
        for port in object.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".into());
        }
    }

    fn validate(&self, object: &EndpointSlice, _: &RuleContext<'_>, errors: &mut Errors) {
        let kind = object.address_type.as_str();
        field::one_of(errors, &Path::new("addressType"), kind, ADDRESS_TYPES);
        let at = Path::new("endpoints");
        if object.endpoints.len() > MAX_ENDPOINTS {
            errors.push(FieldError::too_many(at, object.endpoints.len(), MAX_ENDPOINTS));
        } else {
            object.endpoints.iter().enumerate().for_each(|(i, e)| validate_endpoint(&at.index(i), e, kind, errors));
        }
        validate_ports(&Path::new("ports"), field::list(&object.ports), errors);
    }

    fn validate_update(&self, object: &EndpointSlice, old: &EndpointSlice, _: &RuleContext<'_>, errors: &mut Errors) {
        field::immutable(errors, &Path::new("addressType"), &object.address_type, &old.address_type);
    }
}

fn validate_endpoint(at: &Path<'_>, endpoint: &Endpoint, kind: &str, errors: &mut Errors) {
    let addresses_at = at.child("addresses");
    match endpoint.addresses.len() {
        0 => errors.push(FieldError::required(addresses_at, "must contain at least 1 address")),
        count if count > MAX_ADDRESSES => errors.push(FieldError::too_many(addresses_at, count, MAX_ADDRESSES)),
        _ => {}
    }
    for (i, address) in endpoint.addresses.iter().take(MAX_ADDRESSES).enumerate() {
        validate_address(&addresses_at.index(i), address, kind, errors);
    }
    if let Some(node) = &endpoint.node_name {
        field::format(errors, &at.child("nodeName"), node, names::dns1123_subdomain);
    }
    let topology_at = at.child("deprecatedTopology");
    let topology = endpoint.deprecated_topology.as_ref();
    if let Some(count) = topology.map(|t| t.len()).filter(|count| *count > MAX_TOPOLOGY_LABELS) {
        errors.push(FieldError::too_many(topology_at, count, MAX_TOPOLOGY_LABELS));
    }
    field::labels(errors, &topology_at, topology);
    if let Some(host) = &endpoint.hostname {
        field::format(errors, &at.child("hostname"), host, names::dns1123_label);
    }
    let Some(hints) = &endpoint.hints else { return };
    let hints_at = at.child("hints");
    let zones = field::list(&hints.for_zones).iter().map(|z| z.name.as_str()).collect();
    validate_hints(&hints_at.child("forZones"), zones, names::label_value, errors);
    let nodes = field::list(&hints.for_nodes).iter().map(|n| n.name.as_str()).collect();
    validate_hints(&hints_at.child("forNodes"), nodes, names::dns1123_subdomain, errors);
}

fn validate_hints(path: &Path<'_>, hints: Vec<&str>, check: fn(&str) -> Result<(), String>, errors: &mut Errors) {
    if hints.len() > MAX_HINTS {
        errors.push(FieldError::too_many(path, hints.len(), MAX_HINTS));
        return;
    }
    for (i, name) in hints.iter().enumerate() {
        let at = path.index(i);
        if hints[..i].contains(name) {
            errors.push(FieldError::duplicate(at.child("name"), *name));
        }
        field::required_format(errors, &at.child("name"), name, check);
    }
}

fn validate_address(at: &Path<'_>, address: &str, kind: &str, errors: &mut Errors) {
    let parsed = address.parse::<IpAddr>().ok();
    match kind {
        "IPv4" if !parsed.is_some_and(|ip| ip.is_ipv4()) => {
            errors.push(FieldError::invalid(at, address, "must be a valid IPv4 address"));
        }
        "IPv6" if !parsed.is_some_and(|ip| ip.is_ipv6()) => {
            errors.push(FieldError::invalid(at, address, "must be a valid IPv6 address"));
        }
        "IPv4" | "IPv6" => field::non_special_ip(errors, at, address),
        "FQDN" => {
            field::format(errors, at, address, names::dns1123_subdomain);
            if !address.contains('.') {
                let why = "should be a domain with at least two segments separated by dots";
                errors.push(FieldError::invalid(at, address, why));
            }
        }
        _ => {}
    }
}

fn validate_ports(path: &Path<'_>, ports: &[EndpointPort], errors: &mut Errors) {
    if ports.len() > MAX_PORTS {
        errors.push(FieldError::too_many(path, ports.len(), MAX_PORTS));
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = path.index(i);
        let name = field::text(&port.name);
        validate_port_name(&at, name, errors);
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(at.child("name"), name));
        }
        validate_port_target(&at, port.port, &port.protocol, &port.app_protocol, errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    #[test]
    fn ports_are_defaulted() {
        let stored = create(
            EndpointSliceRules,
            "{metadata: {name: a}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{port: 80}]}",
        );
        contains(&stored.expect("valid"), &json!({"ports": [{"name": "", "protocol": "TCP", "port": 80}]}));
    }

    #[test]
    fn mistakes_are_all_reported() {
        refused(
            EndpointSliceRules,
            "{metadata: {name: a}, addressType: IPv4, endpoints: [{addresses: []}, {addresses: ['::1', 127.0.0.1], hints: {forZones: [{name: a}, {name: a}], forNodes: [{name: n1}, {}]}}], ports: [{port: 1}, {port: 70000}]}",
            &[
                "endpoints[0].addresses: Required value: must contain at least 1 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address",
                "endpoints[1].addresses[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "endpoints[1].hints.forZones[1].name: Duplicate value: \"a\"",
                "endpoints[1].hints.forNodes[1].name: Required value",
                "ports[1].name: Duplicate value: \"\"",
                "ports[1].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ],
        );
        refused(
            EndpointSliceRules,
            "{metadata: {name: a}, addressType: MAC, endpoints: []}",
            &["addressType: Unsupported value: \"MAC\": supported values: \"FQDN\", \"IPv4\", \"IPv6\""],
        );
    }

    #[test]
    fn the_address_type_stays() {
        same_messages(
            update(
                || EndpointSliceRules,
                "{metadata: {name: a}, addressType: IPv4, endpoints: []}",
                "{metadata: {name: a}, addressType: IPv6, endpoints: []}",
            ),
            &["addressType: Invalid value: \"IPv6\": field is immutable"],
        );
    }
}
