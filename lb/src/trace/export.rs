//! Sends spans to a collector: OTLP over HTTP/1.1 in its JSON form. In batches; a batch that fails is sent once more and then lost.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::span::request;
use crate::observe::Observers;

/// Traces sent in one request at most.
const MAX_BATCH: usize = 256;
/// How long the first trace of a batch waits for more.
const BATCH_TIME: Duration = Duration::from_millis(500);
/// Longest time for a batch to be taken.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a batch is sent again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 * 1024;
/// Where OTLP's traces go when the endpoint names no path.
const DEFAULT_PATH: &str = "/v1/traces";

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Collector {
    /// `host:port`
    authority: String,
    path: String,
}

impl Collector {
    /// From `http://HOST:PORT[/PATH]`.
    pub fn parse(endpoint: &str) -> Option<Self> {
        let url = url::Url::parse(endpoint).ok().filter(|url| url.scheme() == "http")?;
        let authority = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        let path = if url.path() == "/" { DEFAULT_PATH } else { url.path() };
        Some(Self { authority, path: path.to_owned() })
    }

    async fn post(&self, body: Vec<u8>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = http::Request::post(&self.path)
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::from(body)))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let _ = Limited::new(response.into_body(), MAX_ANSWER).collect().await?;
            if status.is_success() { Ok(()) } else { Err(format!("the collector answered {status}").into()) }
        };
        tokio::select! {
            answered = exchange => answered,
            ended = connection => Err(ended.err().map_or_else(|| "the collector closed the connection".into(), Into::into)),
        }
    }

    /// Sends a batch, twice if need be.
    async fn send(&self, body: &[u8]) -> bool {
        for pause in [Some(RETRY_PAUSE), None] {
            match tokio::time::timeout(TIMEOUT, self.post(body.to_vec())).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => tracing::debug!(collector = self.authority, %error, "spans were not taken"),
                Err(_) => tracing::debug!(collector = self.authority, "the collector takes too long"),
            }
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
        false
    }
}

/// Sends what is queued until `stop`, then what is left.
pub(crate) async fn run(observers: Arc<Observers>, stop: CancellationToken) {
    let Some(tracer) = &observers.tracer else { return };
    let Some(mut traces) = tracer.waiting.lock().take() else { return };
    loop {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        tokio::select! {
            biased;
            _ = traces.recv_many(&mut batch, MAX_BATCH) => {}
            () = stop.cancelled() => return,
        }
        if batch.len() < MAX_BATCH {
            // A moment later there are more.
            stop.run_until_cancelled(tokio::time::sleep(BATCH_TIME)).await;
            while let Some(trace) = (batch.len() < MAX_BATCH).then(|| traces.try_recv().ok()).flatten() {
                batch.push(trace);
            }
        }
        let spans: Vec<_> = batch.iter().flat_map(|trace| trace.spans()).collect();
        let taken = tracer.collector.send(request(&spans).to_string().as_bytes()).await;
        let counter = if taken { &tracer.exported } else { &tracer.dropped };
        counter.fetch_add(spans.len() as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let found = Collector::parse(text);
            assert_eq!(found.as_ref().map(|c| (c.authority.as_str(), c.path.as_str())), expected, "{text}");
        };
        check("http://otel:4318", Some(("otel:4318", "/v1/traces")));
        check("http://otel/custom", Some(("otel:80", "/custom")));
        check("http://[::1]:1", Some(("[::1]:1", "/v1/traces")));
        check("https://otel:4318", None);
        check("otel:4318", None);
    }
}
