//! The store on an etcd cluster: every API server of an installation shares one.
//!
//! A write is one transaction that compares `mod_revision`. All watches of a store are fed by a single etcd watch over
//! its prefix (see [`feed`]): within it events are totally ordered, so progress is known on every etcd version. Only
//! replays open a watch of their own. A write is never sent twice; reads are retried a bounded number of times.

mod errors;
mod feed;
pub mod local;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, GetResponse, Identity, KvClient, TlsOptions,
    Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use futures::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::hub::Hub;
use crate::{Error, KeyValue, ListRequest, Page, Result, Revision, Store, Watch, check_size};
use errors::{Meaning, meaning};
use feed::Feed;

/// A request that takes longer has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Reads are tried this many times, and so is connecting.
const ATTEMPTS: u32 = 5;
/// Pause before the second attempt; it doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// HTTP/2 keep-alive: a dead connection is noticed within the sum of these.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Keys fetched in one request: a list of any length is assembled from such pieces at one revision.
const LIST_CHUNK: usize = 500;
/// tonic's default of 4 MiB is less than a list chunk of large objects.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// Client-side TLS, PEM encoded.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Who signed etcd's certificate; the system's roots are not used.
    pub ca_pem: Vec<u8>,
    /// Our certificate and its key, if etcd asks for one.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
}

/// How to use an etcd cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// `None` for plain HTTP.
    pub tls: Option<Tls>,
    /// In front of every key, as `/scaleup`; it keeps installations apart. Must not end with a slash.
    pub prefix: String,
    /// History older than between one and two of these is compacted; zero leaves compaction to others. (kube-apiserver's
    /// `--etcd-compaction-interval`.)
    pub compaction_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { tls: None, prefix: "/scaleup".to_owned(), compaction_interval: crate::HISTORY_MAX_AGE }
    }
}

/// The store; see the module's description.
pub struct EtcdStore {
    kv: KvClient,
    prefix: String,
    hub: Arc<Hub>,
    feed: Feed,
    /// Stops the feed with the store.
    _stop: DropGuard,
}

/// The first key after all that start with `prefix`, as etcd's ranges want it.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// etcd counts in `i64`; what does not fit is far in the future.
fn to_etcd(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn from_etcd(revision: i64) -> Revision {
    Revision::try_from(revision).unwrap_or(0)
}

fn key_value(kv: &etcd_client::KeyValue, prefix: &str) -> Option<KeyValue> {
    let key = std::str::from_utf8(kv.key()).ok()?.strip_prefix(prefix)?;
    // Our own bookkeeping lies beside the paths.
    key.starts_with('/').then(|| KeyValue {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(kv.value()),
        create_revision: from_etcd(kv.create_revision()),
        mod_revision: from_etcd(kv.mod_revision()),
    })
}

fn connect_options(tls: Option<&Tls>) -> ConnectOptions {
    let options = ConnectOptions::new()
        .with_connect_timeout(REQUEST_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true);
    let Some(tls) = tls else { return options };
    let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
    if let Some((certificate, key)) = &tls.identity_pem {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    options.with_tls(config)
}

/// Waits for one request.
async fn bounded<T>(request: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Meaning> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(meaning(error)),
        Err(_) => Err(Meaning::Unavailable(format!("etcd did not answer within {REQUEST_TIMEOUT:?}"))),
    }
}

impl EtcdStore {
    /// Connects to a cluster, by any of its `endpoints` (`http://…` or `https://…`).
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none answers after a bounded number of attempts.
    pub async fn connect(endpoints: &[String], options: Options) -> Result<Self> {
        let client = Client::connect(endpoints, Some(connect_options(options.tls.as_ref())))
            .await
            .map_err(|error| Error::Unavailable(format!("etcd at {}: {error}", endpoints.join(", "))))?;
        let kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE_BYTES);
        let watches = client.watch_client().max_decoding_message_size(MAX_MESSAGE_BYTES);
        let feed = Feed::new(kv.clone(), watches, options.prefix.clone());
        let mut pause = RETRY_PAUSE;
        let mut attempt = 1;
        let revision = loop {
            match feed.beat().await {
                Ok(revision) => break revision,
                Err(Meaning::Unavailable(why)) if attempt >= ATTEMPTS => {
                    return Err(Error::Unavailable(format!("etcd at {}: {why}", endpoints.join(", "))));
                }
                Err(Meaning::Unavailable(_)) => tokio::time::sleep(pause).await,
                Err(other) => return Err(other.into_error(0, 0)),
            }
            attempt += 1;
            pause *= 2;
        };
        let hub = Arc::new(Hub::new(revision));
        let stop = CancellationToken::new();
        tokio::spawn(feed.clone().run(hub.clone(), stop.clone()));
        if !options.compaction_interval.is_zero() {
            tokio::spawn(feed.clone().compact_regularly(options.compaction_interval, stop.clone()));
        }
        Ok(Self { kv, prefix: options.prefix, hub, feed, _stop: stop.drop_guard() })
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// A read, tried again while etcd is unavailable.
    async fn range(&self, key: &str, options: &GetOptions) -> Result<GetResponse, Meaning> {
        let mut pause = RETRY_PAUSE;
        for _ in 1..ATTEMPTS {
            let mut kv = self.kv.clone();
            match bounded(kv.get(key, Some(options.clone()))).await {
                Err(Meaning::Unavailable(_)) => tokio::time::sleep(pause).await,
                other => return other,
            }
            pause *= 2;
        }
        bounded(self.kv.clone().get(key, Some(options.clone()))).await
    }

    /// One conditional write; its revision, or what is there instead.
    async fn write(
        &self,
        key: &str,
        expected: Compare,
        operation: TxnOp,
    ) -> Result<Result<Revision, Option<KeyValue>>> {
        let transaction = Txn::new().when([expected]).and_then([operation]).or_else([TxnOp::get(key, None)]);
        let response = bounded(self.kv.clone().txn(transaction)).await.map_err(|meaning| meaning.into_error(0, 0))?;
        if response.succeeded() {
            return Ok(Ok(response.header().map_or(0, |header| from_etcd(header.revision()))));
        }
        Ok(Err(self.found(&response)))
    }

    fn found(&self, response: &TxnResponse) -> Option<KeyValue> {
        response.op_responses().iter().find_map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().and_then(|kv| key_value(kv, &self.prefix)),
            _ => None,
        })
    }

    /// One piece of a list. Etcd counts what matches from the piece's start on.
    async fn chunk(&self, from: &str, end: Vec<u8>, limit: usize, at: Option<Revision>) -> Result<Page> {
        let mut options = GetOptions::new().with_range(end).with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        if let Some(at) = at {
            // 0 means "latest" to etcd; nothing is older than revision 1.
            options = options.with_revision(to_etcd(at.max(1)));
        }
        let response = match self.range(from, &options).await {
            Ok(response) => response,
            Err(meaning) => return Err(self.explain(meaning, at.unwrap_or(0)).await),
        };
        let items: Vec<KeyValue> = response.kvs().iter().filter_map(|kv| key_value(kv, &self.prefix)).collect();
        let head = response.header().map_or(0, |header| from_etcd(header.revision()));
        let remaining = u64::try_from(response.count()).unwrap_or(0).saturating_sub(items.len() as u64);
        Ok(Page { items, revision: at.unwrap_or(head), remaining })
    }

    /// The seam's error, with the current revision where it is needed.
    async fn explain(&self, meaning: Meaning, requested: Revision) -> Error {
        let current = match meaning {
            Meaning::Future => self.get("/").await.map_or(0, |(_, revision)| revision),
            _ => 0,
        };
        meaning.into_error(requested, current)
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Revision)> {
        let options = GetOptions::new();
        let response = self.range(&self.full(key), &options).await.map_err(|meaning| meaning.into_error(0, 0))?;
        let revision = response.header().map_or(0, |header| from_etcd(header.revision()));
        Ok((response.kvs().first().and_then(|kv| key_value(kv, &self.prefix)), revision))
    }

    async fn list(&self, request: ListRequest<'_>) -> Result<Page> {
        // Paths start with a slash, which keeps our bookkeeping out.
        let prefix = self.full(if request.prefix.is_empty() { "/" } else { request.prefix });
        let mut from = match request.start_after {
            Some(after) if after >= request.prefix => self.full(after) + "\0",
            _ => prefix.clone(),
        };
        let limit = if request.limit == 0 { usize::MAX } else { request.limit };
        let end = range_end(&prefix);
        if from.as_bytes() >= end.as_slice() {
            from.clone_from(&prefix);
            let page = self.chunk(&from, end, 1, request.at).await?;
            return Ok(Page { items: Vec::new(), revision: page.revision, remaining: 0 });
        }
        let mut page = self.chunk(&from, end.clone(), limit.min(LIST_CHUNK), request.at).await?;
        while page.remaining > 0 && page.items.len() < limit {
            let Some(last) = page.items.last() else { break };
            from = self.full(&last.key) + "\0";
            let limit = (limit - page.items.len()).min(LIST_CHUNK);
            let next = self.chunk(&from, end.clone(), limit, Some(page.revision)).await?;
            page.remaining = next.remaining;
            page.items.extend(next.items);
        }
        Ok(page)
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision> {
        check_size(key, &value)?;
        let full = self.full(key);
        let absent = Compare::create_revision(full.as_str(), CompareOp::Equal, 0);
        let put = TxnOp::put(full.as_str(), value, None);
        self.write(&full, absent, put).await?.map_err(|_| Error::Exists)
    }

    async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<Revision> {
        check_size(key, &value)?;
        let full = self.full(key);
        // An absent key compares as revision 0.
        let unchanged = Compare::mod_revision(full.as_str(), CompareOp::Equal, to_etcd(expected.max(1)));
        let put = TxnOp::put(full.as_str(), value, None);
        self.write(&full, unchanged, put).await?.map_err(Error::Conflict)
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision> {
        let full = self.full(key);
        let unchanged = Compare::mod_revision(full.as_str(), CompareOp::Equal, to_etcd(expected.max(1)));
        let delete = TxnOp::delete(full.as_str(), None);
        self.write(&full, unchanged, delete).await?.map_err(Error::Conflict)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        let (subscription, start) = self.hub.subscribe(prefix, from);
        let live = subscription.into_stream();
        if from > start {
            return Ok(live);
        }
        let replay = self.feed.replay(prefix, from.max(1), start).await?;
        Ok(crate::hub::until_error(replay.chain(live)))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        match bounded(self.kv.clone().compact(to_etcd(revision), None)).await {
            Ok(_) | Err(Meaning::Compacted) => Ok(()),
            Err(meaning) => Err(self.explain(meaning, revision).await),
        }
    }
}
