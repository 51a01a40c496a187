//! Messages made by hand, by the schemas, by chance and by upstream.

use serde_json::json;

use super::*;
use crate::schema::roots::ROOTS;

// ---- a small encoder, so that tests read like the messages ----

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

pub fn int(number: u32, value: i64) -> Vec<u8> {
    [varint(u64::from(number) << 3), varint(value.cast_unsigned())].concat()
}

pub fn bytes(number: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(u64::from(number) << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

pub fn message(number: u32, fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(number, fields.concat())
}

pub fn body(api_version: &str, kind: &str, fields: &[Vec<u8>]) -> Vec<u8> {
    let meta = message(1, &[bytes(1, api_version), bytes(2, kind)]);
    [MAGIC.to_vec(), meta, message(2, fields), bytes(3, ""), bytes(4, "")].concat()
}

fn check(api_version: &str, kind: &str, fields: &[Vec<u8>], want: Value) {
    let mut want = want;
    want["apiVersion"] = api_version.into();
    want["kind"] = kind.into();
    assert_eq!(decode(&body(api_version, kind, fields)), Ok(want));
}

/// What client-go writes for an `ObjectMeta` of which only the name is set: every plain field, empty or not.
fn metadata(name: &str) -> Vec<u8> {
    let empty = |number| bytes(number, "");
    message(1, &[bytes(1, name), empty(2), empty(3), empty(4), empty(5), empty(6), int(7, 0), empty(8)])
}

#[test]
fn zero_values_are_left_out_of_plain_fields_only() {
    let spec = message(2, &[]);
    let status = message(3, &[bytes(1, "")]);
    let want = json!({"metadata": {"name": "a", "creationTimestamp": null}, "spec": {}, "status": {}});
    check("v1", "Namespace", &[metadata("a"), spec, status], want);
    // `replicas` and `paused` of a DeploymentSpec: a pointer and a plain boolean.
    check("apps/v1", "Deployment", &[message(2, &[int(1, 0), int(7, 0)])], json!({"spec": {"replicas": 0}}));
    check(
        "apps/v1",
        "Deployment",
        &[message(2, &[int(1, -1), int(7, 1)])],
        json!({"spec": {"replicas": -1, "paused": true}}),
    );
}

#[test]
fn every_shape_is_decoded() {
    let label = |k: &str, v: &str| message(11, &[bytes(1, k), bytes(2, v)]);
    let created = message(8, &[int(1, 1_700_000_000), int(2, 5)]);
    let meta = message(1, &[bytes(1, "p"), created, label("a", "1"), label("b", ""), bytes(14, "x/y"), bytes(14, "z")]);
    let quantity = |text: &str| message(2, &[bytes(1, text)]);
    let limits = message(1, &[bytes(1, "cpu"), quantity("500m")]);
    let probe = message(
        10,
        &[message(1, &[message(2, &[bytes(1, "/ok"), message(2, &[int(1, 0), int(2, 80), bytes(3, "")])])]), int(3, 2)],
    );
    let port = message(6, &[bytes(1, ""), int(2, 0), int(3, 53), bytes(4, "UDP")]);
    let container = message(2, &[bytes(1, "c"), bytes(4, "-x"), bytes(4, ""), port, message(8, &[limits]), probe]);
    let volume =
        message(1, &[bytes(1, "v"), message(2, &[message(2, &[bytes(1, ""), message(2, &[bytes(1, "64Mi")])])])]);
    check(
        "v1",
        "Pod",
        &[meta, message(2, &[volume, container, int(4, 0)])],
        json!({
            "metadata": {"name": "p", "creationTimestamp": "2023-11-14T22:13:20Z", "labels": {"a": "1", "b": ""},
                "finalizers": ["x/y", "z"]},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "64Mi"}}],
                "containers": [{"name": "c", "args": ["-x", ""], "ports": [{"containerPort": 53, "protocol": "UDP"}],
                    "resources": {"limits": {"cpu": "500m"}},
                    "livenessProbe": {"httpGet": {"path": "/ok", "port": 80}, "timeoutSeconds": 2}}],
            },
        }),
    );
    let data = |key: &str, value: &[u8]| message(2, &[bytes(1, key), bytes(2, value)]);
    check("v1", "Secret", &[data("k", b"\xff\x00"), data("e", b"")], json!({"data": {"k": "/wA=", "e": ""}}));
    let target = message(4, &[int(1, 1), int(2, 0), bytes(3, "http")]);
    check(
        "v1",
        "Service",
        &[message(2, &[message(1, &[int(3, 80), target])])],
        json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}),
    );
    let renewed = message(4, &[int(1, 1), int(2, 2000)]);
    check(
        "coordination.k8s.io/v1",
        "Lease",
        &[message(2, &[renewed])],
        json!({"spec": {"renewTime": "1970-01-01T00:00:01.000002Z"}}),
    );
    let extra = message(5, &[bytes(1, "scopes"), message(2, &[bytes(1, "a"), bytes(1, "b")])]);
    check(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        &[message(2, &[extra])],
        json!({"spec": {"extra": {"scopes": ["a", "b"]}}}),
    );
    let fields = message(17, &[bytes(1, "kubectl"), message(7, &[bytes(1, br#"{"f:data":{}}"#)])]);
    check(
        "v1",
        "ConfigMap",
        &[message(1, &[fields])],
        json!({"metadata": {"managedFields": [{"manager": "kubectl", "fieldsV1": {"f:data": {}}}]}}),
    );
    // `GroupVersion` of the client that deletes, `gracePeriodSeconds` and a packed list of `supplementalGroups`.
    check("apps/v1", "DeleteOptions", &[int(1, 0)], json!({"gracePeriodSeconds": 0}));
    let groups = message(14, &[bytes(4, [1, 0x80, 1])]);
    check(
        "v1",
        "Pod",
        &[message(2, &[groups])],
        json!({"spec": {"securityContext": {"supplementalGroups": [1, 128]}}}),
    );
}

#[test]
fn repeated_fields_merge_as_protobuf_wants_it() {
    let named = |name: &str| message(1, &[bytes(1, name)]);
    check("v1", "ConfigMap", &[named("a"), named("b")], json!({"metadata": {"name": "b"}}));
    check("v1", "ConfigMap", &[named("a"), named("")], json!({"metadata": {}}));
    check(
        "v1",
        "ConfigMap",
        &[named("a"), message(1, &[bytes(3, "ns")])],
        json!({"metadata": {"name": "a", "namespace": "ns"}}),
    );
    check("v1", "ConfigMap", &[int(4, 1), int(4, 0)], json!({"immutable": false}));
}

#[test]
fn times_end_where_json_ends() {
    let created = |seconds: i64, nanos: i64| message(1, &[message(8, &[int(1, seconds), int(2, nanos)])]);
    let ok = |seconds, nanos, want: Value| check("v1", "ConfigMap", &[created(seconds, nanos)], want);
    ok(0, 0, json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"}}));
    ok(-1, 999_999_999, json!({"metadata": {"creationTimestamp": "1969-12-31T23:59:59Z"}}));
    ok(253_370_764_800, 0, json!({"metadata": {"creationTimestamp": "9999-01-01T00:00:00Z"}}));
    ok(FIRST_SECOND, 0, json!({"metadata": {"creationTimestamp": null}}));
    for (seconds, nanos) in [(253_402_300_800, 0), (FIRST_SECOND - 1, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
        let why = Why::BadValue("it is no time of the years 1 to 9999");
        refused(&body("v1", "ConfigMap", &[created(seconds, nanos)]), "metadata.creationTimestamp", why);
    }
    let never = json!({"metadata": {"creationTimestamp": null}});
    check("v1", "ConfigMap", &[message(1, &[bytes(8, "")])], never);
}

#[track_caller]
fn refused(bytes: &[u8], path: &str, why: Why) {
    let text = if path.is_empty() { why.to_string() } else { format!("{path}: {why}") };
    assert_eq!(decode(bytes).unwrap_err().to_string(), text, "{bytes:?}");
}

#[test]
fn nothing_is_dropped_silently() {
    let numbered = |value| body("v1", "ConfigMap", &[bytes(99, value)]);
    assert!(decode(&numbered("")).is_ok(), "an empty field of a newer client says nothing");
    let unknown = |of: &str, number| Why::UnknownField { of: of.to_owned(), number };
    refused(&numbered("x"), "", unknown("io.k8s.api.core.v1.ConfigMap", 99));
    let entry = body("v1", "ConfigMap", &[message(2, &[bytes(1, "k"), bytes(3, "x")])]);
    refused(&entry, "data", unknown("a map's entry", 3));
    let envelope = [MAGIC.to_vec(), int(9, 1)].concat();
    refused(&envelope, "", unknown("runtime.Unknown", 9));
    // `hostnameOverride` came with 1.34: an unknown field, as it is in JSON.
    check("v1", "Pod", &[message(2, &[bytes(41, "h")])], json!({"spec": {"hostnameOverride": null}}));
    check("v1", "Pod", &[message(2, &[bytes(41, "")])], json!({"spec": {}}));
    let kind = decode(&body("example.com/v1", "Widget", &[]));
    assert_eq!(kind, Err(Error::Kind { api_version: "example.com/v1".into(), kind: "Widget".into() }));
}

#[test]
fn hostile_bytes_are_refused() {
    for bytes in [&b""[..], b"{}", b"k8s", b"K8s\0"] {
        assert_eq!(decode(bytes), Err(Error::NotKubernetes));
    }
    for (number, text) in [(3, "gzip"), (4, "application/json")] {
        let body = [MAGIC.to_vec(), bytes(number, text)].concat();
        assert_eq!(decode(&body), Err(Error::Contents(text.into())));
    }
    refused(b"k8s\0\xff", "", Why::Malformed);
    refused(&[MAGIC, &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat(), "", Why::Malformed);
    let pod = |fields: &[Vec<u8>]| body("v1", "Pod", fields);
    refused(&pod(&[vec![0x0b]]), "", Why::Malformed);
    refused(&pod(&[int(1, 5)]), "metadata", Why::WrongType);
    refused(&pod(&[message(1, &[bytes(1, b"\xff")])]), "metadata.name", Why::NotText);
    let label = message(11, &[bytes(1, "k"), int(2, 5)]);
    refused(&pod(&[message(1, &[label])]), "metadata.labels.k", Why::WrongType);
    let containers = [message(2, &[]), message(2, &[int(1, 5)])];
    refused(&pod(&[message(2, &containers)]), "spec.containers[1].name", Why::WrongType);
    let groups = message(2, &[message(14, &[bytes(4, [1, 0x80])])]);
    refused(&pod(&[groups]), "spec.securityContext.supplementalGroups[1]", Why::Malformed);
    let json = message(1, &[message(17, &[message(7, &[bytes(1, "{")])])]);
    refused(&pod(&[json]), "metadata.managedFields[0].fieldsV1", Why::BadValue("it is not JSON"));
    let target = message(2, &[message(1, &[message(4, &[int(1, 2)])])]);
    let why = Why::BadValue("it is neither an integer nor text");
    refused(&body("v1", "Service", &[target]), "spec.ports[0].targetPort", why);
}

#[test]
fn nesting_and_numbers_of_values_are_bounded() {
    let many = bytes(2, [0x12, 0].repeat(MAX_VALUES));
    refused(&body("v1", "Pod", &[many]), &format!("spec.containers[{}]", MAX_VALUES - 1), Why::TooMany);
    let packed = message(2, &[message(14, &[bytes(4, vec![1; MAX_VALUES])])]);
    assert!(decode(&body("v1", "Pod", &[packed])).unwrap_err().to_string().ends_with(&Why::TooMany.to_string()));
    let node = root("v1", "Pod").unwrap();
    let mut decoder = Decoder { values_left: 1 };
    let deep = decoder.fill(&mut Map::new(), node, node.full_name(), &[], MAX_DEPTH + 1);
    assert_eq!(deep, Err(Why::TooDeep.into()));
}

// ---- every field of every kind ----

/// A value with every field set to something that is not zero.
fn sample(node: Node, count: &mut i64) -> Value {
    *count += 1;
    match node.kind() {
        Kind::Object => {
            let mut out = Map::new();
            sample_fields(&mut out, node, node.full_name(), count);
            Value::Object(out)
        }
        Kind::Opaque => json!({"f:a": {"f:b": *count}}),
        Kind::List(item) => json!([sample(item, count), sample(item, count)]),
        Kind::Map(of) => json!({"k": sample(of, count), "": sample(of, count)}),
        Kind::Scalar(scalar) => match scalar {
            Scalar::Text => format!("text {count} ü").into(),
            Scalar::Integer => (*count).into(),
            Scalar::Boolean => true.into(),
            Scalar::Number => (*count as f64 + 0.5).into(),
            Scalar::Bytes => "/wA=".into(),
            Scalar::Quantity => format!("{count}m").into(),
            Scalar::IntOrString if *count % 2 == 0 => (*count).into(),
            Scalar::IntOrString => "50%".into(),
            Scalar::Time => "2001-02-03T04:05:06Z".into(),
            Scalar::MicroTime => "2001-02-03T04:05:06.000007Z".into(),
        },
    }
}

fn sample_fields(out: &mut Map<String, Value>, node: Node, type_name: &str, count: &mut i64) {
    for (_, entry) in fields::all(type_name) {
        match entry {
            Entry::Embedded(inner) => sample_fields(out, node, inner, count),
            Entry::Field { name, .. } => {
                let Lookup::Known(child, _) = node.field(name) else { panic!("{type_name}.{name}") };
                out.insert((*name).to_owned(), sample(child, count));
            }
            Entry::Newer(_) => {}
        }
    }
}

fn encode_fields(node: Node, type_name: &str, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, entry) in fields::all(type_name) {
        match entry {
            Entry::Embedded(inner) => out.extend(bytes(*number, encode_fields(node, inner, value))),
            Entry::Field { name, .. } => {
                let Lookup::Known(child, _) = node.field(name) else { panic!("{type_name}.{name}") };
                out.extend(encode(*number, child, &value[*name]));
            }
            Entry::Newer(_) => {}
        }
    }
    out
}

fn encode(number: u32, node: Node, value: &Value) -> Vec<u8> {
    let text = || value.as_str().unwrap();
    match node.kind() {
        Kind::Object => bytes(number, encode_fields(node, node.full_name(), value)),
        Kind::Opaque => message(number, &[bytes(1, value.to_string())]),
        Kind::List(item) => value.as_array().unwrap().iter().flat_map(|v| encode(number, item, v)).collect(),
        Kind::Map(of) => {
            let entry = |(key, v): (&String, &Value)| {
                let value = match of.kind() {
                    Kind::List(_) => bytes(2, encode(1, of, v)),
                    _ => encode(2, of, v),
                };
                message(number, &[bytes(1, key), value])
            };
            value.as_object().unwrap().iter().flat_map(entry).collect()
        }
        Kind::Scalar(scalar) => match scalar {
            Scalar::Text => bytes(number, text()),
            Scalar::Integer => int(number, value.as_i64().unwrap()),
            Scalar::Boolean => int(number, 1),
            Scalar::Number => {
                [varint(u64::from(number) << 3 | 1), value.as_f64().unwrap().to_le_bytes().to_vec()].concat()
            }
            Scalar::Bytes => bytes(number, BASE64_STANDARD.decode(text()).unwrap()),
            Scalar::Quantity => message(number, &[bytes(1, text())]),
            Scalar::IntOrString if value.is_string() => message(number, &[int(1, 1), int(2, 0), bytes(3, text())]),
            Scalar::IntOrString => message(number, &[int(1, 0), int(2, value.as_i64().unwrap()), bytes(3, "")]),
            Scalar::Time | Scalar::MicroTime => {
                let time: Timestamp = text().parse().unwrap();
                message(number, &[int(1, time.as_second()), int(2, time.subsec_nanosecond().into())])
            }
        },
    }
}

/// Every kind with every field set, and its encoding.
fn samples() -> Vec<(Value, Vec<u8>)> {
    let kinds = ROOTS.iter().map(|r| (r.group, r.version, r.kind)).chain([("", "v1", "DeleteOptions")]);
    kinds
        .map(|(group, version, kind)| {
            let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            let node = root(&api_version, kind).unwrap();
            let mut value = sample(node, &mut 0);
            let raw = encode_fields(node, node.full_name(), &value);
            (value["apiVersion"], value["kind"]) = (api_version.as_str().into(), kind.into());
            let encoded = body(&api_version, kind, &[raw]);
            (value, encoded)
        })
        .collect()
}

#[test]
fn every_field_of_every_kind_survives() {
    for (value, encoded) in samples() {
        assert_eq!(decode(&encoded).unwrap(), value);
    }
}

#[test]
fn every_kind_is_what_its_rules_decode() {
    let registry = crate::registry::table::builtin();
    for (value, _) in samples() {
        let (api_version, kind) = (value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap());
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let Some(row) = registry.by_kind(group, version, kind) else { continue };
        let decoded = row.rules.decode(value.clone()).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_eq!(decoded.unknown_fields, Vec::<String>::new(), "{kind}");
    }
}

#[test]
fn damaged_bodies_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let samples = samples();
    for round in 0..4_000 {
        let (_, encoded) = &samples[round % samples.len()];
        let mut damaged = encoded.clone();
        for _ in 0..=random(4) {
            let at = random(damaged.len());
            match random(4) {
                0 => damaged[at] ^= 1 << random(8),
                1 => damaged[at] = random(256) as u8,
                2 => damaged.truncate(at.max(1)),
                _ => damaged.insert(at, random(256) as u8),
            }
        }
        let _ = decode(&damaged);
        let noise: Vec<u8> = (0..random(64)).map(|_| random(256) as u8).collect();
        let _ = decode(&[MAGIC, &noise].concat());
        let kind = ROOTS[round % ROOTS.len()].kind;
        let _ = decode(&body("v1", kind, &[noise]));
    }
    // A body cut anywhere is refused, or means less.
    let (value, encoded) = samples.iter().find(|(value, _)| value["kind"] == "Service").unwrap();
    for end in 0..encoded.len() - [bytes(3, ""), bytes(4, "")].concat().len() {
        assert_ne!(decode(&encoded[..end]).as_ref(), Ok(value));
    }
}

/// Upstream's own encodings of every kind with every field set, if `KUBERNETES_API_DIR` is a checkout of kubernetes/api of the
/// schemas' release.
#[test]
fn upstreams_bodies_mean_what_upstreams_json_says() {
    let Ok(dir) = std::env::var("KUBERNETES_API_DIR") else { return };
    for root in ROOTS {
        let group = if root.group.is_empty() { "core" } else { root.group };
        let read = |ext: &str| {
            let path = format!("{dir}/testdata/HEAD/{group}.{}.{}.{ext}", root.version, root.kind);
            std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
        };
        let json: Value = serde_json::from_slice(&read("json")).unwrap();
        assert_eq!(decode(&read("pb")), Ok(json), "{}", root.kind);
    }
}
