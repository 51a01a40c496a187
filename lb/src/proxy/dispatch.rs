//! Which engine serves a new connection: by the listener, by the name in the ClientHello, by the protocol agreed on.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

use super::drain::{Drain, Phase};
use super::io::Shared;
use super::own::Ends;
use super::site::{L4, SiteCell, SiteMode, Target, TlsMode};
use super::tls::ALPN_HTTP2;
use super::worker::{Accepted, Worker};
use super::{h2, http, proxy_protocol, sni, tcp};
use crate::stats::Spoken;

/// Longest wait for a ClientHello that is only looked at.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one client connection.
pub(super) async fn serve(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    peer: SocketAddr,
    site: Arc<SiteCell>,
    drain: Rc<Drain>,
    counted: &Accepted,
) {
    let now = site.load_full();
    let Ok(server) = stream.local_addr() else { return };
    let client = match &now.accept_proxy {
        None => peer,
        Some(trusted) => match proxy_protocol::accept(&mut stream, peer, trusted).await {
            Ok(client) => client,
            Err(error) => return tracing::debug!(%peer, %error, "connection refused"),
        },
    };
    let ends = Ends { client, server };
    match &now.mode {
        SiteMode::Http(_) => {
            let target = Target::Clear(site);
            let ended = http::serve(worker.clone(), stream, ends, target.clone(), drain.clone(), counted).await;
            if let Some((stream, early)) = ended {
                counted.speaks(Spoken::Http2);
                Box::pin(http2(worker, stream, early.bytes(), ends, (target, None), drain)).await;
            }
        }
        SiteMode::Tcp(l4) => {
            counted.speaks(Spoken::Raw);
            tcp::serve(&worker, stream, ends, l4, &drain, false).await;
        }
        // Boxed, as is HTTP/2, so that connections in clear text hold no room for it.
        SiteMode::Tls(_) => Box::pin(tls(worker, stream, ends, site, drain, counted)).await,
        SiteMode::Gone | SiteMode::Udp(_) => {}
    }
}

async fn tls(
    worker: Rc<Worker>,
    stream: TcpStream,
    ends: Ends,
    site: Arc<SiteCell>,
    drain: Rc<Drain>,
    counted: &Accepted,
) {
    let work = tokio::time::timeout(worker.config.tls_handshake_timeout, hello(stream, &site));
    let greeted = tokio::select! {
        biased;
        greeted = work => greeted.ok().flatten(),
        () = drain.reached(Phase::Aborting) => None,
    };
    if !matches!(greeted, Some(Greeted::Passthrough(..))) {
        counted.shaken_hands(greeted.is_some());
    }
    match greeted {
        Some(Greeted::Http(stream, target)) => tls_http(worker, *stream, ends, target, drain, counted).await,
        Some(Greeted::Bytes(stream, l4)) => {
            counted.speaks(Spoken::Raw);
            tcp::serve(&worker, Shared::new(*stream), ends, &l4, &drain, false).await;
        }
        Some(Greeted::Passthrough(stream, l4)) => {
            counted.speaks(Spoken::Raw);
            tcp::serve(&worker, stream, ends, &l4, &drain, true).await;
        }
        None => tracing::trace!(peer = %ends.client, "no TLS session"),
    }
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

/// What a TLS connection turned out to be.
enum Greeted {
    Http(Box<TlsStream>, Target),
    Bytes(Box<TlsStream>, Arc<L4>),
    Passthrough(TcpStream, Arc<L4>),
}

/// Reads the ClientHello and ends TLS here, unless the site passes it on.
async fn hello(stream: TcpStream, site: &Arc<SiteCell>) -> Option<Greeted> {
    if let Some(l4) = passed_on(&stream, site).await {
        return Some(Greeted::Passthrough(stream, l4));
    }
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.ok()?;
    let name = start.client_hello().server_name().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    let now = site.load_full();
    let SiteMode::Tls(table) = &now.mode else { return None };
    match table.find(&name)? {
        TlsMode::Http(config, _) => {
            let stream = start.into_stream(config.clone()).await.ok()?;
            Some(Greeted::Http(Box::new(stream), Target::Tls(site.clone(), name.into())))
        }
        TlsMode::Terminate(config, l4) => {
            let stream = start.into_stream(config.clone()).await.ok()?;
            Some(Greeted::Bytes(Box::new(stream), l4.clone()))
        }
        // Decided before.
        TlsMode::Passthrough(_) => None,
    }
}

/// Where a connection goes as it is. Only then the name is looked for before TLS reads it: nothing may be taken from the socket.
async fn passed_on(stream: &TcpStream, site: &Arc<SiteCell>) -> Option<Arc<L4>> {
    let now = site.load_full();
    let SiteMode::Tls(table) = &now.mode else { return None };
    if !table.has_passthrough() {
        return None;
    }
    // Whoever waits for us bounds the time, too.
    let hello = sni::peek(stream, HELLO_TIMEOUT).await.ok()?;
    // Without a name only a site for any name will do.
    match table.find(&hello.server_name.unwrap_or_default())? {
        TlsMode::Passthrough(l4) => Some(l4.clone()),
        TlsMode::Http(..) | TlsMode::Terminate(..) => None,
    }
}

/// HTTP inside TLS, in the version agreed on.
async fn tls_http(
    worker: Rc<Worker>,
    stream: TlsStream,
    ends: Ends,
    target: Target,
    drain: Rc<Drain>,
    counted: &Accepted,
) {
    if stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2) {
        counted.speaks(Spoken::Http2);
        let version = super::io::version_text(stream.get_ref().1.protocol_version());
        Box::pin(http2(worker, stream, &[], ends, (target, version), drain)).await;
    } else {
        http::serve(worker, Shared::new(stream), ends, target, drain, counted).await;
    }
}

/// A connection that speaks HTTP/2; `early` was read of it already.
async fn http2<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: Rc<Worker>,
    stream: IO,
    early: &[u8],
    ends: Ends,
    target: (Target, Option<&'static str>),
    drain: Rc<Drain>,
) {
    h2::serve(worker, stream, early, ends, target, drain).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size of the future that `f` returns.
    fn size_of_future<'a, F>(
        _: &impl Fn(Rc<Worker>, TcpStream, SocketAddr, Arc<SiteCell>, Rc<Drain>, &'a Accepted) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_costs_little_memory() {
        let size = size_of_future(&serve);
        assert!(size <= 6 * 1024, "{size} bytes per connection");
    }
}
