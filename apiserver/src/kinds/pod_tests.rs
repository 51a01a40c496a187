//! Pods: defaults, refusals, and what an update may change.

use serde_json::json;

use super::super::field::test::*;
use super::*;
use crate::registry::{AnyRules, Typed};

fn pod(spec: &str) -> String {
    format!("{{metadata: {{name: a, labels: {{app: web}}}}, spec: {spec}}}")
}

#[test]
fn defaults_are_upstreams() {
    let stored = create(
        PodRules,
        "
metadata: {name: a}
spec:
  serviceAccountName: robot
  volumes:
  - {name: bare}
  - {name: config, configMap: {name: c}}
  - {name: secret, secret: {secretName: s}}
  - {name: host, hostPath: {path: /tmp}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: token, projected: {sources: [{serviceAccountToken: {path: token}}]}}
  containers:
  - name: web
    image: nginx
    ports: [{containerPort: 80}]
    env:
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    resources: {limits: {cpu: 1000m, memory: 1024Mi}}
    livenessProbe: {httpGet: {port: 80}}
    readinessProbe: {tcpSocket: {port: http}, periodSeconds: 5}
    lifecycle: {preStop: {httpGet: {port: 80}}}
",
    )
    .expect("valid");
    contains(
        &stored,
        &json!({
            "spec": {
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
                "serviceAccount": "robot", "serviceAccountName": "robot",
                "volumes": [
                    {"emptyDir": {}}, {"configMap": {"defaultMode": 420}}, {"secret": {"defaultMode": 420}},
                    {"hostPath": {"type": ""}},
                    {"downwardAPI": {"defaultMode": 420, "items": [{"fieldRef": {"apiVersion": "v1"}}]}},
                    {"projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"expirationSeconds": 3600}}]}},
                ],
                "containers": [{
                    "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File", "ports": [{"protocol": "TCP"}],
                    "env": [
                        {"valueFrom": {"fieldRef": {"apiVersion": "v1"}}},
                        {"valueFrom": {"resourceFieldRef": {"divisor": "0"}}},
                    ],
                    "resources": {
                        "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"},
                    },
                    "livenessProbe": {
                        "httpGet": {"path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                        "successThreshold": 1, "failureThreshold": 3,
                    },
                    "readinessProbe": {"periodSeconds": 5, "failureThreshold": 3},
                    "lifecycle": {"preStop": {"httpGet": {"path": "/", "scheme": "HTTP"}}},
                }],
            },
            "status": {"phase": "Pending", "qosClass": "Guaranteed"},
        }),
    );
    let again = Typed(PodRules).decode(stored.clone()).expect("decodes").object;
    assert_eq!(again, stored, "defaulting is idempotent");
}

#[test]
fn host_network_fills_host_ports() {
    let text = pod("{hostNetwork: true, containers: [{name: a, image: b, ports: [{containerPort: 80}]}]}");
    let stored = create(PodRules, &text).expect("valid");
    contains(&stored, &json!({"spec": {"containers": [{"ports": [{"hostPort": 80}]}]}}));
    let get = |path: &str| SELECTABLE.iter().find(|f| f.path == path).map(|f| (f.get)(&stored));
    assert_eq!(get("spec.hostNetwork").as_deref(), Some("true"));
    assert_eq!(get("status.phase").as_deref(), Some("Pending"));
    assert_eq!(get("spec.nodeName").as_deref(), Some(""));
    refused(
        PodRules,
        &pod("{hostNetwork: true, containers: [{name: a, image: b, ports: [{containerPort: 80, hostPort: 81}]}]}"),
        &[
            "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
        ],
    );
}

#[test]
fn gates_and_label_keys_are_prepared() {
    let stored = create(
        PodRules,
        &pod("{schedulingGates: [{name: example.com/wait}], containers: [{name: a, image: b}], affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {}, matchLabelKeys: [app]}]}}}"),
    )
    .expect("valid");
    contains(
        &stored,
        &json!({
            "status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]},
            "spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}},
            ]}}},
        }),
    );
}

/// One mistake in an otherwise good pod; `{}` in the container's place keeps it good.
#[track_caller]
fn bad_spec(extra: &str, expected: &[&str]) {
    let text = pod(&format!("{{containers: [{{name: a, image: b}}], {extra}}}"));
    if expected.is_empty() {
        assert_eq!(create(PodRules, &text).err(), None, "{extra}");
    } else {
        refused(PodRules, &text, expected);
    }
}

#[track_caller]
fn bad_container(extra: &str, expected: &[&str]) {
    let text = pod(&format!("{{volumes: [{{name: v}}], containers: [{{name: a, image: b, {extra}}}]}}"));
    if expected.is_empty() {
        assert_eq!(create(PodRules, &text).err(), None, "{extra}");
    } else {
        refused(PodRules, &text, expected);
    }
}

#[test]
fn spec_fields() {
    bad_spec("restartPolicy: Never, dnsPolicy: Default, hostname: h, subdomain: s, activeDeadlineSeconds: 5", &[]);
    bad_spec(
        "restartPolicy: Sometimes, dnsPolicy: Maybe",
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.dnsPolicy: Unsupported value: \"Maybe\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \"Default\", \"None\"",
        ],
    );
    bad_spec(
        "activeDeadlineSeconds: 0",
        &["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"],
    );
    bad_spec("dnsPolicy: None", &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]);
    bad_spec("dnsPolicy: None, dnsConfig: {nameservers: [10.0.0.1], searches: [a.b.], options: [{name: ndots}]}", &[]);
    bad_spec(
        "dnsConfig: {nameservers: [a], options: [{value: '1'}]}",
        &[
            "spec.dnsConfig.nameservers[0]: Invalid value: \"a\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "spec.dnsConfig.options[0]: Required value: must not be empty",
        ],
    );
    bad_spec(
        "hostAliases: [{ip: x, hostnames: [a.b]}]",
        &[
            "spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
    bad_spec(
        "nodeName: n, schedulingGates: [{name: a.b/c}, {name: a.b/c}]",
        &[
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
            "spec.schedulingGates[1]: Duplicate value: \"a.b/c\"",
        ],
    );
    bad_spec(
        "securityContext: {runAsUser: 1000, fsGroup: 1, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}",
        &[],
    );
    bad_spec(
        "securityContext: {runAsUser: -1, seccompProfile: {type: Localhost}, sysctls: [{name: 'a b', value: c}]}",
        &[
            "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
            "spec.securityContext.sysctls: Forbidden: sysctls are not supported yet; set them on the node",
            "spec.securityContext.sysctls[0].name: Invalid value: \"a b\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
        ],
    );
    refused(PodRules, "{metadata: {name: a}}", &["spec.containers: Required value"]);
}

#[test]
fn placement() {
    bad_spec("tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 3}]", &[]);
    bad_spec(
        "tolerations: [{value: b}, {key: a, operator: Exists, value: b, tolerationSeconds: 3}, {key: a, operator: Like, effect: Run}]",
        &[
            "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            "spec.tolerations[1].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            "spec.tolerations[1].operator: Invalid value: \"b\": value must be empty when `operator` is 'Exists'",
            "spec.tolerations[2].operator: Unsupported value: \"Like\": supported values: \"Equal\", \"Exists\"",
            "spec.tolerations[2].effect: Unsupported value: \"Run\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ],
    );
    bad_spec(
        "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Gt, values: ['1', '2']}], matchFields: [{key: spec.x, operator: In, values: [b]}]}]}, preferredDuringSchedulingIgnoredDuringExecution: [{weight: 0, preference: {}}]}}",
        &[
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'",
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].key: Invalid value: \"spec.x\": not a valid field selector key",
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100",
        ],
    );
    bad_spec(
        "topologySpreadConstraints: [{maxSkew: 0, topologyKey: '', whenUnsatisfiable: Wait, minDomains: 1}]",
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Wait\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
            "spec.topologySpreadConstraints[0].minDomains: Invalid value: 1: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not Wait",
        ],
    );
}

#[test]
fn container_fields() {
    bad_container("volumeMounts: [{name: v, mountPath: /v, subPath: x}], stdin: true, tty: true", &[]);
    bad_container(
        "volumeMounts: [{name: w, mountPath: /v}, {name: v, mountPath: /v, subPath: ../x}]",
        &[
            "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique",
            "spec.containers[0].volumeMounts.subPath: Invalid value: \"../x\": must not contain '..'",
        ],
    );
    bad_container(
        "imagePullPolicy: Now, terminationMessagePolicy: Log, restartPolicy: Always",
        &[
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Now\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            "spec.containers[0].terminationMessagePolicy: Unsupported value: \"Log\": supported values: \"File\", \"FallbackToLogsOnError\"",
            "spec.containers[0].restartPolicy: Forbidden: may not be set for non-init containers",
        ],
    );
    bad_container(
        "ports: [{containerPort: 0}, {containerPort: 70000, name: HTTP, protocol: ICMP}, {containerPort: 1, hostPort: 5}, {containerPort: 2, hostPort: 5}]",
        &[
            "spec.containers[0].ports[0].containerPort: Required value",
            "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[1].name: Invalid value: \"HTTP\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            "spec.containers[0].ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "spec.containers[0].ports[3].hostPort: Duplicate value: \"TCP//5\"",
        ],
    );
    bad_container(
        "securityContext: {privileged: true, allowPrivilegeEscalation: false, runAsGroup: -5}",
        &[
            "spec.containers[0].securityContext.runAsGroup: Invalid value: -5: must be between 0 and 2147483647, inclusive",
            "spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true,\"runAsGroup\":-5}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ],
    );
    refused(
        PodRules,
        &pod(
            "{containers: [{name: A_}, {name: b, image: ' c'}], initContainers: [{name: b, image: d, livenessProbe: {exec: {command: [x]}}}]}",
        ),
        &[
            &format!(
                "spec.containers[0].name: Invalid value: \"A_\": {}",
                scaleup_api::names::dns1123_label("A_").expect_err("bad")
            ),
            "spec.containers[0].image: Required value",
            "spec.containers[1].image: Invalid value: \" c\": must not have leading or trailing whitespace",
            "spec.initContainers[0].name: Duplicate value: \"b\"",
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ],
    );
}

#[test]
fn environment() {
    bad_container("env: [{name: A, value: b}, {name: a.b-c}], envFrom: [{configMapRef: {name: c}, prefix: P_}]", &[]);
    bad_container("env: [{name: A, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['a/b']\"}}}]", &[]);
    bad_container(
        "env: [{name: ''}, {name: A=B}, {name: C, valueFrom: {}}, {name: D, value: x, valueFrom: {secretKeyRef: {name: s}}}, {name: E, valueFrom: {fieldRef: {fieldPath: spec.x}}}]",
        &[
            "spec.containers[0].env[0].name: Required value",
            "spec.containers[0].env[1].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            "spec.containers[0].env[3].valueFrom.secretKeyRef.key: Required value",
            "spec.containers[0].env[3].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            "spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.x\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
        ],
    );
    bad_container(
        "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 2m}}}, {name: B, valueFrom: {resourceFieldRef: {resource: limits.gpu}}}], envFrom: [{}]",
        &[
            "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource",
            "spec.containers[0].env[1].valueFrom.resourceFieldRef.resource: Unsupported value: \"limits.gpu\": supported values: \"limits.cpu\", \"limits.ephemeral-storage\", \"limits.memory\", \"requests.cpu\", \"requests.ephemeral-storage\", \"requests.memory\"",
            "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ],
    );
}

#[test]
fn probes_and_hooks() {
    bad_container("startupProbe: {exec: {command: [x]}}, lifecycle: {preStop: {sleep: {seconds: 5}}}", &[]);
    bad_container(
        "livenessProbe: {successThreshold: 2, periodSeconds: -1, httpGet: {port: 0, scheme: FTP, httpHeaders: [{name: 'a b', value: c}]}}",
        &[
            "spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.containers[0].livenessProbe.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"",
            "spec.containers[0].livenessProbe.httpGet.httpHeaders: Invalid value: \"a b\": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
            "spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ],
    );
    bad_container(
        "readinessProbe: {terminationGracePeriodSeconds: 1, exec: {}, tcpSocket: {port: 1}}, startupProbe: {}",
        &[
            "spec.containers[0].readinessProbe.exec.command: Required value",
            "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes",
            "spec.containers[0].startupProbe: Required value: must specify a handler type",
        ],
    );
    bad_container(
        "lifecycle: {preStop: {sleep: {seconds: 31}}}",
        &[
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
        ],
    );
}

#[test]
fn volumes() {
    bad_spec(
        "volumes: [{name: a, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: b, projected: {sources: [{configMap: {name: c}}]}}]",
        &[],
    );
    bad_spec(
        "volumes: [{name: a}, {name: a}, {name: B_, hostPath: {path: /a/../b, type: Pipe}}, {name: c, secret: {defaultMode: 512, items: [{key: k, path: /abs}]}}]",
        &[
            "spec.volumes[1].name: Duplicate value: \"a\"",
            &format!(
                "spec.volumes[2].name: Invalid value: \"B_\": {}",
                scaleup_api::names::dns1123_label("B_").expect_err("bad")
            ),
            "spec.volumes[2].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            "spec.volumes[2].hostPath.type: Unsupported value: \"Pipe\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
            "spec.volumes[3].secret.secretName: Required value",
            "spec.volumes[3].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
            "spec.volumes[3].secret.items[0].path: Invalid value: \"/abs\": must be a relative path",
        ],
    );
    bad_spec(
        "volumes: [{name: a, emptyDir: {}, configMap: {name: c}}, {name: b, downwardAPI: {items: [{path: ..x}]}}]",
        &[
            "spec.volumes[0].configMap: Forbidden: may not specify more than 1 volume type",
            "spec.volumes[1].downwardAPI.path: Invalid value: \"..x\": must not start with '..'",
            "spec.volumes[1].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
        ],
    );
    bad_spec(
        "volumes: [{name: a, projected: {sources: [{serviceAccountToken: {path: t, expirationSeconds: 5}}]}}]",
        &[
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
            "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set",
        ],
    );
}

#[test]
fn what_is_not_supported_is_refused_with_a_reason() {
    for (volume, name) in [
        ("persistentVolumeClaim: {claimName: x}", "persistentVolumeClaim"),
        ("ephemeral: {}", "ephemeral"),
        ("csi: {driver: x}", "csi"),
    ] {
        let expected = format!(
            "spec.volumes[0].{name}: Forbidden: persistent volumes are not supported yet; use emptyDir or hostPath"
        );
        bad_spec(&format!("volumes: [{{name: a, {volume}}}]"), &[&expected]);
    }
    let nfs = "spec.volumes[0].nfs: Forbidden: this kind of volume is not supported; use emptyDir or hostPath";
    bad_spec("volumes: [{name: a, nfs: {server: x, path: /}}]", &[nfs]);
    for extra in [
        "resourceClaims: [{name: a}]",
        "resources: {}",
        "runtimeClassName: x",
        "overhead: {cpu: '1'}",
        "hostUsers: false",
        "os: {name: windows}",
        "ephemeralContainers: [{name: x}]",
        "securityContext: {windowsOptions: {}}",
        "securityContext: {seLinuxOptions: {level: x}}",
        "securityContext: {appArmorProfile: {type: Unconfined}}",
        "securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}",
        "securityContext: {supplementalGroupsPolicy: Strict}",
        "setHostnameAsFQDN: true",
    ] {
        let text = pod(&format!("{{containers: [{{name: a, image: b}}], {extra}}}"));
        let errors = create(PodRules, &text).expect_err(extra);
        assert!(errors.iter().all(|e| e.contains(": Forbidden: ")), "{extra}: {errors:?}");
    }
    for extra in [
        "livenessProbe: {grpc: {port: 1}}",
        "volumeDevices: [{name: v, devicePath: /x}]",
        "resources: {claims: [{name: a}]}",
        "securityContext: {windowsOptions: {}}",
        "lifecycle: {postStart: {tcpSocket: {port: 1}}}",
        "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: x}}",
        "volumeMounts: [{name: v, mountPath: /v, mountPropagation: HostToContainer}]",
        "volumeMounts: [{name: v, mountPath: /v, readOnly: true, recursiveReadOnly: Enabled}]",
    ] {
        let text = pod(&format!("{{volumes: [{{name: v}}], containers: [{{name: a, image: b, {extra}}}]}}"));
        let errors = create(PodRules, &text).expect_err(extra);
        assert!(errors.iter().all(|e| e.contains(": Forbidden: ")), "{extra}: {errors:?}");
    }
}

const OLD: &str = "{metadata: {name: a}, spec: {activeDeadlineSeconds: 10, tolerations: [{key: a, operator: Exists, effect: NoExecute}], containers: [{name: a, image: 'b:1', args: [x]}]}}";

#[test]
fn few_fields_may_change() {
    let good = [
        OLD.replace("b:1", "b:2"),
        OLD.replace("Seconds: 10", "Seconds: 5"),
        OLD.replace("[{key: a,", "[{operator: Exists, key: b}, {key: a,"),
        OLD.replace("effect: NoExecute", "effect: NoExecute, tolerationSeconds: 5"),
        OLD.replace("{name: a}, spec", "{name: a, labels: {x: y}}, spec"),
    ];
    for new in good {
        assert_eq!(update(|| PodRules, OLD, &new).err(), None, "{new}");
    }
    let check = |new: String, expected: &[&str]| same_messages(update(|| PodRules, OLD, &new), expected);
    check(
        OLD.replace("args: [x]", "args: [y]").replace("{activeDeadline", "{hostname: h, activeDeadline"),
        &[&format!("spec: Forbidden: {UPDATABLE}\nchanged: spec.containers[0].args[0], spec.hostname")],
    );
    check(
        OLD.replace("args: [x]}", "args: [x]}, {name: c, image: d}"),
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    check(
        OLD.replace("Seconds: 10", "Seconds: 11"),
        &["spec.activeDeadlineSeconds: Invalid value: 11: must be less than or equal to previous value"],
    );
    check(
        OLD.replace("activeDeadlineSeconds: 10, ", ""),
        &["spec.activeDeadlineSeconds: Invalid value: must not update from a positive integer to nil value"],
    );
    check(
        OLD.replace("{key: a, operator: Exists, effect: NoExecute}", ""),
        &["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"],
    );
}

#[test]
fn a_negative_grace_period_may_become_one() {
    let old = pod("{terminationGracePeriodSeconds: -1, containers: [{name: a, image: b}]}");
    assert_eq!(update(|| PodRules, &old, &old.replace("-1", "1")).err(), None);
    assert!(update(|| PodRules, &old, &old.replace("-1", "2")).is_err());
}

#[test]
fn gated_pods_only_get_narrower() {
    let gated = |extra: &str| pod(&format!("{{{extra}, containers: [{{name: a, image: b}}]}}"));
    let old = gated("schedulingGates: [{name: a.b/c}], nodeSelector: {x: y}");
    for new in [
        "schedulingGates: [], nodeSelector: {x: y}",
        "schedulingGates: [{name: a.b/c}], nodeSelector: {x: y, z: w}",
        "schedulingGates: [{name: a.b/c}], nodeSelector: {x: y}, affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}",
    ] {
        assert_eq!(update(|| PodRules, &old, &gated(new)).err(), None, "{new}");
    }
    same_messages(
        update(|| PodRules, &old, &gated("schedulingGates: [{name: d.e/f}], nodeSelector: {x: z}")),
        &[
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'd.e/f'",
            "spec.nodeSelector: Invalid value: {\"x\":\"z\"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        ],
    );
}

#[test]
fn status_updates_are_checked() {
    let text = pod("{restartPolicy: Never, containers: [{name: a, image: b}]}");
    let mut old = create(PodRules, &text).expect("valid");
    old["status"]["containerStatuses"] = json!([{"name": "a", "image": "b", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"terminated": {"exitCode": 1}}}]);
    let cx = RuleContext { subresource: Some("status"), ..cx() };
    let change = |f: &dyn Fn(&mut serde_json::Value)| {
        let mut new = old.clone();
        f(&mut new["status"]);
        let result = Typed(PodRules).update(new, &old, &cx);
        result.map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let kept = change(&|s| {
        s.as_object_mut().map(|s| s.remove("qosClass"));
        s["podIPs"] = json!([{"ip": "10.0.0.1"}]);
        s["hostIP"] = json!("10.0.0.2");
        s["hostIPs"] = json!([{"ip": "10.0.0.2"}]);
    });
    contains(&kept.expect("valid"), &json!({"status": {"qosClass": "BestEffort"}}));
    let result = change(&|s| {
        s["qosClass"] = json!("Guaranteed");
        s["podIPs"] = json!([{"ip": "x"}]);
        s["hostIPs"] = json!([{"ip": "10.0.0.2"}]);
        s["conditions"] = json!([{"type": "a b", "status": "True"}]);
        s["containerStatuses"][0]["state"] = json!({"running": {}});
    });
    same_messages(
        result,
        &[
            &format!(
                "metadata.conditions[0].Type: Invalid value: \"a b\": {}",
                scaleup_api::names::qualified_name("a b").expect_err("bad")
            ),
            "status.qosClass: Invalid value: \"Guaranteed\": field is immutable",
            "status.podIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "status.hostIPs[0].ip: Invalid value: \"10.0.0.2\": must be equal to `hostIP`",
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state",
        ],
    );
}

#[test]
fn grace_periods() {
    let check = |spec: &str, phase: &str, requested: Option<i64>, expected: i64| {
        let mut stored = create(PodRules, &pod(spec)).expect("valid");
        stored["status"]["phase"] = json!(phase);
        assert_eq!(Typed(PodRules).grace_period_s(&stored, requested), Some(expected), "{spec} {phase} {requested:?}");
    };
    let bound = "{nodeName: n1, containers: [{name: a, image: b}]}";
    check(bound, "Running", None, 30);
    check(bound, "Running", Some(5), 5);
    check(bound, "Running", Some(0), 0);
    check(bound, "Running", Some(-1), 1);
    check(bound, "Succeeded", None, 0);
    check("{containers: [{name: a, image: b}]}", "Pending", Some(5), 0);
    check("{nodeName: n1, terminationGracePeriodSeconds: -3, containers: [{name: a, image: b}]}", "Running", None, 1);
}
