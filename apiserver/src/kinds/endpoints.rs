//! Endpoints, the older form of EndpointSlices that some clients still read.

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, Endpoints};
use scaleup_api::names;

use super::field::{self, Errors, Path};
use crate::error::FieldError;
use crate::registry::{RuleContext, Rules};

/// Rules of Endpoints.
pub struct EndpointsRules;

impl Rules for EndpointsRules {
    type Object = Endpoints;

    fn default(&self, object: &mut Endpoints) {
        let ports = object.subsets.iter_mut().flatten().flat_map(|s| s.ports.iter_mut().flatten());
        for port in ports.filter(|p| field::text(&p.protocol).is_empty()) {
            port.protocol = Some("TCP".into());
        }
    }

    fn validate(&self, object: &Endpoints, _: &RuleContext<'_>, errors: &mut Errors) {
        let path = Path::new("subsets");
        for (i, subset) in field::list(&object.subsets).iter().enumerate() {
            let at = path.index(i);
            let (ready, not_ready) = (field::list(&subset.addresses), field::list(&subset.not_ready_addresses));
            if ready.is_empty() && not_ready.is_empty() {
                errors.push(FieldError::required(at, "must specify `addresses` or `notReadyAddresses`"));
            }
            for (name, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
                let at = at.child(name);
                addresses.iter().enumerate().for_each(|(i, a)| validate_address(&at.index(i), a, errors));
            }
            let ports = field::list(&subset.ports);
            let ports_at = at.child("ports");
            for (i, port) in ports.iter().enumerate() {
                validate_port(&ports_at.index(i), port, ports.len() > 1, errors);
            }
        }
    }
}

fn validate_address(at: &Path<'_>, address: &EndpointAddress, errors: &mut Errors) {
    field::format(errors, &at.child("ip"), &address.ip, names::ip);
    field::non_special_ip(errors, &at.child("ip"), &address.ip);
    if let Some(host) = address.hostname.as_deref().filter(|h| !h.is_empty()) {
        field::format(errors, &at.child("hostname"), host, names::dns1123_label);
    }
    if let Some(node) = &address.node_name {
        field::format(errors, &at.child("nodeName"), node, names::dns1123_subdomain);
    }
}

fn validate_port(at: &Path<'_>, port: &EndpointPort, name_required: bool, errors: &mut Errors) {
    let name = field::text(&port.name);
    if name_required {
        field::required(errors, &at.child("name"), name);
    }
    validate_port_name(at, name, errors);
    validate_port_target(at, Some(port.port), &port.protocol, &port.app_protocol, errors);
}

/// The name of a port of Endpoints or of an EndpointSlice; it may be empty.
pub(super) fn validate_port_name(at: &Path<'_>, name: &str, errors: &mut Errors) {
    if !name.is_empty() {
        field::format(errors, &at.child("name"), name, names::dns1123_label);
    }
}

/// What a port of Endpoints or of an EndpointSlice says beside its name.
pub(super) fn validate_port_target(
    at: &Path<'_>,
    port: Option<i32>,
    protocol: &Option<String>,
    app_protocol: &Option<String>,
    errors: &mut Errors,
) {
    if let Some(port) = port {
        field::port(errors, &at.child("port"), port);
    }
    field::one_of(errors, &at.child("protocol"), field::text(protocol), field::PROTOCOLS);
    if let Some(protocol) = app_protocol {
        field::format(errors, &at.child("appProtocol"), protocol, names::qualified_name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::field::test::*;
    use super::*;

    #[test]
    fn protocol_is_filled() {
        let stored = create(
            EndpointsRules,
            "{metadata: {name: a}, subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]}",
        );
        contains(&stored.expect("valid"), &json!({"subsets": [{"ports": [{"protocol": "TCP"}]}]}));
    }

    #[test]
    fn mistakes_are_all_reported() {
        refused(
            EndpointsRules,
            "{metadata: {name: a}, subsets: [{}, {notReadyAddresses: [{ip: 127.0.0.1, hostname: A_}, {ip: x}], ports: [{port: 0}, {name: a, port: 1, protocol: ICMP}]}]}",
            &[
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                "subsets[1].notReadyAddresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                &format!(
                    "subsets[1].notReadyAddresses[0].hostname: Invalid value: \"A_\": {}",
                    names::dns1123_label("A_").expect_err("bad")
                ),
                "subsets[1].notReadyAddresses[1].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "subsets[1].ports[0].name: Required value",
                "subsets[1].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[1].ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ],
        );
    }
}
