//! Where the requests of a connection are looked up: always in what the listener serves now.

use std::sync::Arc;

use crate::proxy::site::{SiteCell, SiteMode, TlsMode};
use crate::route::{Head, HttpTable, Rule};

/// What a connection was accepted for.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A listener in clear text.
    Clear(Arc<SiteCell>),
    #[cfg_attr(not(test), expect(dead_code, reason = "made where TLS ends"))]
    /// A TLS listener, by the (lower-case) name that the client asked for; empty if it sent none.
    Tls(Arc<SiteCell>, Arc<str>),
}

/// Result of [`Target::find`].
#[derive(Debug)]
pub(crate) enum Found {
    /// And the listener's port, for redirects (0: not known).
    Rule(Arc<Rule>, u16),
    /// No route matches.
    Nothing,
    /// Another connection may be right for this host (RFC 9110 §15.5.20).
    Misdirected,
}

impl Target {
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(..))
    }

    /// The rule for a request.
    pub fn find(&self, head: &impl Head) -> Found {
        let found = |table: &HttpTable| table.find(head).map_or(Found::Nothing, |rule| Found::Rule(rule.clone(), 0));
        match self {
            Self::Clear(site) => match &site.load().mode {
                SiteMode::Http(table) => found(table),
                _ => Found::Nothing,
            },
            Self::Tls(site, name) => {
                let site = site.load();
                let SiteMode::Tls(tls) = &site.mode else { return Found::Misdirected };
                let index = |host: &str| tls.sites.iter().position(|(pattern, _)| pattern.matches(host));
                let own = index(name);
                // Name and host must mean the same site, else a client would reach what another certificate stands for.
                if **name != *head.host() && own != index(head.host()) {
                    return Found::Misdirected;
                }
                match own.and_then(|own| tls.sites.get(own)) {
                    Some((_, TlsMode::Http(_, table))) => found(table),
                    _ => Found::Misdirected,
                }
            }
        }
    }
}
