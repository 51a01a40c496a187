//! Modules from other machines: HTTPS, and registries (OCI distribution specification 1.1). Bounded in time and size.
//!
//! What comes is believed only after its digest was checked, elsewhere. Redirections lead to HTTPS only.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use scaleup_api::plugin::{HttpsSource, Identifier, OciSource, Reference};
use serde_json::Value;

use super::source::FetchError;

/// Longest time for one request.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest manifest or answer of a token service, as registries limit them.
const MAX_MANIFEST_BYTES: usize = 4 << 20;
const MAX_REDIRECTS: usize = 5;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media types of layers that are modules.
const WASM: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

fn failed(error: &dyn std::error::Error) -> FetchError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    FetchError::Remote(text)
}

fn client(ca_bundle: Option<&str>, https_only: bool) -> Result<Client, FetchError> {
    let follow = reqwest::redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirections")
        } else if https_only && attempt.url().scheme() != "https" {
            attempt.error("a redirection to something else than HTTPS")
        } else {
            attempt.follow()
        }
    });
    let mut builder = Client::builder().timeout(TIMEOUT).https_only(https_only).redirect(follow);
    if let Some(pem) = ca_bundle {
        let roots = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(|error| failed(&error))?;
        builder = builder.tls_certs_only(roots);
    }
    builder.build().map_err(|error| failed(&error))
}

async fn send(request: RequestBuilder) -> Result<Response, FetchError> {
    request.send().await.map_err(|error| failed(&error))
}

/// The body of a good answer.
async fn body(mut response: Response, most: usize) -> Result<Bytes, FetchError> {
    let url = response.url().clone();
    if !response.status().is_success() {
        return Err(FetchError::Remote(format!("{url} answers {}", response.status())));
    }
    let too_large = || FetchError::Remote(format!("{url} answers with more than {most} bytes"));
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    let mut all = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(|error| failed(&error))? {
        if all.len() + piece.len() > most {
            return Err(too_large());
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}

fn bearer(token: &[u8]) -> Result<String, FetchError> {
    let token =
        std::str::from_utf8(token).map(str::trim).ok().filter(|token| token.bytes().all(|b| b.is_ascii_graphic()));
    token.map(|token| format!("Bearer {token}")).ok_or_else(|| FetchError::Remote("the token is not one".into()))
}

/// A module from an address.
pub async fn https(source: &HttpsSource, token: Option<&[u8]>, most: usize) -> Result<Bytes, FetchError> {
    let mut request = client(source.ca_bundle.as_deref(), true)?.get(&source.url);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, bearer(token)?);
    }
    body(send(request).await?, most).await
}

/// User and password for a registry out of a `.dockerconfigjson`.
fn login(config: &[u8], registry: &str) -> Option<(String, String)> {
    let config: Value = serde_json::from_slice(config).ok()?;
    let auths = config["auths"].as_object()?;
    let host = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        key.split('/').next().unwrap_or_default() == registry
    };
    let entry = auths.iter().find(|(key, _)| host(key)).map(|(_, entry)| entry)?;
    if let (Some(user), Some(password)) = (entry["username"].as_str(), entry["password"].as_str()) {
        return Some((user.into(), password.into()));
    }
    let auth = String::from_utf8(STANDARD.decode(entry["auth"].as_str()?).ok()?).ok()?;
    auth.split_once(':').map(|(user, password)| (user.into(), password.into()))
}

/// `Bearer realm="…",service="…",scope="…"` as the address to ask.
fn token_address(challenge: &str) -> Option<Url> {
    let rest = challenge.strip_prefix("Bearer ")?;
    let parameters = rest.split(',').filter_map(|one| one.trim().split_once('='));
    let value = |text: &str| text.trim_matches('"').to_owned();
    let (mut realm, mut query) = (None, Vec::new());
    for (name, text) in parameters {
        match name {
            "realm" => realm = Url::parse(&value(text)).ok(),
            "service" | "scope" => query.push((name.to_owned(), value(text))),
            _ => {}
        }
    }
    let mut realm = realm?;
    realm.query_pairs_mut().extend_pairs(query);
    Some(realm)
}

struct Repository<'a> {
    client: Client,
    reference: Reference<'a>,
    scheme: &'static str,
    login: Option<(String, String)>,
    authorization: Option<String>,
}

impl Repository<'_> {
    /// A resource of the repository; what the registry asks for by way of authentication is done once.
    async fn get(&mut self, path: &str, accept: &str, most: usize) -> Result<Bytes, FetchError> {
        let Reference { registry, repository, .. } = self.reference;
        let url = format!("{}://{registry}/v2/{repository}/{path}", self.scheme);
        for attempt in 0..2 {
            let mut request = self.client.get(&url).header(ACCEPT, accept);
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = send(request).await?;
            if response.status() != StatusCode::UNAUTHORIZED || attempt > 0 {
                return body(response, most).await;
            }
            let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
            self.authorization = Some(self.authenticate(challenge.unwrap_or_default()).await?);
        }
        Err(FetchError::Remote(format!("{url} is not to be had")))
    }

    async fn authenticate(&self, challenge: &str) -> Result<String, FetchError> {
        let registry = self.reference.registry;
        if challenge.starts_with("Basic") {
            let (user, password) = self.login.as_ref().ok_or_else(|| {
                FetchError::Remote(format!("{registry} wants a password: give spec.source.oci.pullSecret"))
            })?;
            return Ok(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
        }
        let address = token_address(challenge)
            .filter(|address| address.scheme() == self.scheme || address.scheme() == "https")
            .ok_or_else(|| FetchError::Remote(format!("{registry} asks for something unknown: {challenge:?}")))?;
        let mut request = self.client.get(address);
        if let Some((user, password)) = &self.login {
            request = request.basic_auth(user, Some(password));
        }
        let answer = body(send(request).await?, MAX_MANIFEST_BYTES).await?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|error| failed(&error))?;
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        bearer(token.ok_or_else(|| FetchError::Remote(format!("{registry} gives no token")))?.as_bytes())
    }
}

/// The digest of the layer that is the module: the one that is asked for, else the only one that is WebAssembly or the only one.
fn layer(manifest: &Value, wanted: Option<&str>) -> Result<String, FetchError> {
    let layers = manifest["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let digest = |layer: &Value| layer["digest"].as_str().unwrap_or_default().to_owned();
    let is_wanted = |layer: &&Value| wanted.is_some_and(|wanted| digest(layer) == format!("sha256:{wanted}"));
    let wasm: Vec<&Value> =
        layers.iter().filter(|layer| WASM.contains(&layer["mediaType"].as_str().unwrap_or_default())).collect();
    let found = layers.iter().find(is_wanted).or(match (wasm.as_slice(), layers) {
        ([one], _) => Some(*one),
        ([], [one]) => Some(one),
        _ => None,
    });
    let found =
        found.map(digest).filter(|found| found.strip_prefix("sha256:").is_some_and(scaleup_api::plugin::is_sha256));
    found.ok_or_else(|| FetchError::Remote(format!("the manifest has {} layers, and none is the module", layers.len())))
}

/// A module from a registry.
pub async fn oci(
    source: &OciSource,
    config: Option<&[u8]>,
    wanted: Option<&str>,
    most: usize,
) -> Result<Bytes, FetchError> {
    let reference = Reference::parse(&source.reference).map_err(FetchError::Remote)?;
    let mut repository = Repository {
        client: client(source.ca_bundle.as_deref(), !source.plain_http)?,
        reference,
        scheme: if source.plain_http { "http" } else { "https" },
        login: config.and_then(|config| login(config, reference.registry)),
        authorization: None,
    };
    let path = match reference.identifier {
        Identifier::Tag(tag) => format!("manifests/{tag}"),
        Identifier::Sha256(digest) => format!("manifests/sha256:{digest}"),
    };
    let manifest = repository.get(&path, MANIFEST, MAX_MANIFEST_BYTES).await?;
    if let Identifier::Sha256(digest) = reference.identifier
        && super::staging::sha256(&manifest) != digest
    {
        return Err(FetchError::Remote("the manifest is not the one that the reference names".into()));
    }
    let manifest: Value = serde_json::from_slice(&manifest).map_err(|error| failed(&error))?;
    let layer = layer(&manifest, wanted)?;
    repository.get(&format!("blobs/{layer}"), "*/*", most).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn passwords_and_challenges_are_read() {
        let auth = STANDARD.encode("me:pass:word");
        let config = json!({"auths": {"https://r.example:5000/v1/": {"auth": auth}, "other": {"username": "a", "password": "b"}}});
        let config = config.to_string();
        assert_eq!(login(config.as_bytes(), "r.example:5000"), Some(("me".into(), "pass:word".into())));
        assert_eq!(login(config.as_bytes(), "other"), Some(("a".into(), "b".into())));
        assert_eq!(login(config.as_bytes(), "r.example"), None);
        let challenge = r#"Bearer realm="https://auth.example/token",service="r",scope="repository:a/b:pull""#;
        let address = token_address(challenge).unwrap();
        assert_eq!(address.as_str(), "https://auth.example/token?service=r&scope=repository%3Aa%2Fb%3Apull");
        assert!(token_address("Negotiate").is_none());
    }

    #[test]
    fn the_modules_layer_is_found() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let one = |digest: &str, kind: &str| json!({"digest": format!("sha256:{digest}"), "mediaType": kind});
        let manifest = json!({"layers": [one(&a, "text/plain"), one(&b, WASM[0])]});
        assert_eq!(layer(&manifest, None).unwrap(), format!("sha256:{b}"));
        assert_eq!(layer(&manifest, Some(&a)).unwrap(), format!("sha256:{a}"));
        assert!(layer(&json!({"layers": [one(&a, "x"), one(&b, "x")]}), None).is_err());
        assert!(layer(&json!({"layers": [{"digest": "sha256:../../x"}]}), None).is_err());
        assert!(layer(&json!({}), None).is_err());
    }
}
