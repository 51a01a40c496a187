//! Probe and hook actions: HTTP, TCP and exec (`pkg/probe`). One attempt each, bounded in time and in bytes read.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container as SpecContainer, ExecAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use crate::runtime::{ContainerRuntime, ExecSpec, Io, PodRef};

/// Output of a command, or body of an answer, that is kept for the message.
const MAX_OUTPUT: usize = 10 * 1024;

/// What an action is done to.
#[derive(Clone)]
pub struct Target {
    /// Runs the container.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Its pod.
    pub pod: PodRef,
    /// Its id.
    pub id: String,
    /// The pod's address.
    pub address: IpAddr,
    /// Its spec, for named ports.
    pub spec: Arc<SpecContainer>,
}

/// An action of a probe or hook.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `exec`
    Exec(ExecAction),
    /// `httpGet`
    Http(HTTPGetAction),
    /// `tcpSocket`
    Tcp(TCPSocketAction),
    /// `sleep`
    Sleep(Duration),
    /// Something the agent cannot do, by name.
    Unsupported(&'static str),
}

/// Why an action failed: upstream's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failed(pub String);

impl Target {
    /// Does it.
    pub async fn run(&self, action: &Action, timeout: Duration) -> Result<(), Failed> {
        match action {
            Action::Exec(exec) => self.exec(exec, timeout).await,
            Action::Http(http) => {
                let url = self.url(http)?;
                let what = format!("Get {:?}", url.text);
                match tokio::time::timeout(timeout, self.http(http, &url)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(Failed(format!(
                        "{what}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                    ))),
                }
            }
            Action::Tcp(tcp) => {
                let host = tcp.host.as_deref().filter(|h| !h.is_empty());
                let address = SocketAddr::new(self.host(host)?, self.port(&tcp.port)?);
                match tokio::time::timeout(timeout, self.runtime.dial(&self.pod, address)).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(dial_failed(address, &error)),
                    Err(_) => Err(Failed(format!("dial tcp {address}: i/o timeout"))),
                }
            }
            Action::Sleep(duration) => {
                tokio::time::sleep(*duration).await;
                Ok(())
            }
            Action::Unsupported(what) => {
                Err(Failed(format!("{what} is not supported; use httpGet, tcpSocket or exec")))
            }
        }
    }

    async fn exec(&self, exec: &ExecAction, timeout: Duration) -> Result<(), Failed> {
        let command = exec.command.clone().unwrap_or_default();
        let spec = ExecSpec { command: command.clone(), stdout: true, stderr: true, ..ExecSpec::default() };
        let attempt = async {
            let mut session = self.runtime.exec(&self.id, &spec).await.map_err(|e| Failed(e.to_string()))?;
            let mut output = Vec::new();
            while let Some(piece) = session.output.next().await {
                let (_, bytes) = piece.map_err(|e| Failed(e.to_string()))?;
                let room = MAX_OUTPUT - output.len().min(MAX_OUTPUT);
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            match session.control.exit_code().await {
                Ok(Some(0)) => Ok(()),
                Ok(_) => Err(Failed(String::from_utf8_lossy(&output).into_owned())),
                Err(error) => Err(Failed(error.to_string())),
            }
        };
        match tokio::time::timeout(timeout, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failed(format!("command {:?} timed out", command.join(" ")))),
        }
    }

    fn host(&self, named: Option<&str>) -> Result<IpAddr, Failed> {
        match named {
            None => Ok(self.address),
            Some("localhost") => Ok(IpAddr::from([127, 0, 0, 1])),
            Some(text) => text.parse().map_err(|_| Failed(format!("host {text:?} is not an address"))),
        }
    }

    fn port(&self, port: &IntOrString) -> Result<u16, Failed> {
        let number = match port {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => {
                let named = self.spec.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
                named.and_then(|p| u16::try_from(p.container_port).ok()).or_else(|| name.parse().ok())
            }
        };
        number.filter(|n| *n > 0).ok_or_else(|| Failed(format!("couldn't find port: {port:?} in the container")))
    }

    fn url(&self, http: &HTTPGetAction) -> Result<Url, Failed> {
        let tls = http.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
        let address =
            SocketAddr::new(self.host(http.host.as_deref().filter(|h| !h.is_empty()))?, self.port(&http.port)?);
        let path = http.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let text = format!("{}://{address}{path}", if tls { "https" } else { "http" });
        Ok(Url { tls, address, path, text })
    }

    async fn http(&self, action: &HTTPGetAction, url: &Url) -> Result<(), Failed> {
        let what = format!("Get {:?}", url.text);
        let failed = |error: &dyn std::fmt::Display| Failed(format!("{what}: {error}"));
        let stream = self.runtime.dial(&self.pod, url.address).await;
        let stream = stream.map_err(|e| failed(&dial_failed(url.address, &e)))?;
        let stream: Box<dyn Io> = if url.tls {
            let connector = tokio_rustls::TlsConnector::from(unverified());
            let name = ServerName::IpAddress(url.address.ip().into());
            Box::new(connector.connect(name, stream).await.map_err(|e| failed(&e))?)
        } else {
            stream
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| failed(&e))?;
        let driver = tokio::spawn(connection);
        let mut request = http::Request::get(&url.path);
        let mut named_host = None;
        let mut has_agent = false;
        for header in action.http_headers.iter().flatten() {
            if header.name.eq_ignore_ascii_case("host") {
                named_host = Some(header.value.clone());
            } else {
                has_agent |= header.name.eq_ignore_ascii_case("user-agent");
                request = request.header(&header.name, &header.value);
            }
        }
        if !has_agent {
            request = request.header(http::header::USER_AGENT, "kube-probe/1.33");
        }
        let host = named_host.unwrap_or_else(|| url.address.to_string());
        let request = request.header(http::header::HOST, host).body(Empty::<bytes::Bytes>::new());
        let outcome = async {
            let response = sender.send_request(request.map_err(|e| failed(&e))?).await.map_err(|e| failed(&e))?;
            let status = response.status();
            // Something of the body is taken so that the server does not see a reset; the rest is nobody's business.
            let mut body = response.into_body();
            let mut taken = 0;
            while let Some(Ok(frame)) = body.frame().await {
                taken += frame.data_ref().map_or(0, bytes::Bytes::len);
                if taken > MAX_OUTPUT {
                    break;
                }
            }
            if status.as_u16() >= 200 && status.as_u16() < 400 {
                return Ok(());
            }
            Err(Failed(format!("HTTP probe failed with statuscode: {}", status.as_u16())))
        };
        let outcome = outcome.await;
        driver.abort();
        outcome
    }
}

struct Url {
    tls: bool,
    address: SocketAddr,
    path: String,
    text: String,
}

fn dial_failed(address: SocketAddr, error: &std::io::Error) -> Failed {
    let text = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    Failed(format!("dial tcp {address}: {text}"))
}

/// TLS without looking at the certificate: a probe asks whether the pod answers, not who it is (upstream does the same).
fn unverified() -> Arc<rustls::ClientConfig> {
    static CONFIG: std::sync::LazyLock<Option<Arc<rustls::ClientConfig>>> = std::sync::LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyCertificate(provider.clone()));
        let builder =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        Some(Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
    });
    #[allow(clippy::expect_used, reason = "the provider compiled in supports the default protocol versions")]
    CONFIG.clone().expect("aws-lc-rs has TLS 1.2 and 1.3")
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
