//! A request head that was written for an endpoint, read again: only when a request is logged.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::route::{Head, joined};

/// Most fields looked at; a head that we wrote has no more than the client's and ours.
const MAX_FIELDS: usize = 160;

/// See the module.
pub(crate) struct WrittenHead<'a> {
    method: &'a str,
    host: String,
    path: &'a str,
    query: Option<&'a str>,
    fields: Vec<(&'a str, &'a [u8])>,
    client: IpAddr,
}

impl<'a> WrittenHead<'a> {
    /// Reads `bytes`; a head that cannot be read (there was none) is empty.
    pub fn parse(bytes: &'a [u8], client: IpAddr) -> Self {
        let mut memory = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut head = httparse::Request::new(&mut memory);
        // What could be read before a mistake is in `head`.
        let _ = head.parse(bytes);
        let target = head.path.unwrap_or_default();
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let fields: Vec<(&str, &[u8])> = head
            .headers
            .iter()
            .take_while(|field| !field.name.is_empty())
            .map(|field| (field.name, field.value))
            .collect();
        let host = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = host.map(|(_, value)| without_port(&String::from_utf8_lossy(value)).to_ascii_lowercase());
        let host = host.unwrap_or_default();
        Self { method: head.method.unwrap_or_default(), host, path, query, fields, client }
    }
}

/// A host without its port.
pub(crate) fn without_port(host: &str) -> &str {
    let end = host.rfind(':').filter(|at| host[at + 1..].bytes().all(|b| b.is_ascii_digit()));
    &host[..end.unwrap_or(host.len())]
}

impl Head for WrittenHead<'_> {
    fn method(&self) -> &str {
        self.method
    }
    fn host(&self) -> &str {
        &self.host
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> Option<&str> {
        self.query
    }
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let values = self.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        joined(name, values.map(|(_, value)| String::from_utf8_lossy(value)))
    }
    fn client(&self) -> IpAddr {
        self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_and_none_is_empty() {
        let bytes = b"GET /a?b=c HTTP/1.1\r\nHost: Shop.Example:8080\r\nx-a: 1\r\nX-A: 2\r\n\r\n";
        let head = WrittenHead::parse(bytes, IpAddr::from([192, 0, 2, 1]));
        assert_eq!((head.method(), head.host(), head.path(), head.query()), ("GET", "shop.example", "/a", Some("b=c")));
        assert_eq!(head.header("x-a").as_deref(), Some("1, 2"));
        assert_eq!(head.header("x-b"), None);
        let none = WrittenHead::parse(b"", IpAddr::from([192, 0, 2, 1]));
        assert_eq!((none.method(), none.host(), none.path()), ("", "", ""));
        assert_eq!(without_port("[::1]:80"), "[::1]");
    }
}
