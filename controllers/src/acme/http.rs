//! HTTPS to the CA: bounded in time and size.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use super::Failure;

/// Longest time for one request.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Largest answer; a chain of certificates has a few kilobytes.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The client.
pub(super) struct Http(reqwest::Client);

impl Http {
    /// Trusts the system's roots, and `root_pem` if given.
    pub fn new(root_pem: Option<&[u8]>) -> Result<Self, Failure> {
        let configuration = |e: reqwest::Error| Failure::Configuration(e.to_string());
        let mut builder = reqwest::Client::builder().timeout(TIMEOUT).https_only(true);
        if let Some(pem) = root_pem {
            let roots = reqwest::Certificate::from_pem_bundle(pem).map_err(configuration)?;
            builder = builder.tls_certs_merge(roots);
        }
        builder.build().map(Self).map_err(configuration)
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let request = reqwest::Request::try_from(http::Request::from_parts(parts, body));
            let request = request.map_err(|e| Error::Other(Box::new(e)))?;
            let response = client.execute(request).await.map_err(|e| Error::Other(Box::new(e)))?;
            let (parts, body) = http::Response::<reqwest::Body>::from(response).into_parts();
            let body = http_body_util::Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(Error::Other)?;
            Ok(BytesResponse::from(http::Response::from_parts(parts, Full::new(body.to_bytes()))))
        })
    }
}
