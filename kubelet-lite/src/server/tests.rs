//! The kubelet API over real TLS, with the scripted runtime behind it.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::ServerName;
use serde_json::json;

use super::*;
use crate::agent::{Config, Hollow, Known};
use crate::clock::Clock;
use crate::runtime::fake::{FakeRuntime, Script};
use crate::runtime::{ContainerRuntime, ContainerSpec, PodRef, SandboxNetwork, SandboxSpec, StdStream};

struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// Certificate and key of a leaf with that organization.
    fn leaf(&self, organization: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A listening kubelet API with one pod, `ns/p`, whose container `c` ran twice.
async fn serving(authority: &Authority) -> SocketAddr {
    let director = |spec: &ContainerSpec| Script {
        output: vec![(StdStream::Out, format!("run {}\n", spec.attempt)), (StdStream::Err, "two\n".into())],
        ..Script::default()
    };
    let runtime = FakeRuntime::new(Clock::System, Box::new(director));
    let whose = PodRef { uid: "u".into(), name: "p".into(), namespace: "ns".into() };
    let sandbox = SandboxSpec {
        pod: whose.clone(),
        attempt: 0,
        hostname: "p".into(),
        network: SandboxNetwork::Host,
        ports: Vec::new(),
        host_pid: false,
        host_ipc: false,
    };
    runtime.run_sandbox(&sandbox).await.unwrap();
    for attempt in 0..2 {
        let spec = ContainerSpec { pod: whose.clone(), name: "c".into(), attempt, ..ContainerSpec::default() };
        let id = runtime.create(&spec).await.unwrap();
        runtime.start(&id).await.unwrap();
        if attempt == 0 {
            runtime.kill(&id);
        }
    }
    let (cert_pem, key_pem) = authority.leaf("system:nodes");
    let mut config = Config::new("n", [127, 0, 0, 1].into(), "/nonexistent");
    config.hollow = Some(Hollow { cpus: 1, memory_bytes: 1 << 30 });
    config.tls = Some(TlsMaterial { ca_pem: authority.1.clone(), cert_pem, key_pem });
    let (services, _writer) = kube::runtime::reflector::store();
    let client = crate::testing::api::Api::default().client();
    let agent = Arc::new(Agent::new(config, client, Arc::new(runtime), services, Default::default()));
    let pod = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u" } });
    agent.pods.lock().insert("u".into(), Known::new(Arc::new(serde_json::from_value(pod).unwrap())));
    let server = Server::bind(([127, 0, 0, 1], 0).into(), agent).await.unwrap();
    let address = server.address();
    tokio::spawn(server.run(CancellationToken::new()));
    address
}

/// One request; `None` where the connection was refused or cut.
async fn get(
    address: SocketAddr,
    authority: &Authority,
    leaf: Option<(String, String)>,
    path: &str,
) -> Option<(u16, String)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.1.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match leaf {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::IpAddress(address.ip().into()), stream).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let request = http::Request::get(path).header("host", "n").body(Empty::<bytes::Bytes>::new()).unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), sender.send_request(request)).await.unwrap().ok()?;
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.ok()?.to_bytes();
    Some((code, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test]
async fn only_the_api_servers_group_is_answered() {
    let authority = Authority::new();
    let address = serving(&authority).await;
    assert_eq!(get(address, &authority, None, "/pods").await, None, "no certificate");
    assert_eq!(get(address, &authority, Some(authority.leaf("system:nodes")), "/pods").await, None, "another group");
    let stranger = Authority::new();
    assert_eq!(get(address, &authority, Some(stranger.leaf(GROUP)), "/pods").await, None, "another authority");
    let (code, pods) = get(address, &authority, Some(authority.leaf(GROUP)), "/pods").await.unwrap();
    assert_eq!(code, 200);
    assert!(pods.contains("\"name\":\"p\""), "{pods}");
}

#[tokio::test]
async fn logs_and_refusals() {
    let authority = Authority::new();
    let address = serving(&authority).await;
    let check = async |path: &str, want: (u16, &str)| {
        let (code, body) = get(address, &authority, Some(authority.leaf(GROUP)), path).await.unwrap();
        assert_eq!(code, want.0, "{path}: {body}");
        assert!(body.contains(want.1), "{path}: {body}");
    };
    check("/containerLogs/ns/p/c", (200, "run 1\ntwo\n")).await;
    check("/containerLogs/ns/p/c?previous=true", (200, "run 0\ntwo\n")).await;
    check("/containerLogs/ns/p/c?tailLines=x", (400, "tailLines")).await;
    check("/containerLogs/ns/p/other", (404, "has not been started")).await;
    check("/containerLogs/ns/none/c", (404, "not on this node")).await;
    check("/exec/ns/p/c?command=ls&stdout=1", (400, "WebSocket")).await;
    check("/exec/ns/p/c?stdout=1", (400, "at least 1 command")).await;
    check("/attach/ns/p/c", (400, "at least 1 of stdin")).await;
    check("/healthz", (503, "has not been asked yet")).await;
    check("/metrics", (200, "kubelet_running_pods")).await;
    check("/metrics/resource", (200, "container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"p\"}"))
        .await;
}
