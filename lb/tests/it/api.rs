//! The role as a Kubernetes client, against an API that is a function in this process: what it watches takes effect,
//! what it finds out is written back, and it lives through the API being away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response};
use parking_lot::Mutex;
use scaleup_lb::Config;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::*;

type Body = BoxBody<Bytes, std::io::Error>;

/// Lists, open watches and what was written.
#[derive(Default)]
struct Fake {
    away: bool,
    /// Kinds that the API server does not know.
    unserved: Vec<&'static str>,
    /// Of the last write.
    revision: u64,
    lists: BTreeMap<String, Vec<Value>>,
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    patches: Vec<(String, Value)>,
    events: Vec<Value>,
}

#[derive(Clone, Default)]
struct Api(Arc<Mutex<Fake>>);

fn reply(status: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

impl Api {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, std::io::Error>(api.handle(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn handle(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let path = head.uri.path().to_owned();
        let mut fake = self.0.lock();
        if fake.away {
            return reply(
                503,
                &json!({"kind": "Status", "code": 503, "message": "away", "reason": "ServiceUnavailable"}),
            );
        }
        let query = format!("{}&", head.uri.query().unwrap_or_default());
        let plural = path.rsplit('/').next().unwrap().to_owned();
        if fake.unserved.contains(&plural.as_str()) {
            return reply(
                404,
                &json!({"kind": "Status", "code": 404, "message": "no such resource", "reason": "NotFound"}),
            );
        }
        match head.method.as_str() {
            // Nothing of the past is kept: a watch that has missed something must list again.
            "GET"
                if query.contains("watch=true") && !query.contains(&format!("resourceVersion={}&", fake.revision)) =>
            {
                let status =
                    json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "x"});
                reply(200, &json!({"type": "ERROR", "object": status}))
            }
            "GET" if query.contains("watch=true") => {
                let (sender, mut receiver) = mpsc::unbounded_channel();
                fake.watches.push((plural, sender));
                let frames = futures::stream::poll_fn(move |cx| {
                    receiver.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
                });
                Response::new(BodyExt::boxed(StreamBody::new(frames)))
            }
            "GET" if plural == "web" => match fake.lists["services"].first() {
                Some(service) => reply(200, service),
                None => reply(404, &json!({"kind": "Status", "code": 404, "reason": "NotFound"})),
            },
            "GET" => {
                let items = fake.lists.get(&plural).cloned().unwrap_or_default();
                reply(
                    200,
                    &json!({"kind": "List", "metadata": {"resourceVersion": fake.revision.to_string()}, "items": items}),
                )
            }
            "PATCH" => {
                let patch: Value = serde_json::from_slice(&body).unwrap();
                // …/PLURAL/NAME/status
                let mut parts = path.rsplit('/').skip(1).map(str::to_owned);
                let (name, plural) = (parts.next().unwrap(), parts.next().unwrap());
                let known = fake.lists[&plural].iter().find(|object| object["metadata"]["name"] == *name);
                let mut object = known.cloned().unwrap();
                fake.patches.push((path.clone(), patch.clone()));
                object["status"] = patch["status"].clone();
                drop(fake);
                self.put(&plural, object.clone());
                reply(200, &object)
            }
            "POST" => {
                let event: Value = serde_json::from_slice(&body).unwrap();
                fake.events.push(event.clone());
                reply(201, &event)
            }
            other => panic!("unexpected {other} {path}"),
        }
    }

    /// Stores an object and tells watchers.
    fn put(&self, plural: &str, mut object: Value) {
        let mut fake = self.0.lock();
        fake.revision += 1;
        object["metadata"]["resourceVersion"] = json!(fake.revision.to_string());
        let list = fake.lists.entry(plural.to_owned()).or_default();
        let name = |object: &Value| object["metadata"]["name"].clone();
        list.retain(|known| name(known) != name(&object));
        list.push(object.clone());
        drop(fake);
        self.send(plural, "MODIFIED", &object);
    }

    fn send(&self, plural: &str, kind: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        let fake = self.0.lock();
        for (_, watch) in fake.watches.iter().filter(|(watched, _)| watched == plural) {
            let _ = watch.send(line.clone());
        }
    }

    async fn until(&self, what: &str, condition: impl Fn(&Fake) -> bool) {
        let wait = async {
            while !condition(&self.0.lock()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not happen"));
    }
}

fn service(status: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": SERVICE_PORT}]},
        "status": status,
    })
}

fn slice(endpoints: &[SocketAddr]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": endpoints.first().map_or(1, SocketAddr::port)}],
        "endpoints": endpoints.iter().map(|e| json!({"addresses": [e.ip().to_string()]})).collect::<Vec<_>>(),
    })
}

fn config() -> Config {
    let mut config = Config::new("n1");
    config.bind_address = own_ip().into();
    config.advertise_ip = "192.0.2.10".parse().unwrap();
    config.threads = Some(2);
    config.enable_nftables = false;
    config.enable_dns = false;
    config
}

fn run(api: &Api, config: Config) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let lb = scaleup_lb::build(config, &mut prometheus_client::registry::Registry::default());
    let (client, shutdown) = (api.client(), CancellationToken::new());
    let token = shutdown.clone();
    (shutdown, tokio::spawn(async move { lb.run(client, token).await.unwrap() }))
}

async fn connected(addr: SocketAddr) -> Client {
    let wait = async {
        while TcpStream::connect(addr).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the listener opens");
    Client::connect(addr).await
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_become_traffic_and_an_address_in_status() {
    let [first, second] = endpoints::<2>().await;
    let api = Api::default();
    // The API is away when the role starts.
    api.0.lock().away = true;
    let config = config();
    let addr = SocketAddr::new(config.bind_address, SERVICE_PORT);
    let (shutdown, running) = run(&api, config);
    tokio::time::sleep(Duration::from_millis(100)).await;
    api.put("services", service(json!({})));
    api.put("endpointslices", slice(&[first.addr]));
    {
        // An API server without the kinds of the Gateway API and ours.
        let mut fake = api.0.lock();
        fake.unserved = vec!["gateways", "gatewayclasses", "httproutes", "referencegrants", "trafficpolicies"];
        fake.away = false;
    }

    let mut client = connected(addr).await;
    assert_eq!(client.get("/").await.1, "e0");
    api.until("the status patch", |fake| !fake.patches.is_empty()).await;
    let (path, patch) = api.0.lock().patches[0].clone();
    assert_eq!(path, "/api/v1/namespaces/shop/services/web/status");
    let expected = json!({"metadata": {"resourceVersion": "1"},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}]}}});
    assert_eq!(patch, expected);

    // A changed slice reaches the next requests; how soon is for benchmarks to say.
    api.put("endpointslices", slice(&[second.addr]));
    let wait = async {
        while client.get("/").await.1 != "e1" {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the change takes effect");

    // While the API is away, and its watches are cut, traffic goes on.
    let watches = {
        let mut fake = api.0.lock();
        fake.away = true;
        std::mem::take(&mut fake.watches)
    };
    drop(watches);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(client.get("/").await.1, "e1");
    api.put("endpointslices", slice(&[first.addr]));
    api.0.lock().away = false;
    let wait = async {
        while client.get("/").await.1 != "e0" {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the role has caught up");
    assert_eq!(api.0.lock().patches.len(), 1, "the status is written once");

    // A Service that is no load balancer any more loses the address.
    let mut plain = service(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}, {"ip": "198.51.100.7"}]}}));
    plain["spec"]["type"] = json!("ClusterIP");
    api.put("services", plain);
    api.until("the address is taken back", |fake| fake.patches.len() == 2).await;
    assert_eq!(api.0.lock().patches[1].1["status"]["loadBalancer"]["ingress"], json!([{"ip": "198.51.100.7"}]));
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_told_once_and_taken_when_free() {
    let [endpoint] = endpoints::<1>().await;
    let api = Api::default();
    api.put("services", service(json!({})));
    api.put("endpointslices", slice(&[endpoint.addr]));
    let config = config();
    let addr = SocketAddr::new(config.bind_address, SERVICE_PORT);
    let occupant = std::net::TcpListener::bind(addr).unwrap();
    let (shutdown, running) = run(&api, config);
    api.until("the event", |fake| !fake.events.is_empty()).await;
    let event = api.0.lock().events[0].clone();
    assert_eq!(event["reason"], "PortConflict");
    assert_eq!(event["regarding"]["name"], "web");
    assert_eq!(event["type"], "Warning");
    assert!(event["note"].as_str().unwrap().starts_with(&format!("Port {SERVICE_PORT} on ")), "{event}");
    assert!(api.0.lock().patches.is_empty(), "no address while the port is not ours");
    drop(occupant);
    api.until("the status patch", |fake| !fake.patches.is_empty()).await;
    assert_eq!(connected(addr).await.get("/").await.1, "e0");
    assert_eq!(api.0.lock().events.len(), 1, "told once");
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_are_left_out_are_told_of() {
    use scaleup_lb::policy::{HealthCheck, Probe, ServicePolicy};
    let [good] = endpoints::<1>().await;
    let dead = dead();
    let api = Api::default();
    api.put("services", service(json!({})));
    api.put("endpointslices", slice(&[good.addr]));
    let lb = scaleup_lb::build(config(), &mut prometheus_client::registry::Registry::default());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn({
        let (lb, client, shutdown) = (lb.clone(), api.client(), shutdown.clone());
        async move { lb.run(client, shutdown).await.unwrap() }
    });
    let check = HealthCheck {
        probe: Probe::Tcp,
        port: None,
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        healthy_threshold: 1,
        unhealthy_threshold: 1,
    };
    // As the compiler of policies would; published again because what the API knows may come in between.
    let mut snapshot = snapshot("http", &[good.addr, dead], json!({}));
    let plan = Arc::make_mut(snapshot.services.get_mut(&key()).unwrap());
    plan.ports[0].policy = Arc::new(ServicePolicy { health_check: Some(check), ..ServicePolicy::default() });
    let told = async {
        while !api.0.lock().events.iter().any(|event| event["reason"] == "EndpointsLeftOut") {
            lb.publish(snapshot.clone());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("an event");
    let events = api.0.lock().events.clone();
    let event = events.iter().find(|event| event["reason"] == "EndpointsLeftOut").unwrap();
    assert_eq!(event["note"], format!("Endpoints get no traffic: {dead} (fails its health check)."));
    assert_eq!((&event["type"], &event["regarding"]["name"]), (&json!("Warning"), &json!("web")));
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ingresses_and_gateways_are_served_and_say_so() {
    let [endpoint] = endpoints::<1>().await;
    let api = Api::default();
    api.put(
        "ingressclasses",
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "scaleup"},
        "spec": {"controller": "scaleup.dev/ingress"}}),
    );
    api.put(
        "gatewayclasses",
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "scaleup"},
        "spec": {"controllerName": "scaleup.dev/gateway"}}),
    );
    let mut plain = service(json!({}));
    plain["spec"]["type"] = json!("ClusterIP");
    api.put("services", plain);
    api.put("endpointslices", slice(&[endpoint.addr]));
    api.put("ingresses", json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i", "namespace": "shop", "uid": "u2"},
        "spec": {"ingressClassName": "scaleup", "tls": [{"hosts": ["web"], "secretName": "gone"}], "rules": [{"host": "web", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"name": "http"}}}}]}}]}}));
    let mut config = config();
    (config.http_port, config.https_port) = (8380, 8343);
    let address = config.bind_address;
    let (shutdown, running) = run(&api, config);
    connected(SocketAddr::new(address, 8380)).await;
    let patched = |fake: &Fake, suffix: &str| {
        fake.patches.iter().rev().find(|(path, _)| path.ends_with(suffix)).map(|(_, patch)| patch.clone())
    };
    api.until("the Ingress has an address", |fake| patched(fake, "/ingresses/i/status").is_some()).await;
    api.until("the event", |fake| !fake.events.is_empty()).await;
    let event = api.0.lock().events[0].clone();
    assert_eq!((&event["reason"], &event["regarding"]["kind"]), (&json!("InvalidCertificateRef"), &json!("Ingress")));

    api.put("gateways", json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "g", "namespace": "shop", "generation": 1},
        "spec": {"gatewayClassName": "scaleup", "listeners": [{"name": "l", "port": 8381, "protocol": "HTTP"}]}}));
    api.put("httproutes", json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r", "namespace": "shop"},
        "spec": {"parentRefs": [{"name": "g"}], "rules": [{"backendRefs": [{"name": "web", "port": SERVICE_PORT}]}]}}));
    connected(SocketAddr::new(address, 8381)).await;
    let programmed = |fake: &Fake| {
        let patch = patched(fake, "/gateways/g/status")?;
        let listener = &patch["status"]["listeners"][0];
        let fine =
            listener["conditions"].as_array()?.iter().any(|c| c["type"] == "Programmed" && c["status"] == "True");
        (fine && listener["attachedRoutes"] == 1 && patch["status"]["addresses"][0]["value"] == "192.0.2.10")
            .then_some(())
    };
    api.until("the Gateway is programmed", |fake| programmed(fake).is_some()).await;
    let accepted = |fake: &Fake| {
        let conditions = &patched(fake, "/httproutes/r/status")?["status"]["parents"][0]["conditions"];
        conditions.as_array()?.iter().all(|c| c["status"] == "True").then_some(())
    };
    api.until("the route is accepted", |fake| accepted(fake).is_some()).await;
    // Nobody writes what is there already.
    let written = api.0.lock().patches.len();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(api.0.lock().patches.len() <= written + 2, "statuses settle: {:#?}", api.0.lock().patches);
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
}
