//! What a listener serves: immutable, replaced whole, loaded once per request (HTTP) or connection (everything else).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::route::{HttpTable, Resolve, Weighted, choose_share};
use crate::snapshot::routes::{HostPattern, L4Plan, ListenerPlan, Mode, RuleId, TlsSite};
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
pub(crate) fn compile(plan: &ListenerPlan, resolve: &mut impl Resolve) -> Site {
    let accept_proxy = plan.accept_proxy.as_ref().map(|sources| sources.iter().filter_map(|s| parse_cidr(s)).collect());
    let mode = match &plan.mode {
        Mode::Http(http) => SiteMode::Http(Arc::new(HttpTable::compile(http, resolve))),
        Mode::Tcp(l4) => SiteMode::Tcp(Arc::new(L4::compile(l4, resolve))),
        Mode::Udp(l4) => SiteMode::Udp(Arc::new(L4::compile(l4, resolve))),
        Mode::Tls(sites) => SiteMode::Tls(TlsTable::compile(sites, resolve)),
    };
    Site { mode, accept_proxy, stats: Arc::default() }
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
        let shares: Box<[Weighted]> = plan.backends.iter().map(|share| Weighted::compile(share, resolve)).collect();
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
    fn compile(sites: &[TlsSite], resolve: &mut impl Resolve) -> Self {
        let _ = (sites, resolve);
        Self::default()
    }
}

impl Site {
    /// What remains of a listener whose object is gone.
    pub fn gone() -> Self {
        Self { mode: SiteMode::Gone, accept_proxy: None, stats: Arc::default() }
    }
}
