use serde_json::json;

use super::*;

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

fn int(number: u32, value: i64) -> Vec<u8> {
    [varint(u64::from(number) << 3), varint(value.cast_unsigned())].concat()
}

fn bytes(number: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(u64::from(number) << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn message(number: u32, fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(number, fields.concat())
}

fn body(api_version: &str, kind: &str, fields: &[Vec<u8>]) -> Vec<u8> {
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
    check("v1", "Namespace", &[metadata("a"), spec, status], json!({"metadata": {"name": "a"}}));
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
fn nothing_is_dropped_silently() {
    let newer = |value| body("v1", "ConfigMap", &[bytes(99, value)]);
    assert!(decode(&newer("")).is_ok(), "an empty field of a newer client says nothing");
    let of = "io.k8s.api.core.v1.ConfigMap".to_owned();
    assert_eq!(decode(&newer("x")), Err(Error::UnknownField { of, number: 99 }));
    let kind = decode(&body("example.com/v1", "Widget", &[]));
    assert_eq!(kind, Err(Error::Kind { api_version: "example.com/v1".into(), kind: "Widget".into() }));
}

#[test]
fn hostile_bytes_are_refused() {
    let refused = |bytes: &[u8], want: Error| assert_eq!(decode(bytes), Err(want), "{bytes:?}");
    let pod = |fields: &[Vec<u8>]| body("v1", "Pod", fields);
    refused(b"", Error::NotKubernetes);
    refused(b"{}", Error::NotKubernetes);
    refused(b"k8s\0\xff", Error::Malformed);
    refused(&[MAGIC, &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat(), Error::Malformed);
    refused(&pod(&[vec![0x0b]]), Error::Malformed);
    refused(&pod(&[vec![0x00, 0x01]]), Error::Malformed);
    refused(&pod(&[vec![0x08; 11]]), Error::WrongType("metadata".into()));
    refused(&pod(&[int(1, 5)]), Error::WrongType("metadata".into()));
    refused(&pod(&[message(1, &[bytes(1, b"\xff")])]), Error::BadValue("name".into()));
    refused(&pod(&[message(1, &[message(8, &[int(1, i64::MAX)])])]), Error::BadValue("creationTimestamp".into()));
    let json = message(1, &[message(17, &[message(7, &[bytes(1, "{")])])]);
    refused(&pod(&[json]), Error::BadValue("fieldsV1".into()));
    let zipped = [MAGIC.to_vec(), bytes(3, "gzip")].concat();
    refused(&zipped, Error::Contents("gzip".into()));
    // No prefix of a valid body may panic.
    let whole = pod(&[metadata("a"), message(2, &[message(2, &[bytes(1, "c"), bytes(2, "i")])])]);
    for end in 0..whole.len() {
        let _ = decode(&whole[..end]);
    }
}
