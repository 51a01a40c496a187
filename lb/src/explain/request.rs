//! The request that is asked about.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::route::Head;

/// Longest URL and longest header that is looked at, in bytes, and most headers.
const MAX_URL: usize = 8 * 1024;
const MAX_HEADERS: usize = 100;

/// A request as far as it decides where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Upper case.
    pub method: String,
    /// With TLS.
    pub https: bool,
    /// Lower case, without port.
    pub host: String,
    /// Port of the load balancer.
    pub port: u16,
    /// Without query.
    pub path: String,
    /// Without `?`.
    pub query: Option<String>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The client's address.
    pub client: IpAddr,
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
        let headers: Vec<(String, String)> = headers.collect::<Result<_, _>>()?;
        let client = match client {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => text.parse().map_err(|_| RequestError::Client(text.chars().take(60).collect()))?,
        };
        // A Host header goes before the URL's, as with curl; the URL's port says where it is sent.
        let named = headers.iter().find(|(name, _)| name == "host").map(|(_, value)| value.as_str());
        let host = named.map_or(host, |named| named.rsplit_once(':').map_or(named, |(host, _)| host));
        Ok(Self {
            method: method.to_ascii_uppercase(),
            https: parsed.scheme() == "https",
            host: host.trim_end_matches('.').to_ascii_lowercase(),
            port,
            path: parsed.path().to_owned(),
            query: parsed.query().map(str::to_owned),
            headers,
            client,
        })
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

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{} {scheme}://{}:{}{}", self.method, self.host, self.port, self.path)?;
        if let Some(query) = &self.query {
            write!(f, "?{query}")?;
        }
        write!(f, " from {}", self.client)
    }
}

impl Head for Request {
    fn method(&self) -> &str {
        &self.method
    }
    fn host(&self) -> &str {
        &self.host
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let values: Vec<&str> =
            self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect();
        (!values.is_empty()).then(|| values.join(",").into())
    }
    fn client(&self) -> IpAddr {
        self.client
    }
}
