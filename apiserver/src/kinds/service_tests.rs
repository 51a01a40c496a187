//! Services: defaults, refusals, and what an update inherits.

use serde_json::json;

use super::super::field::test::*;
use super::*;
use crate::registry::{AnyRules, Typed};

fn web(spec: &str) -> String {
    format!("{{metadata: {{name: web}}, spec: {spec}}}")
}

#[test]
fn defaults_are_upstreams() {
    let text = web(
        "{type: LoadBalancer, sessionAffinity: ClientIP, ports: [{port: 80}, {name: b, port: 81, targetPort: http}]}",
    );
    let stored = create(ServiceRules, &text.replace("{port: 80}", "{name: a, port: 80}")).expect("valid");
    contains(
        &stored,
        &json!({"spec": {
            "type": "LoadBalancer", "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Cluster",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "externalTrafficPolicy": "Cluster",
            "allocateLoadBalancerNodePorts": true, "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"protocol": "TCP", "targetPort": 80}, {"targetPort": "http"}],
        }}),
    );
    let again = Typed(ServiceRules).decode(stored.clone()).expect("decodes").object;
    assert_eq!(again, stored, "defaulting is idempotent");
    let plain = create(ServiceRules, &web("{clusterIP: 10.96.0.7, ports: [{port: 80}]}")).expect("valid");
    contains(&plain, &json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "clusterIPs": ["10.96.0.7"]}}));
    assert!(plain["spec"].get("externalTrafficPolicy").is_none());
}

#[track_caller]
fn check(spec: &str, expected: &[&str]) {
    if expected.is_empty() {
        assert_eq!(create(ServiceRules, &web(spec)).err(), None, "{spec}");
    } else {
        refused(ServiceRules, &web(spec), expected);
    }
}

#[test]
fn a_plugin_is_named_as_it_can_be_found() {
    let annotated = |value: &str| {
        format!(
            "{{metadata: {{name: web, annotations: {{traffic.scaleup.dev/policy: '{value}'}}}}, spec: {{ports: [{{port: 80}}]}}}}"
        )
    };
    for good in ["canary", "ClusterWasmPlugin/canary"] {
        assert_eq!(create(ServiceRules, &annotated(good)).err(), None, "{good}");
    }
    for bad in ["", "a/b", "WasmPlugin/a", "A"] {
        let name = names::dns1123_subdomain(bad).expect_err("bad");
        let why = format!("must be the name of a WasmPlugin, or 'ClusterWasmPlugin/' and a name: {name}");
        let expected = format!("metadata.annotations[traffic.scaleup.dev/policy]: Invalid value: {bad:?}: {why}");
        refused(ServiceRules, &annotated(bad), &[&expected]);
    }
}

#[test]
fn names_and_ports() {
    let name = names::dns1035_label("1web").expect_err("bad");
    refused(
        ServiceRules,
        "{metadata: {name: 1web}, spec: {}}",
        &[&format!("metadata.name: Invalid value: \"1web\": {name}"), "spec.ports: Required value"],
    );
    check("{clusterIP: None}", &[]);
    check(
        "{ports: [{port: 80}, {name: b, port: 0, protocol: ICMP, targetPort: HTTP}, {name: b, port: 81, nodePort: 30000, appProtocol: 'a b'}]}",
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "spec.ports[1].targetPort: Invalid value: \"HTTP\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            "spec.ports[2].name: Duplicate value: \"b\"",
            "spec.ports[2].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            &format!(
                "spec.ports[2].appProtocol: Invalid value: \"a b\": {}",
                names::qualified_name("a b").expect_err("bad")
            ),
        ],
    );
    check(
        "{type: NodePort, ports: [{name: a, port: 80, nodePort: 30000}, {name: b, port: 80, nodePort: 30000}]}",
        &[
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            "spec.ports[1].nodePort: Duplicate value: 30000",
        ],
    );
}

#[test]
fn protocols() {
    check("{ports: [{name: a, port: 53, protocol: TCP}, {name: b, port: 53, protocol: UDP}]}", &[]);
    let why = "spec.ports[0].protocol: Forbidden: SCTP is not supported yet; use TCP or UDP";
    check("{ports: [{port: 53, protocol: SCTP}]}", &[why]);
}

#[test]
fn types() {
    check("{type: ExternalName, externalName: example.com.}", &[]);
    check("{type: ExternalName}", &["spec.externalName: Required value"]);
    check(
        "{type: ExternalName, externalName: a.b, clusterIP: 10.96.0.7, ipFamilies: [IPv4], ipFamilyPolicy: SingleStack}",
        &[
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
            "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
            "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
        ],
    );
    check(
        "{type: Public, ports: [{port: 80}]}",
        &[
            "spec.type: Unsupported value: \"Public\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ],
    );
    check(
        "{type: NodePort, clusterIP: None, ports: [{port: 80}]}",
        &["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"],
    );
    check(
        "{ports: [{port: 80}], loadBalancerClass: a, allocateLoadBalancerNodePorts: true, loadBalancerSourceRanges: [10.0.0.0/8], externalTrafficPolicy: Local, healthCheckNodePort: 30000}",
        &[
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
            "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ],
    );
    check(
        "{type: LoadBalancer, ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.0/8]}",
        &["spec.LoadBalancerSourceRanges: Forbidden: source ranges are not supported yet; remove the field"],
    );
    check(
        "{ports: [{port: 80}], sessionAffinity: Cookie, internalTrafficPolicy: Near, trafficDistribution: Far, selector: {'a b': c}, externalIPs: [127.0.0.1]}",
        &[
            "spec.sessionAffinity: Unsupported value: \"Cookie\": supported values: \"ClientIP\", \"None\"",
            "spec.internalTrafficPolicy: Unsupported value: \"Near\": supported values: \"Cluster\", \"Local\"",
            "spec.trafficDistribution: Unsupported value: \"Far\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
            &format!("spec.selector: Invalid value: \"a b\": {}", names::qualified_name("a b").expect_err("bad")),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ],
    );
    check(
        "{ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}",
        &[
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
        ],
    );
}

#[test]
fn distributions_and_policies() {
    for distribution in DISTRIBUTIONS {
        check(&format!("{{ports: [{{port: 80}}], trafficDistribution: {distribution}}}"), &[]);
    }
    check("{type: NodePort, ports: [{port: 80}], internalTrafficPolicy: Local, externalTrafficPolicy: Local}", &[]);
    check(
        "{ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}}",
        &[
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
        ],
    );
}

#[test]
fn one_address_family() {
    check("{ports: [{port: 80}], ipFamilyPolicy: PreferDualStack}", &[]);
    check(
        "{ports: [{port: 80}], ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]}",
        &[
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            "spec.ipFamilies[1]: Invalid value: \"IPv6\": not configured on this cluster",
        ],
    );
    check(
        "{ports: [{port: 80}], clusterIP: 'fd00::1'}",
        &["spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"],
    );
    check(
        "{ports: [{port: 80}], clusterIP: 10.96.0.7, clusterIPs: [10.96.0.8, x]}",
        &[
            "spec.clusterIPs: Invalid value: [\"10.96.0.8\",\"x\"]: first value must match `clusterIP`",
            "spec.clusterIPs: Invalid value: [\"10.96.0.8\",\"x\"]: may hold one value only: this cluster is not configured for dual-stack services",
            "spec.clusterIPs[1]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
}

const OLD: &str = "{type: LoadBalancer, clusterIP: 10.96.0.7, ports: [{name: a, port: 80, nodePort: 30080}]}";

#[test]
fn updates_inherit_and_drop() {
    let inherit = update(|| ServiceRules, &web(OLD), &web("{type: LoadBalancer, ports: [{name: a, port: 81}]}"));
    contains(
        &inherit.expect("valid"),
        &json!({"spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"nodePort": 30080}]}}),
    );
    // What a merge patch of only the type looks like: everything else is the old object's.
    let old = create(ServiceRules, &web(OLD)).expect("valid");
    let mut patched = old.clone();
    patched["spec"]["type"] = json!("ClusterIP");
    let narrowed = update_stored(ServiceRules, &old, patched.clone()).expect("valid");
    for gone in ["allocateLoadBalancerNodePorts", "externalTrafficPolicy"] {
        assert!(narrowed["spec"].get(gone).is_none(), "{gone}");
    }
    assert!(narrowed["spec"]["ports"][0].get("nodePort").is_none());
    patched["spec"]["type"] = json!("ExternalName");
    patched["spec"]["externalName"] = json!("a.b");
    let named = update_stored(ServiceRules, &old, patched).expect("valid");
    assert!(named["spec"].get("clusterIP").is_none() && named["spec"].get("ipFamilies").is_none());
}

#[test]
fn the_address_stays() {
    same_messages(
        update(|| ServiceRules, &web(OLD), &web(&OLD.replace("0.7", "0.8"))),
        &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"],
    );
    same_messages(
        update(
            || ServiceRules,
            &web("{clusterIP: None, ports: [{port: 80}]}"),
            &web("{clusterIP: 10.96.0.8, ports: [{port: 80}]}"),
        ),
        &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"],
    );
    same_messages(
        update(|| ServiceRules, &web(OLD), &web(&OLD.replace("{type", "{loadBalancerClass: a/b, type"))),
        &["spec.loadBalancerClass: Invalid value: \"a/b\": may not change once set"],
    );
}

#[test]
fn status_ingress() {
    let cx = RuleContext { subresource: Some("status"), ..cx() };
    let check = |spec: &str, ingress: serde_json::Value, expected: &[&str]| {
        let old = create(ServiceRules, &web(spec)).expect("valid");
        let mut new = old.clone();
        new["status"] = json!({"loadBalancer": {"ingress": ingress}});
        let decoded = Typed(ServiceRules).decode(new).expect("decodes").object;
        let result = Typed(ServiceRules).update(decoded, &old, &cx);
        let result = result.map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>());
        if expected.is_empty() {
            let stored = result.expect("valid");
            contains(&stored, &json!({"status": {"loadBalancer": {"ingress": [{"ipMode": "VIP"}]}}}));
        } else {
            same_messages(result, expected);
        }
    };
    check(OLD, json!([{"ip": "10.0.0.1"}]), &[]);
    check(
        OLD,
        json!([{"ip": "x", "ipMode": "Both"}, {"hostname": "10.0.0.1", "ipMode": "VIP"}]),
        &[
            "status.loadBalancer.ingress[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "status.loadBalancer.ingress[0].ipMode: Unsupported value: \"Both\": supported values: \"Proxy\", \"VIP\"",
            "status.loadBalancer.ingress[1].ipMode: Forbidden: may not be specified when `ip` is not set",
            "status.loadBalancer.ingress[1].hostname: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
        ],
    );
    check(
        "{ports: [{port: 80}]}",
        json!([{"ip": "10.0.0.1"}]),
        &["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"],
    );
}
