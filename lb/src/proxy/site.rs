//! What a listener serves: immutable, replaced whole, loaded once per request (HTTP) or connection (everything else).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::tls;
use crate::route::{ByHost, HttpTable, Resolve, Weighted, choose_share};
use crate::snapshot::routes::{HostPattern, HttpPlan, L4Plan, ListenerPlan, Mode, RuleId, TlsAction, TlsSite};
use crate::stats::{ListenerStats, RouteStats};

/// Where a listener finds what it serves now.
pub(crate) type SiteCell = ArcSwap<Site>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Site {
    /// What happens with a connection.
    pub mode: SiteMode,
    /// Sources (address and prefix length) whose PROXY protocol header is required; others' connections are refused. `None`: no header.
    pub accept_proxy: Option<Arc<[(IpAddr, u8)]>>,
    /// Where its connections are counted; the hub puts it in.
    pub stats: Arc<ListenerStats>,
}

/// What happens with a connection.
#[derive(Debug)]
pub(crate) enum SiteMode {
    /// Nothing is served here any more; connections end.
    Gone,
    /// HTTP in clear text.
    Http(Arc<HttpTable>),
    /// By the name in the ClientHello.
    Tls(TlsTable),
    /// Bytes.
    Tcp(Arc<L4>),
    /// Datagrams.
    Udp(Arc<L4>),
}

/// Where connections go.
#[derive(Debug)]
pub(crate) struct L4 {
    pub id: RuleId,
    pub shares: Box<[Weighted]>,
    pub total_weight: u32,
    /// Longest silence; `None`: the protocol's default.
    pub idle_timeout: Option<Duration>,
    pub stats: Arc<RouteStats>,
}

/// TLS connections by name.
#[derive(Debug, Default)]
pub(crate) struct TlsTable {
    /// Most specific first.
    pub sites: Vec<(HostPattern, TlsMode)>,
    /// Index in `sites`.
    by_host: ByHost<usize>,
}

/// What happens with TLS connections to a name.
#[derive(Debug)]
pub(crate) enum TlsMode {
    /// TLS and HTTP end here.
    Http(Arc<rustls::ServerConfig>, Arc<HttpTable>),
    /// TLS ends here.
    Terminate(Arc<rustls::ServerConfig>, Arc<L4>),
    /// It goes on as it is.
    Passthrough(Arc<L4>),
}

/// A listener's plan ready to serve.
pub(crate) fn compile(plan: &ListenerPlan, port: u16, resolve: &mut impl Resolve) -> Site {
    let accept_proxy = accept_proxy(plan.accept_proxy.as_ref());
    let mode = match &plan.mode {
        Mode::Http(http) => SiteMode::Http(Arc::new(HttpTable::compile(http, port, resolve))),
        Mode::Tcp(l4) => SiteMode::Tcp(Arc::new(L4::compile(l4, resolve))),
        Mode::Udp(l4) => SiteMode::Udp(Arc::new(L4::compile(l4, resolve))),
        Mode::Tls(sites) => SiteMode::Tls(TlsTable::compile(sites, port, resolve)),
    };
    Site { mode, accept_proxy, stats: Arc::default() }
}

/// Sources of PROXY protocol headers, from their text.
pub(crate) fn accept_proxy(sources: Option<&Arc<[String]>>) -> Option<Arc<[(IpAddr, u8)]>> {
    sources.map(|sources| sources.iter().filter_map(|source| parse_cidr(source)).collect())
}

/// `address/length` or an address alone.
fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
    let ip: IpAddr = ip.parse().ok()?;
    let all = if ip.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(all), |length| length.parse().ok()).filter(|length| *length <= all)?;
    Some((ip, length))
}

impl L4 {
    fn compile(plan: &L4Plan, resolve: &mut impl Resolve) -> Self {
        let shares: Box<[Weighted]> =
            plan.backends.iter().map(|share| Weighted::compile(&plan.id, share, resolve)).collect();
        Self {
            id: plan.id.clone(),
            total_weight: shares.iter().map(|share| share.weight).fold(0, u32::saturating_add),
            shares,
            idle_timeout: plan.idle_timeout,
            stats: resolve.stats(&plan.id),
        }
    }

    /// The share for a connection; `random` is any number.
    pub fn share(&self, random: u32) -> Option<&Weighted> {
        choose_share(&self.shares, self.total_weight, random)
    }
}

impl TlsTable {
    fn compile(sites: &[TlsSite], port: u16, resolve: &mut impl Resolve) -> Self {
        let mut table = Self::default();
        // All sites that serve HTTP have the same plan.
        let mut last: Option<(Arc<HttpPlan>, Arc<HttpTable>)> = None;
        let mut routes = |plan: &Arc<HttpPlan>, resolve: &mut _| match &last {
            Some((known, table)) if Arc::ptr_eq(known, plan) => table.clone(),
            _ => {
                let table = Arc::new(HttpTable::compile(plan, port, resolve));
                last = Some((plan.clone(), table.clone()));
                table
            }
        };
        for TlsSite { host, action } in sites {
            let mode = match action {
                TlsAction::Http { certificates, http } => tls::server_config(certificates, tls::ALPN_HTTP)
                    .map(|config| TlsMode::Http(config, routes(http, resolve))),
                TlsAction::Terminate { certificates, to } => tls::server_config(certificates, &[])
                    .map(|config| TlsMode::Terminate(config, Arc::new(L4::compile(to, resolve)))),
                TlsAction::Passthrough(to) => Some(TlsMode::Passthrough(Arc::new(L4::compile(to, resolve)))),
            };
            let Some(mode) = mode else { continue };
            table.by_host.insert(host, table.sites.len());
            table.sites.push((host.clone(), mode));
        }
        table
    }

    /// The site for a name in lower case (empty: the client sent none).
    pub fn find(&self, name: &str) -> Option<&TlsMode> {
        let index = self.by_host.candidates(name).next()?;
        self.sites.get(*index).map(|(_, mode)| mode)
    }

    /// Whether a request for `host` may come over a connection to `name`: both must mean the same site, else a client would reach what
    /// another certificate (or none at all) stands for.
    fn allows(&self, name: &str, host: &str) -> bool {
        name == host || self.by_host.candidates(name).next() == self.by_host.candidates(host).next()
    }

    /// Whether any connections pass as they are.
    pub fn has_passthrough(&self) -> bool {
        self.sites.iter().any(|(_, mode)| matches!(mode, TlsMode::Passthrough(_)))
    }
}

/// Where the requests of a connection are looked up: always in what its listener serves now.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A listener in clear text.
    Clear(Arc<SiteCell>),
    /// A TLS listener, by the name (in lower case) that the client asked for; empty if it sent none.
    Tls(Arc<SiteCell>, Arc<str>),
}

impl Target {
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(..))
    }

    /// The site as it is now.
    pub fn load(&self) -> arc_swap::Guard<Arc<Site>> {
        match self {
            Self::Clear(cell) | Self::Tls(cell, _) => cell.load(),
        }
    }

    /// The routes in `site`, which [`Target::load`] gave.
    pub fn table<'s>(&self, site: &'s Site) -> Option<&'s HttpTable> {
        match (self, &site.mode) {
            (Self::Clear(_), SiteMode::Http(table)) => Some(table),
            (Self::Tls(_, name), SiteMode::Tls(sites)) => match sites.find(name)? {
                TlsMode::Http(_, table) => Some(table),
                TlsMode::Terminate(..) | TlsMode::Passthrough(_) => None,
            },
            _ => None,
        }
    }

    /// Whether a request for `host` may come over this connection (RFC 9110 §7.4, §15.5.20).
    pub fn allows(&self, site: &Site, host: &str) -> bool {
        match (self, &site.mode) {
            (Self::Tls(_, name), SiteMode::Tls(sites)) => sites.allows(name, host),
            _ => true,
        }
    }
}

impl Site {
    /// What remains of a listener whose object is gone.
    pub fn gone() -> Self {
        Self { mode: SiteMode::Gone, accept_proxy: None, stats: Arc::default() }
    }
}
