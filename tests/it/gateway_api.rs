//! Ingress, the Gateway API and TrafficPolicy as kubectl sees them: names, columns, apply, patch, explain, versions, bad input.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use reqwest::Method;
use scaleup_tests::eventually;
use scaleup_tests::http::Api;
use scaleup_tests::kubectl::Kubectl;
use serde_json::{Value, json};

use crate::{Cx, trials};

/// All tests of this module.
pub fn tests(cx: &Cx) -> Vec<Trial> {
    trials![
        cx,
        "gateway_api",
        kinds_are_known,
        classes_are_there,
        ingresses,
        routes_are_applied_again,
        every_kind_is_written_and_shown,
        versions_are_one_object,
        patches,
        status_is_the_balancers,
        bad_objects,
        namespaces_take_them_along,
    ]
}

const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1";

/// Both generations, each with a namespace of its own.
async fn both(cx: &Cx, name: &str) -> Result<[(Kubectl, String); 2]> {
    let cluster = cx.fake().await?;
    let (new, old) = (cluster.kubectl(), cluster.old_kubectl());
    let namespaces = [format!("{name}-new"), format!("{name}-old")];
    for namespace in &namespaces {
        new.namespace(namespace).await?;
    }
    let [a, b] = namespaces;
    Ok([(new, a), (old, b)])
}

/// A manifest on one line, so that old kubectl does not take it for JSON.
fn yaml(line: &str) -> String {
    format!("---\n{line}\n")
}

/// What `kubectl get` prints: header and first row, each by words.
async fn table(kubectl: &Kubectl, line: &str) -> Result<(Vec<String>, Vec<String>)> {
    let text = kubectl.ok(&format!("get {line}")).await?;
    let mut lines = text.lines().map(|l| l.split_whitespace().map(str::to_owned).collect());
    Ok((lines.next().unwrap_or_default(), lines.next().unwrap_or_default()))
}

async fn kinds_are_known(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    for kubectl in [cluster.kubectl(), cluster.old_kubectl()] {
        let resources = kubectl.ok("api-resources --no-headers").await?;
        for (plural, short, group) in [
            ("ingresses", "ing", "networking.k8s.io/v1"),
            ("ingressclasses", "", "networking.k8s.io/v1"),
            ("gatewayclasses", "gc", "gateway.networking.k8s.io/v1"),
            ("gateways", "gtw", "gateway.networking.k8s.io/v1"),
            ("httproutes", "", "gateway.networking.k8s.io/v1"),
            ("grpcroutes", "", "gateway.networking.k8s.io/v1"),
            ("tlsroutes", "", "gateway.networking.k8s.io/v1"),
            ("tcproutes", "", "gateway.networking.k8s.io/v1alpha2"),
            ("udproutes", "", "gateway.networking.k8s.io/v1alpha2"),
            ("referencegrants", "refgrant", "gateway.networking.k8s.io/v1"),
            ("backendtlspolicies", "btlspolicy", "gateway.networking.k8s.io/v1"),
            ("trafficpolicies", "tp", "traffic.scaleup.dev/v1"),
        ] {
            let found = resources.lines().find(|l| l.split_whitespace().next() == Some(plural));
            let found = found
                .is_some_and(|l| l.contains(group) && l.split_whitespace().any(|w| w == short || short.is_empty()));
            ensure!(found, "{plural} in\n{resources}");
        }
        for (field, says) in [
            ("httproute.spec.rules.matches.path", "PathPrefix"),
            ("gateway.spec.listeners", "hostname"),
            ("ingress.spec.rules.http.paths.pathType", "Prefix"),
            ("trafficpolicy.spec.loadBalancing", "PeakEWMA"),
            ("trafficpolicy.spec.rateLimits", "Tokens per"),
        ] {
            let text = kubectl.ok(&format!("explain {field}")).await?;
            ensure!(text.contains(says), "explain {field}:\n{text}");
        }
        let version = "--api-version=gateway.networking.k8s.io/v1beta1 explain httproute";
        ensure!(kubectl.ok(version).await?.contains("v1beta1"), "{version}");
    }
    let kubectl = cluster.kubectl();
    ensure!(kubectl.ok("explain gateway.spec").await?.contains("-required-"), "required fields are marked");
    let category = kubectl.ok("get gateway-api -A").await?;
    ensure!(category.contains("gatewayclass.gateway.networking.k8s.io/scaleup"), "{category}");
    Ok(())
}

async fn classes_are_there(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    for kubectl in [cluster.kubectl(), cluster.old_kubectl()] {
        let (header, row) = table(&kubectl, "ingressclass scaleup").await?;
        ensure!(header == ["NAME", "CONTROLLER", "PARAMETERS", "AGE"], "{header:?}");
        ensure!(row[..3] == ["scaleup", "scaleup.dev/ingress", "<none>"], "{row:?}");
        let (header, row) = table(&kubectl, "gc scaleup").await?;
        ensure!(header == ["NAME", "CONTROLLER", "ACCEPTED", "AGE"], "{header:?}");
        ensure!(row[..2] == ["scaleup", "scaleup.dev/gateway"], "{row:?}");
        ensure!(kubectl.ok("describe gatewayclass scaleup").await?.contains("scaleup.dev/gateway"), "describe");
    }
    Ok(())
}

const INGRESS: &str = "
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop}
spec:
  tls: [{hosts: [shop.example], secretName: shop-tls}]
  rules:
  - host: shop.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /api, pathType: Exact, backend: {service: {name: api, port: {name: http}}}}
";

async fn ingresses(cx: Cx) -> Result<()> {
    for (kubectl, namespace) in both(&cx, "gw-ing").await? {
        kubectl.apply_in(&namespace, INGRESS).await?;
        let (header, row) = table(&kubectl, &format!("-n {namespace} ing shop")).await?;
        ensure!(header == ["NAME", "CLASS", "HOSTS", "ADDRESS", "PORTS", "AGE"], "{header:?}");
        ensure!(row[..3] == ["shop", "scaleup", "shop.example"] && row.contains(&"443".into()), "{row:?}");
        let described = kubectl.ok(&format!("-n {namespace} describe ingress shop")).await?;
        ensure!(described.contains("shop-tls terminates shop.example") && described.contains("web:80"), "{described}");
        kubectl.apply_in(&namespace, &INGRESS.replace("/api", "/v2")).await?;
        let paths = kubectl
            .ok(&format!("-n {namespace} get ingress shop -o jsonpath={{.spec.rules[0].http.paths[*].path}}"))
            .await?;
        ensure!(paths == "/ /v2", "{paths}");
        // A built-in kind: strategic merge, where the list is replaced whole.
        let patch = r#"{"spec":{"rules":[{"host":"b.example"}]}}"#;
        kubectl.ok(&format!("-n {namespace} patch ingress shop -p {patch}")).await?;
        let object = kubectl.json(&format!("-n {namespace} get ingress shop")).await?;
        ensure!(object["spec"]["rules"] == json!([{"host": "b.example"}]), "{object}");
        ensure!(object["metadata"]["generation"] == 3, "{}", object["metadata"]);
        kubectl.ok(&format!("-n {namespace} delete ingress shop")).await?;
    }
    // Typed creation, which newer kubectl sends as protobuf.
    let kubectl = cx.fake().await?.kubectl();
    kubectl.ok("-n gw-ing-new create ingress made --class=other --rule=a.example/x*=web:8080,tls=cert --default-backend=web:80").await?;
    let made = kubectl.json("-n gw-ing-new get ingress made").await?;
    let path = &made["spec"]["rules"][0]["http"]["paths"][0];
    ensure!(path["pathType"] == "Prefix" && path["backend"]["service"]["port"]["number"] == 8080, "{made}");
    ensure!(made["spec"]["ingressClassName"] == "other" && made["spec"]["tls"][0]["secretName"] == "cert", "{made}");
    Ok(())
}

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: edge}]
  hostnames: [shop.example]
  rules:
  - matches: [{path: {value: /cart}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: cart, port: 80, weight: 3}, {name: cart-next, port: 80}]
    timeouts: {request: 10s}
";

async fn routes_are_applied_again(cx: Cx) -> Result<()> {
    for (kubectl, namespace) in both(&cx, "gw-apply").await? {
        let apply = async |manifest: &str| kubectl.ok_args(&["-n", &namespace, "apply", "-f", "-"], manifest).await;
        ensure!(apply(ROUTE).await?.contains("created"), "created");
        let version = || async {
            kubectl.ok(&format!("-n {namespace} get httproute shop -o jsonpath={{.metadata.resourceVersion}}")).await
        };
        let before = version().await?;
        // kubectl sends lists in which the server filled something in again, as with any custom resource.
        apply(ROUTE).await?;
        ensure!(version().await? == before, "applying again changes nothing");
        let changed = ROUTE.replace("    timeouts: {request: 10s}\n", "").replace("weight: 3", "weight: 5");
        ensure!(apply(&changed).await?.contains("configured"), "configured");
        let route = kubectl.json(&format!("-n {namespace} get httproute shop")).await?;
        let rule = &route["spec"]["rules"][0];
        ensure!(rule.get("timeouts").is_none(), "what the manifest no longer has goes: {rule}");
        ensure!(rule["backendRefs"][0]["weight"] == 5 && rule["backendRefs"][1]["weight"] == 1, "{rule}");
        ensure!(rule["matches"][0]["path"] == json!({"type": "PathPrefix", "value": "/cart"}), "{rule}");
        ensure!(route["spec"]["parentRefs"][0]["kind"] == "Gateway", "{route}");
        ensure!(route["metadata"]["generation"] == 2, "{}", route["metadata"]);
        let (header, row) = table(&kubectl, &format!("-n {namespace} httproutes")).await?;
        ensure!(header == ["NAME", "HOSTNAMES", "AGE"], "{header:?}");
        ensure!(row[..2] == ["shop", r#"["shop.example"]"#], "{row:?}");
        let described = kubectl.ok(&format!("-n {namespace} describe httproute shop")).await?;
        ensure!(described.contains("Replace Prefix Match") && described.contains("cart-next"), "{described}");
        kubectl.ok(&format!("-n {namespace} label httproute shop tier=gold")).await?;
        ensure!(
            kubectl.ok(&format!("-n {namespace} get httproute -l tier=gold -o name")).await?.contains("shop"),
            "by label"
        );
        kubectl.ok(&format!("-n {namespace} delete httproute shop")).await?;
        let gone = kubectl.fails(&format!("-n {namespace} get httproute shop")).await?;
        ensure!(gone.contains("NotFound"), "{gone}");
    }
    Ok(())
}

/// One of each of the other kinds: plural, manifest, header and first cells of its table.
const OBJECTS: &[(&str, &str, &[&str], &[&str])] = &[
    (
        "gateways",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: a}, spec: {gatewayClassName: other, listeners: [{name: http, port: 80, protocol: HTTP}]}}",
        &["NAME", "CLASS", "ADDRESS", "PROGRAMMED", "AGE"],
        &["a", "other", "Unknown"],
    ),
    (
        "grpcroutes",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: a}, spec: {hostnames: [a.example], rules: [{matches: [{method: {service: shop.Cart}}], backendRefs: [{name: cart, port: 80}]}]}}",
        &["NAME", "HOSTNAMES", "AGE"],
        &["a", r#"["a.example"]"#],
    ),
    (
        "tlsroutes",
        "{apiVersion: gateway.networking.k8s.io/v1alpha2, kind: TLSRoute, metadata: {name: a}, spec: {hostnames: [a.example], rules: [{backendRefs: [{name: a, port: 443}]}]}}",
        &["NAME", "AGE"],
        &["a"],
    ),
    (
        "tcproutes",
        "{apiVersion: gateway.networking.k8s.io/v1alpha2, kind: TCPRoute, metadata: {name: a}, spec: {rules: [{backendRefs: [{name: a, port: 5432}]}]}}",
        &["NAME", "AGE"],
        &["a"],
    ),
    (
        "udproutes",
        "{apiVersion: gateway.networking.k8s.io/v1alpha2, kind: UDPRoute, metadata: {name: a}, spec: {rules: [{backendRefs: [{name: a, port: 53}]}]}}",
        &["NAME", "AGE"],
        &["a"],
    ),
    (
        "referencegrants",
        "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: a}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: web}], to: [{group: '', kind: Service}]}}",
        &["NAME", "AGE"],
        &["a"],
    ),
    (
        "backendtlspolicies",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {name: a}, spec: {targetRefs: [{group: '', kind: Service, name: a}], validation: {hostname: a.example, wellKnownCACertificates: System}}}",
        &["NAME", "AGE"],
        &["a"],
    ),
    (
        "trafficpolicies",
        "{apiVersion: traffic.scaleup.dev/v1, kind: TrafficPolicy, metadata: {name: a}, spec: {targetRefs: [{kind: Service, name: web}], loadBalancing: {algorithm: RingHash, hashOn: [{sourceIp: true}]}, rateLimits: [{requests: 100}]}}",
        &["NAME", "TARGETS", "ALGORITHM", "ACCEPTED", "AGE"],
        &["a", "Service/web", "RingHash"],
    ),
];

async fn every_kind_is_written_and_shown(cx: Cx) -> Result<()> {
    for (kubectl, namespace) in both(&cx, "gw-kinds").await? {
        for (plural, manifest, header, cells) in OBJECTS {
            kubectl.apply_in(&namespace, &yaml(manifest)).await?;
            kubectl.apply_in(&namespace, &yaml(manifest)).await?;
            let (got, row) = table(&kubectl, &format!("-n {namespace} {plural}")).await?;
            ensure!(got == *header, "{plural}: {got:?}");
            ensure!(row.starts_with(&cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>()), "{plural}: {row:?}");
            kubectl.ok(&format!("-n {namespace} describe {plural} a")).await?;
            let patch = r#"{"metadata":{"labels":{"x":"y"}}}"#;
            kubectl.ok(&format!("-n {namespace} patch {plural} a --type=merge -p {patch}")).await?;
            let object = kubectl.json(&format!("-n {namespace} get {plural} a")).await?;
            ensure!(object["metadata"]["labels"]["x"] == "y" && object["metadata"]["generation"] == 1, "{object}");
            kubectl.ok(&format!("-n {namespace} delete {plural} a")).await?;
        }
    }
    Ok(())
}

async fn versions_are_one_object(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (api, kubectl) = (cluster.api()?, cluster.kubectl());
    kubectl.namespace("gw-versions").await?;
    kubectl.apply_in("gw-versions", &ROUTE.replace("k8s.io/v1", "k8s.io/v1beta1")).await?;
    let at =
        |version: &str| format!("/apis/gateway.networking.k8s.io/{version}/namespaces/gw-versions/httproutes/shop");
    let (v1, beta) = (api.get(&at("v1")).await?.ok()?, api.get(&at("v1beta1")).await?.ok()?);
    ensure!(v1["apiVersion"] == "gateway.networking.k8s.io/v1", "{v1}");
    ensure!(beta["apiVersion"] == "gateway.networking.k8s.io/v1beta1", "{beta}");
    ensure!(v1["spec"] == beta["spec"] && v1["metadata"]["uid"] == beta["metadata"]["uid"], "{v1}\n{beta}");
    let list = api.get("/apis/gateway.networking.k8s.io/v1beta1/httproutes").await?.ok()?;
    ensure!(list["kind"] == "HTTPRouteList" && list["apiVersion"] == "gateway.networking.k8s.io/v1beta1", "{list}");
    let route = "{apiVersion: gateway.networking.k8s.io/v1, kind: TLSRoute, metadata: {name: t}, spec: {hostnames: [a.example], rules: [{backendRefs: [{name: a, port: 443}]}]}}";
    kubectl.apply_in("gw-versions", &yaml(route)).await?;
    for version in ["v1", "v1alpha2", "v1alpha3"] {
        let api_version = kubectl
            .ok(&format!(
                "-n gw-versions get tlsroutes.{version}.gateway.networking.k8s.io t -o jsonpath={{.apiVersion}}"
            ))
            .await?;
        ensure!(api_version == format!("gateway.networking.k8s.io/{version}"), "{api_version}");
    }
    Ok(())
}

async fn patches(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (api, kubectl) = (cluster.api()?, cluster.kubectl());
    kubectl.namespace("gw-patch").await?;
    kubectl.apply_in("gw-patch", ROUTE).await?;
    let at = format!("{GATEWAY}/namespaces/gw-patch/httproutes/shop");
    let refused = api.patch(&at, "strategic-merge", &json!({"spec": {"hostnames": []}})).await?;
    ensure!(refused.status == 415 && refused.message().contains("merge-patch+json"), "{}", refused.text);
    let merged = api.patch(&at, "merge", &json!({"spec": {"hostnames": ["b.example"]}})).await?.ok()?;
    ensure!(merged["spec"]["hostnames"] == json!(["b.example"]), "{merged}");
    let ops = json!([{"op": "replace", "path": "/spec/rules/0/backendRefs/1/weight", "value": 7}]);
    let patched = api.patch(&at, "json", &ops).await?.ok()?;
    ensure!(patched["spec"]["rules"][0]["backendRefs"][1]["weight"] == 7, "{patched}");
    let protobuf = api.request(Method::POST, &format!("{GATEWAY}/namespaces/gw-patch/httproutes"));
    let protobuf = protobuf.header("content-type", "application/vnd.kubernetes.protobuf").body("k8s\0");
    let answer = api.send(protobuf).await?;
    ensure!(answer.status.is_client_error(), "{}", answer.text);
    let dry = kubectl
        .ok_args(&["-n", "gw-patch", "apply", "--dry-run=server", "-f", "-"], &ROUTE.replace("shop", "dry"))
        .await?;
    ensure!(dry.contains("dry run"), "{dry}");
    ensure!(api.get(&at.replace("shop", "dry")).await?.status == 404, "a dry run writes nothing");
    Ok(())
}

async fn status_is_the_balancers(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (api, kubectl) = (cluster.api()?, cluster.kubectl());
    kubectl.namespace("gw-status").await?;
    // A class that no controller serves, so that nobody else writes.
    let (_, manifest, ..) = OBJECTS[0];
    kubectl.apply_in("gw-status", &yaml(manifest)).await?;
    let at = format!("{GATEWAY}/namespaces/gw-status/gateways/a");
    let gateway = api.get(&at).await?.ok()?;
    let types: Vec<&Value> =
        gateway["status"]["conditions"].as_array().into_iter().flatten().map(|c| &c["reason"]).collect();
    ensure!(types == ["Pending", "Pending"], "{gateway}");
    let mut new = gateway.clone();
    new["spec"]["gatewayClassName"] = json!("x");
    let condition = json!({"type": "Programmed", "status": "True", "reason": "Programmed", "message": "", "lastTransitionTime": "2024-01-01T00:00:00Z", "observedGeneration": 1});
    new["status"] = json!({"addresses": [{"value": "10.0.0.1"}], "conditions": [&condition]});
    let written = api.put(&format!("{at}/status"), &new).await?.ok()?;
    ensure!(written["spec"]["gatewayClassName"] == "other", "only the status is written: {written}");
    ensure!(written["metadata"]["generation"] == 1, "{}", written["metadata"]);
    let (_, row) = table(&kubectl, "-n gw-status gtw").await?;
    ensure!(row[..4] == ["a", "other", "10.0.0.1", "True"], "{row:?}");
    let mut spec_write = written.clone();
    spec_write["status"] = json!({});
    spec_write["spec"]["listeners"][0]["port"] = json!(81);
    let written = api.put(&at, &spec_write).await?.ok()?;
    ensure!(written["status"]["addresses"][0]["value"] == "10.0.0.1", "the status stays: {written}");
    ensure!(written["metadata"]["generation"] == 2, "{}", written["metadata"]);
    let mut odd = condition;
    odd["status"] = json!("Perhaps");
    let bad = api.patch(&format!("{at}/status"), "merge", &json!({"status": {"conditions": [odd]}})).await?;
    ensure!(bad.status == 422, "{}", bad.text);
    Ok(())
}

/// Manifests that are refused, and what the message says.
const BAD: &[(&str, &str)] = &[
    (
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: bad}, spec: {rules: [{matches: [{path: {value: no-slash}}]}]}}",
        "spec.rules[0].matches[0].path.value: Invalid value",
    ),
    (
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: bad}, spec: {hostnames: ['a b'], rules: [{backendRefs: [{name: a}]}]}}",
        "spec.rules[0].backendRefs[0].port: Required value",
    ),
    (
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: bad}, spec: {rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"b\\r\\nc: d\"}]}}]}]}}",
        "must not contain control characters",
    ),
    (
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: bad}, spec: {gatewayClassName: scaleup, listeners: [{name: a, port: 70000, protocol: HTTP}]}}",
        "spec.listeners[0].port: Invalid value: 70000",
    ),
    (
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: bad}, spec: {controllerName: nonsense}}",
        "spec.controllerName: Invalid value",
    ),
    (
        "{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: bad}, spec: {from: [], to: []}}",
        "spec.from: Required value",
    ),
    (
        "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: bad}, spec: {rules: [{host: 10.0.0.1, http: {paths: [{path: a, pathType: Prefix, backend: {}}]}}]}}",
        "spec.rules[0].host: Invalid value",
    ),
    (
        "{apiVersion: traffic.scaleup.dev/v1, kind: TrafficPolicy, metadata: {name: bad}, spec: {targetRefs: [{kind: Pod, name: a}], retries: {attempts: 99}, timeouts: {request: soon}}}",
        "spec.retries.attempts: Invalid value: 99",
    ),
];

async fn bad_objects(cx: Cx) -> Result<()> {
    for (kubectl, namespace) in both(&cx, "gw-bad").await? {
        for (manifest, says) in BAD {
            let outcome = kubectl.run_with(&["-n", &namespace, "apply", "-f", "-"], &yaml(manifest)).await?;
            ensure!(outcome.code != 0 && outcome.stderr.contains(says), "{manifest}\n{outcome:?}");
        }
        let typo = ROUTE.replace("hostnames", "hostname");
        let outcome = kubectl.run_with(&["-n", &namespace, "apply", "-f", "-"], &typo).await?;
        ensure!(outcome.code != 0 && outcome.stderr.contains("hostname"), "{outcome:?}");
    }
    let api: Api = cx.fake().await?.api()?;
    let routes = format!("{GATEWAY}/namespaces/gw-bad-new/httproutes");
    for (body, code) in [
        (
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "b"}, "spec": {"rules": 1}}),
            400,
        ),
        (
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "b"}, "spec": {}}),
            400,
        ),
        (
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "b"}, "spec": {"hostnames": ["*"]}}),
            422,
        ),
        (
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "b"}, "spec": {"rules": [{"backendRefs": [{"name": "a", "port": 99_999_999_999_u64}]}]}}),
            400,
        ),
    ] {
        let answer = api.post(&routes, &body).await?;
        ensure!(answer.status == code, "{body}: {} {}", answer.status, answer.text);
    }
    let objects = api.get(&routes).await?.ok()?;
    ensure!(objects["items"] == json!([]), "nothing was written: {objects}");
    Ok(())
}

async fn namespaces_take_them_along(cx: Cx) -> Result<()> {
    let cluster = cx.fake().await?;
    let (api, kubectl) = (cluster.api()?, cluster.kubectl());
    kubectl.namespace("gw-gone").await?;
    kubectl.apply_in("gw-gone", ROUTE).await?;
    kubectl.apply_in("gw-gone", INGRESS).await?;
    for (_, manifest, ..) in OBJECTS {
        kubectl.apply_in("gw-gone", &yaml(manifest)).await?;
    }
    // An owner of a kind of several versions: its dependants go with it.
    let owner = api.get(&format!("{GATEWAY}/namespaces/gw-gone/gateways/a")).await?.ok()?;
    let reference = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "a", "uid": owner["metadata"]["uid"]});
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [reference]}});
    api.post("/api/v1/namespaces/gw-gone/configmaps", &map).await?.ok()?;
    kubectl.ok("-n gw-gone delete gateway a").await?;
    eventually("the dependant to go", || async {
        Ok((api.get("/api/v1/namespaces/gw-gone/configmaps/owned").await?.status == 404).then_some(()))
    })
    .await?;
    kubectl.ok("delete namespace gw-gone --timeout=60s").await?;
    for (plural, ..) in OBJECTS.iter().filter(|o| o.0 != "trafficpolicies" && !o.1.contains("alpha")) {
        let left = kubectl.ok(&format!("-n gw-gone get {plural} -o name")).await?;
        ensure!(left.trim().is_empty(), "{left}");
    }
    Ok(())
}
