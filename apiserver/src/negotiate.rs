//! Content negotiation: which form of an answer a client wants, and what form its body has.
//!
//! JSON always works; YAML, Tables and metadata-only views on request. Protobuf is read, as kubectl and client-go's typed
//! clients send it, but never produced: a client that accepts nothing else gets 406.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use crate::error::ApiError;

/// What the server can answer with.
pub const OFFERED: &[&str] = &["application/json", "application/yaml"];
/// What bodies may be.
const READABLE: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
/// Longest Accept header that is looked at.
const MAX_ACCEPT_BYTES: usize = 4_096;

/// How the answer is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `application/json`
    #[default]
    Json,
    /// `application/yaml`
    Yaml,
}

impl Format {
    /// For the header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// What is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum View {
    /// The object itself.
    #[default]
    Object,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata or its list.
    Partial,
}

/// The answer's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Accepted {
    /// Encoding.
    pub format: Format,
    /// View.
    pub view: View,
    /// Indented JSON.
    pub pretty: bool,
}

impl Accepted {
    /// Whether ready JSON bytes can be sent as they are.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }
}

/// The best form that the Accept header allows.
pub fn accept(headers: &HeaderMap, pretty: bool) -> Result<Accepted, ApiError> {
    let mut best: Option<(u32, Accepted)> = None;
    let mut asked = false;
    for header in headers.get_all(ACCEPT) {
        let text = header.to_str().ok().filter(|t| t.len() <= MAX_ACCEPT_BYTES);
        let text = text.ok_or_else(|| ApiError::not_acceptable(OFFERED))?;
        for clause in text.split(',').map(str::trim).filter(|c| !c.is_empty()) {
            asked = true;
            let Some((quality, accepted)) = read_clause(clause) else { continue };
            if best.is_none_or(|(q, _)| quality > q) {
                best = Some((quality, accepted));
            }
        }
    }
    match best {
        Some((_, accepted)) => Ok(Accepted { pretty: pretty && accepted.format == Format::Json, ..accepted }),
        None if !asked => Ok(Accepted { pretty, ..Accepted::default() }),
        None => Err(ApiError::not_acceptable(OFFERED)),
    }
}

/// One media range with its quality in thousandths; `None` if it is nothing we offer.
fn read_clause(clause: &str) -> Option<(u32, Accepted)> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()?.to_ascii_lowercase().as_str() {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut quality, mut kind, mut group, mut version) = (1000, "", "", "");
    for parameter in parts {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match key.trim().to_ascii_lowercase().as_str() {
            "q" => quality = read_quality(value)?,
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            _ => {}
        }
    }
    let view = match (kind, group, version) {
        ("", _, _) => View::Object,
        ("Table", "meta.k8s.io", "v1") => View::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => View::Partial,
        _ => return None,
    };
    (quality > 0).then_some((quality, Accepted { format, view, pretty: false }))
}

fn read_quality(text: &str) -> Option<u32> {
    let quality: f32 = text.trim().parse().ok()?;
    (0.0..=1.0).contains(&quality).then(|| (quality * 1000.0).round() as u32)
}

/// The form of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    /// JSON (also without a content type).
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf.
    Protobuf,
}

/// The media type of a request without its parameters, in lower case; empty if there is none.
pub fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The form of an object in a body; 415 for what cannot be read whole.
pub fn body_format(headers: &HeaderMap) -> Result<BodyFormat, ApiError> {
    match media_type(headers).as_str() {
        "" | "application/json" | "*/*" => Ok(BodyFormat::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(BodyFormat::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(BodyFormat::Protobuf),
        other => Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format ({other}) - accepted media types include: {}",
            READABLE.join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, expected: Option<(Format, View)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, header.parse().unwrap());
        assert_eq!(accept(&headers, false).ok().map(|a| (a.format, a.view)), expected, "{header}");
    }

    #[test]
    fn accept_headers() {
        use {Format::*, View::*};
        check("application/json", Some((Json, Object)));
        check("*/*", Some((Json, Object)));
        check("application/yaml", Some((Yaml, Object)));
        check("application/vnd.kubernetes.protobuf", None);
        check("application/vnd.kubernetes.protobuf, application/json", Some((Json, Object)));
        check("text/html", None);
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        check(table, Some((Json, Table)));
        check("application/json;as=Table;g=meta.k8s.io;v=v9,application/json", Some((Json, Object)));
        check("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some((Json, Partial)));
        check("application/json;q=0.5, application/yaml;q=0.9", Some((Yaml, Object)));
        check("application/json;q=0, application/yaml;q=0.1", Some((Yaml, Object)));
        check("application/json;q=7", None);
    }

    #[test]
    fn no_accept_header_is_json() {
        assert!(accept(&HeaderMap::new(), false).unwrap().is_plain());
        assert!(accept(&HeaderMap::new(), true).unwrap().pretty);
    }

    #[test]
    fn bodies() {
        let of = |t: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, t.parse().unwrap());
            body_format(&headers)
        };
        assert_eq!(of("application/json; charset=utf-8").unwrap(), BodyFormat::Json);
        assert_eq!(of("application/yaml").unwrap(), BodyFormat::Yaml);
        assert_eq!(of("application/vnd.kubernetes.protobuf").unwrap(), BodyFormat::Protobuf);
        assert_eq!(of("application/cbor").unwrap_err().code, 415);
    }
}
