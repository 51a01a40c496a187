//! Raw HTTPS against the API, with or without credentials.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// A client of one API server.
#[derive(Clone)]
pub struct Api {
    /// `https://127.0.0.1:PORT`
    pub base: String,
    /// The client, for requests that the helpers do not cover.
    pub client: reqwest::Client,
    ca: reqwest::Certificate,
    token: Option<String>,
}

/// An answer, body read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers.
    pub headers: reqwest::header::HeaderMap,
    /// Body as text.
    pub text: String,
}

impl Answer {
    /// Body as JSON; `Null` if it is not.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }
    /// Expects a 2xx status; the body as JSON.
    pub fn ok(self) -> Result<Value> {
        if !self.status.is_success() {
            bail!("{}: {}", self.status, self.text);
        }
        Ok(self.json())
    }
    /// `reason` of the Status body, empty if there is none.
    pub fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap_or_default().to_owned()
    }
    /// `message` of the Status body, empty if there is none.
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

fn decoded(value: &Value) -> Result<Vec<u8>> {
    let text = value.as_str().context("not in the kubeconfig")?;
    Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
}

fn builder(ca: &reqwest::Certificate) -> reqwest::ClientBuilder {
    reqwest::Client::builder().tls_certs_only([ca.clone()]).timeout(Duration::from_secs(60))
}

impl Api {
    /// With the client certificate of a kubeconfig.
    pub fn from_kubeconfig(path: &Path) -> Result<Self> {
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(path)?)?;
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        let ca = reqwest::Certificate::from_pem(&decoded(&cluster["certificate-authority-data"])?)?;
        let mut pem = decoded(&user["client-certificate-data"])?;
        pem.extend_from_slice(&decoded(&user["client-key-data"])?);
        let client = builder(&ca).identity(reqwest::Identity::from_pem(&pem)?).build()?;
        let base = cluster["server"].as_str().context("server")?.trim_end_matches('/').to_owned();
        Ok(Self { base, client, ca, token: None })
    }
    /// The same server, no credentials.
    pub fn without_credentials(&self) -> Result<Self> {
        Ok(Self { client: builder(&self.ca).build()?, token: None, ..self.clone() })
    }
    /// The same server, a bearer token.
    pub fn with_token(&self, token: &str) -> Result<Self> {
        Ok(Self { token: Some(token.to_owned()), ..self.without_credentials()? })
    }
    /// A request to finish by hand.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
    /// Sends and reads the body.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        Ok(Answer { status, headers, text: answer.text().await? })
    }
    /// GET
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }
    /// POST of JSON
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.request(Method::POST, path).json(body)).await
    }
    /// PUT of JSON
    pub async fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.request(Method::PUT, path).json(body)).await
    }
    /// PATCH: `kind` is `json`, `merge`, `strategic-merge` or `apply`.
    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Result<Answer> {
        let content = match kind {
            "apply" => "application/apply-patch+yaml".to_owned(),
            "json" => "application/json-patch+json".to_owned(),
            kind => format!("application/{kind}-patch+json"),
        };
        let request = self.request(Method::PATCH, path).header("content-type", content).body(body.to_string());
        self.send(request).await
    }
    /// DELETE, with options if not `Null`
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Answer> {
        let request = self.request(Method::DELETE, path);
        self.send(if options.is_null() { request } else { request.json(options) }).await
    }
}
