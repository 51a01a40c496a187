//! Heads of requests apart from the bytes that they came in: for policies that look at one while its request waits, and for
//! explanations, which must decide as the data path does.

use std::borrow::Cow;
use std::net::IpAddr;

use super::path::{self, Ambiguous};
use super::request;
use crate::route::{Head, joined};

/// A head that owns what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub method: String,
    /// Lower case, without port.
    pub host: String,
    /// Without query.
    pub path: String,
    /// Without `?`.
    pub query: Option<String>,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
    pub client: IpAddr,
}

impl Held {
    /// A copy of a client's head.
    pub fn of(head: &request::Head<'_>) -> Self {
        let field =
            |(name, value): (&str, &[u8])| (name.to_ascii_lowercase(), String::from_utf8_lossy(value).into_owned());
        Self {
            method: head.method().to_owned(),
            host: head.host().to_owned(),
            path: head.path().to_owned(),
            query: head.query().map(str::to_owned),
            fields: head.fields().map(field).collect(),
            client: head.client(),
        }
    }

    /// The head as routes see it.
    pub fn normalized(mut self) -> Result<Self, Ambiguous> {
        if let Cow::Owned(normal) = path::normalize(&self.path)? {
            self.path = normal;
        }
        Ok(self)
    }
}

impl Head for Held {
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
        let values = self.fields.iter().filter(|(known, _)| known == name);
        joined(name, values.map(|(_, value)| Cow::Borrowed(value.as_str())))
    }
    fn client(&self) -> IpAddr {
        self.client
    }
}

/// A request at whose head nobody looks.
pub(crate) struct Unseen(pub IpAddr);

impl Head for Unseen {
    fn method(&self) -> &str {
        ""
    }
    fn host(&self) -> &str {
        ""
    }
    fn path(&self) -> &str {
        ""
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn header(&self, _: &str) -> Option<Cow<'_, str>> {
        None
    }
    fn client(&self) -> IpAddr {
        self.0
    }
}
