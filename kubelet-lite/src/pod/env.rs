//! Environment variables of a container, and `$(NAME)` expansion (`kubelet_pods.go`: `makeEnvironmentVariables`). Pure: what it
//! needs of the API is fetched before, by name.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container as SpecContainer, EnvVarSource, Pod, ResourceFieldSelector, Secret, Service,
};
use scaleup_api::Quantity;

use super::view;

/// Why a container's environment cannot be made (`CreateContainerConfigError`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EnvError(pub String);

/// ConfigMaps and Secrets by name; `None` is "does not exist".
#[derive(Default)]
pub struct Sources {
    /// ConfigMaps of the pod's namespace.
    pub config_maps: BTreeMap<String, Option<ConfigMap>>,
    /// Secrets of the pod's namespace.
    pub secrets: BTreeMap<String, Option<Secret>>,
}

/// Names of the ConfigMaps and Secrets that a container's environment refers to.
pub fn references(container: &SpecContainer) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for from in container.env_from.as_deref().unwrap_or_default() {
        config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (config_maps, secrets)
}

/// What else the environment may name.
pub struct Context<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The pod's address (`status.podIP`).
    pub pod_ip: &'a str,
    /// The node's address (`status.hostIP`).
    pub host_ip: &'a str,
    /// The node's allocatable amounts, for limits that are not set.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Variables of services.
    pub services: &'a BTreeMap<String, String>,
}

/// The container's variables: `envFrom`, then `env`, then services, later ones winning only where upstream lets them.
pub fn resolve(
    container: &SpecContainer,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<BTreeMap<String, String>, EnvError> {
    let mut vars = BTreeMap::new();
    env_from(container, sources, view::namespace(context.pod), &mut vars)?;
    for env in container.env.as_deref().unwrap_or_default() {
        let value = match (&env.value, &env.value_from) {
            (Some(value), _) if !value.is_empty() => {
                Some(expand(value, |name| vars.get(name).or_else(|| context.services.get(name)).cloned()))
            }
            (_, Some(source)) => value_from(container, source, sources, context)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            vars.insert(env.name.clone(), value);
        }
    }
    for (name, value) in context.services {
        vars.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Ok(vars)
}

fn env_from(
    container: &SpecContainer,
    sources: &Sources,
    namespace: &str,
    vars: &mut BTreeMap<String, String>,
) -> Result<(), EnvError> {
    for from in container.env_from.as_deref().unwrap_or_default() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut add = |name: &str, value: String| vars.insert(format!("{prefix}{name}"), value);
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(Some(found)) => {
                    for (key, value) in found.data.iter().flatten() {
                        add(key, value.clone());
                    }
                }
                _ if reference.optional == Some(true) => {}
                _ => return Err(not_found("configmap", &reference.name)),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(Some(found)) => {
                    for (key, value) in found.data.iter().flatten() {
                        add(key, text(&value.0, key, namespace, &reference.name)?);
                    }
                }
                _ if reference.optional == Some(true) => {}
                _ => return Err(not_found("secret", &reference.name)),
            }
        }
    }
    Ok(())
}

/// `configmap "x" not found`, upstream's text.
pub fn not_found(kind: &str, name: &str) -> EnvError {
    EnvError(format!("{kind} {name:?} not found"))
}

fn text(bytes: &[u8], key: &str, namespace: &str, name: &str) -> Result<String, EnvError> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(EnvError(format!("key {key} of Secret {namespace}/{name} is not text: it cannot be a variable"))),
    }
}

/// `None` is an optional reference to something that is not there: the variable is not set.
fn value_from(
    container: &SpecContainer,
    source: &EnvVarSource,
    sources: &Sources,
    context: &Context<'_>,
) -> Result<Option<String>, EnvError> {
    let namespace = view::namespace(context.pod);
    if let Some(field) = &source.field_ref {
        return field_value(context, &field.field_path).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        let named = resource.container_name.as_deref().filter(|n| !n.is_empty());
        let of = match named {
            Some(name) => {
                view::container(context.pod, name).ok_or_else(|| EnvError(format!("container {name} not found")))?
            }
            None => container,
        };
        return resource_value(of, resource, context.allocatable).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        return match sources.config_maps.get(&reference.name) {
            Some(Some(found)) => match found.data.as_ref().and_then(|d| d.get(&reference.key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(no_key(&reference.key, "ConfigMap", namespace, &reference.name)),
            },
            _ if optional => Ok(None),
            _ => Err(not_found("configmap", &reference.name)),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        return match sources.secrets.get(&reference.name) {
            Some(Some(found)) => match found.data.as_ref().and_then(|d| d.get(&reference.key)) {
                Some(value) => text(&value.0, &reference.key, namespace, &reference.name).map(Some),
                None if optional => Ok(None),
                None => Err(no_key(&reference.key, "Secret", namespace, &reference.name)),
            },
            _ if optional => Ok(None),
            _ => Err(not_found("secret", &reference.name)),
        };
    }
    Ok(None)
}

fn no_key(key: &str, kind: &str, namespace: &str, name: &str) -> EnvError {
    EnvError(format!("couldn't find key {key} in {kind} {namespace}/{name}"))
}

/// A field of the pod (`fieldRef`), for variables and downward API files.
pub fn field_value(context: &Context<'_>, path: &str) -> Result<String, EnvError> {
    let meta = &context.pod.metadata;
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels['") {
        return Ok(meta.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations['") {
        return Ok(meta.annotations.as_ref().and_then(|a| a.get(key)).cloned().unwrap_or_default());
    }
    let spec = view::spec(context.pod);
    Ok(match path {
        "metadata.name" => view::name(context.pod).into(),
        "metadata.namespace" => view::namespace(context.pod).into(),
        "metadata.uid" => view::uid(context.pod).into(),
        "metadata.labels" => formatted(meta.labels.as_ref()),
        "metadata.annotations" => formatted(meta.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => context.host_ip.into(),
        "status.podIP" | "status.podIPs" => context.pod_ip.into(),
        _ => return Err(EnvError(format!("unsupported fieldPath: {path}"))),
    })
}

/// `key="value"` lines in key order (`fieldpath.FormatMap`).
fn formatted(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
}

/// An amount of a container (`resourceFieldRef`), divided and rounded up.
pub fn resource_value(
    container: &SpecContainer,
    reference: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, EnvError> {
    let unsupported = || EnvError(format!("unsupported container resource : {}", reference.resource));
    let (list, name) = reference.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let map = match list {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(unsupported()),
    };
    let own = map.and_then(|m| m.get(name)).and_then(|q| Quantity::try_from(q).ok());
    let amount = match (own, list) {
        (Some(amount), _) => amount,
        (None, "limits") => allocatable.get(name).copied().unwrap_or_default(),
        (None, _) => Quantity::zero(),
    };
    let divisor = reference.divisor.as_ref().and_then(|q| Quantity::try_from(q).ok()).filter(|q| !q.is_zero());
    let value = if name == "cpu" {
        let per = divisor.map_or(1000, |d| d.milli_value()).max(1);
        amount.milli_value().max(0).unsigned_abs().div_ceil(per.unsigned_abs())
    } else {
        let per = divisor.map_or(1, |d| d.value()).max(1);
        amount.value().max(0).unsigned_abs().div_ceil(per.unsigned_abs())
    };
    Ok(value.to_string())
}

/// Expands `$(NAME)`; `$$` is `$`, and what is not defined stays as it is (`third_party/forked/golang/expansion`).
pub fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Variables of the services a pod sees (`envvars.FromServices`): those of its namespace if `links`, and the API's always.
pub fn service_variables<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for service in services {
        let (ns, name) = (service.metadata.namespace.as_deref(), service.metadata.name.as_deref().unwrap_or_default());
        let is_api = ns == Some("default") && name == "kubernetes";
        // The API's own variables must not be shadowed by a namesake elsewhere.
        if is_api || (links && ns == Some(namespace) && name != "kubernetes") {
            add_service(service, name, &mut out);
        }
    }
    out
}

fn add_service(service: &Service, name: &str, out: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let shout = |text: &str| text.replace('-', "_").to_uppercase();
    let prefix = shout(name);
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    out.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for (index, port) in ports.iter().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            out.insert(format!("{prefix}_SERVICE_PORT_{}", shout(port_name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            out.insert(format!("{prefix}_PORT"), url.clone());
        }
        let link = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.insert(link.clone(), url);
        out.insert(format!("{link}_PROTO"), protocol.to_lowercase());
        out.insert(format!("{link}_PORT"), port.port.to_string());
        out.insert(format!("{link}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion_is_upstreams() {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (input, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("a$", "a$"),
            ("$(EMPTY)!", "!"),
            ("$($(A))", "$($(A))"),
            ("é$(A)é", "é1é"),
        ] {
            assert_eq!(expand(input, lookup), want, "{input}");
        }
    }

    fn resolved(container: serde_json::Value, sources: &Sources) -> Result<BTreeMap<String, String>, EnvError> {
        let container: SpecContainer = serde_json::from_value(container).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "web"}},
            "spec": {"nodeName": "node1", "containers": [container]}
        }))
        .unwrap();
        let services = BTreeMap::from([("SVC_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned())]);
        let allocatable = BTreeMap::from([("cpu".to_owned(), Quantity::from_value(4))]);
        let context = Context {
            pod: &pod,
            pod_ip: "10.1.1.1",
            host_ip: "192.168.0.1",
            allocatable: &allocatable,
            services: &services,
        };
        resolve(&view::containers(&pod)[0], sources, &context)
    }

    fn sources() -> Sources {
        let map: ConfigMap = serde_json::from_value(json!({"data": {"k": "v", "x": "from-map"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"pw": "czNjcmV0"}})).unwrap();
        Sources {
            config_maps: BTreeMap::from([("m".into(), Some(map)), ("gone".into(), None)]),
            secrets: BTreeMap::from([("s".into(), Some(secret))]),
        }
    }

    #[test]
    fn variables_come_from_everywhere() {
        let got = resolved(
            json!({"name": "c", "resources": {"limits": {"memory": "64Mi"}},
                "envFrom": [{"configMapRef": {"name": "m"}}, {"prefix": "P_", "secretRef": {"name": "s"}},
                            {"configMapRef": {"name": "gone", "optional": true}}],
                "env": [
                {"name": "x", "value": "own"},
                {"name": "REF", "value": "$(x)/$(SVC_SERVICE_HOST)/$(LATER)"},
                {"name": "LATER", "value": "l"},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
                {"name": "OPT", "valueFrom": {"secretKeyRef": {"name": "s", "key": "none", "optional": true}}},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}
            ]}),
            &sources(),
        )
        .unwrap();
        for (name, want) in [
            ("x", "own"),
            ("k", "v"),
            ("P_pw", "s3cret"),
            ("REF", "own/10.0.0.1/$(LATER)"),
            ("KEY", "v"),
            ("NODE", "node1"),
            ("APP", "web"),
            ("MEM", "64"),
            ("CPU", "4"),
            ("SVC_SERVICE_HOST", "10.0.0.1"),
        ] {
            assert_eq!(got.get(name).map(String::as_str), Some(want), "{name}");
        }
        assert!(!got.contains_key("OPT"));
    }

    #[test]
    fn what_is_missing_is_named_as_upstream_names_it() {
        let check = |env: serde_json::Value, want: &str| {
            let container = json!({"name": "c", "env": [{"name": "E", "valueFrom": env}]});
            assert_eq!(resolved(container, &sources()).unwrap_err().0, want);
        };
        check(json!({"configMapKeyRef": {"name": "gone", "key": "k"}}), "configmap \"gone\" not found");
        check(json!({"secretKeyRef": {"name": "nope", "key": "k"}}), "secret \"nope\" not found");
        check(json!({"configMapKeyRef": {"name": "m", "key": "z"}}), "couldn't find key z in ConfigMap n/m");
        check(json!({"secretKeyRef": {"name": "s", "key": "z"}}), "couldn't find key z in Secret n/s");
    }

    #[test]
    fn services_become_variables() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "my-db", "namespace": "n"},
            "spec": {"clusterIP": "10.0.0.9", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}
        }))
        .unwrap();
        let got = service_variables([&service].into_iter(), "n", true);
        assert_eq!(got["MY_DB_SERVICE_HOST"], "10.0.0.9");
        assert_eq!(got["MY_DB_SERVICE_PORT_SQL"], "5432");
        assert_eq!(got["MY_DB_PORT_5432_TCP_ADDR"], "10.0.0.9");
        assert_eq!(got["MY_DB_PORT"], "tcp://10.0.0.9:5432");
        assert!(service_variables([&service].into_iter(), "n", false).is_empty());
        assert!(service_variables([&service].into_iter(), "other", true).is_empty());
    }
}
