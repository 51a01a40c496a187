//! The request that is asked about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::proxy::held::Held;

/// Longest URL and longest header that is looked at, in bytes, and most headers.
const MAX_URL: usize = 8 * 1024;
const MAX_HEADERS: usize = 100;

/// A request as far as it decides where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// With TLS.
    pub https: bool,
    /// Port of the load balancer.
    pub port: u16,
    /// What the proxy would look at.
    pub(crate) head: Held,
}

/// The question makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a method.
    #[error("{0:?} is not a method, e.g. GET")]
    Method(String),
    /// Not an http or https URL.
    #[error("{0:?} is not a URL such as http://shop.example/a?x=1")]
    Url(String),
    /// Not a header.
    #[error("{0:?} is not a header such as \"x-user: ann\"")]
    Header(String),
    /// Not an address.
    #[error("{0:?} is not a client's address such as 192.0.2.1")]
    Client(String),
    /// Missing or unknown parameter.
    #[error("the parameters are method, url, header (repeated) and client; {0}")]
    Parameters(String),
}

impl Request {
    /// From its parts as a person writes them.
    pub fn new(method: &str, url: &str, headers: &[String], client: Option<&str>) -> Result<Self, RequestError> {
        if method.is_empty() || method.len() > 32 || !method.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-') {
            return Err(RequestError::Method(method.chars().take(40).collect()));
        }
        let bad = || RequestError::Url(url.chars().take(200).collect());
        let parsed = url::Url::parse(url).ok().filter(|_| url.len() <= MAX_URL).ok_or_else(bad)?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad());
        }
        let (host, port) = parsed.host_str().zip(parsed.port_or_known_default()).ok_or_else(bad)?;
        let headers = headers.iter().take(MAX_HEADERS).map(|text| match text.split_once(':') {
            Some((name, value)) if !name.trim().is_empty() => {
                Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            }
            _ => Err(RequestError::Header(text.chars().take(200).collect())),
        });
        let mut headers: Vec<(String, String)> = headers.collect::<Result<_, _>>()?;
        let client = match client {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => text.parse().map_err(|_| RequestError::Client(text.chars().take(60).collect()))?,
        };
        // A Host header goes before the URL's, as with curl; the URL's port says where it is sent.
        let named = headers.iter().find(|(name, _)| name == "host").map(|(_, value)| value.clone());
        let named = named.unwrap_or_else(|| {
            let sent = parsed.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            headers.insert(0, ("host".to_owned(), sent));
            host.to_owned()
        });
        let head = Held {
            method: method.to_ascii_uppercase(),
            host: without_port(&named).trim_end_matches('.').to_ascii_lowercase(),
            path: parsed.path().to_owned(),
            query: parsed.query().map(str::to_owned),
            fields: headers,
            client,
        };
        Ok(Self { https: parsed.scheme() == "https", port, head })
    }

    /// From a query: `method`, `url`, `header` (repeated), `client`.
    pub fn from_query(query: &str) -> Result<Self, RequestError> {
        let (mut method, mut url, mut client, mut headers) = (None, None, None, Vec::new());
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "method" => method = Some(value),
                "url" => url = Some(value),
                "client" => client = Some(value),
                "header" if headers.len() < MAX_HEADERS => headers.push(value.into_owned()),
                other => {
                    return Err(RequestError::Parameters(format!(
                        "not {:?}",
                        other.chars().take(40).collect::<String>()
                    )));
                }
            }
        }
        let url = url.ok_or_else(|| RequestError::Parameters("url is missing".to_owned()))?;
        Self::new(method.as_deref().unwrap_or("GET"), &url, &headers, client.as_deref())
    }
}

/// A host without its port; an IPv6 address is in brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => host,
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        let head = &self.head;
        write!(f, "{} {scheme}://{}:{}{}", head.method, head.host, self.port, head.path)?;
        if let Some(query) = &head.query {
            write!(f, "?{query}")?;
        }
        write!(f, " from {}", head.client)
    }
}
