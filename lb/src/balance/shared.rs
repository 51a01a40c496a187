//! Token buckets shared over load balancers by Redis: one script, asked for several tokens at a time.
//!
//! Redis' own clock counts, so load balancers need not agree on the time. Never waits longer than [`PATIENCE`]; after a failure Redis is
//! left alone for [`PAUSE`].

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tokio_util::sync::CancellationToken;

use super::clock;
use super::gcra::Rate;
use crate::config::Hidden;

/// Longest wait for Redis on behalf of a request.
pub(crate) const PATIENCE: Duration = Duration::from_millis(5);
/// How long Redis is not asked after it did not answer.
const PAUSE: Duration = Duration::from_millis(250);
/// First and longest pause between attempts to connect.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// GCRA over one key. Arguments: microseconds per token, burst in microseconds, tokens wanted. Returns the tokens granted, and if there
/// are none the microseconds until there is one.
const SCRIPT: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local emission, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local bucket = tonumber(redis.call('GET', KEYS[1]) or now)
if bucket < now then bucket = now end
local free = math.floor((now + burst - bucket) / emission + 0.0001)
if free < 1 then return {0, math.ceil(bucket + emission - burst - now)} end
local granted = math.min(free, wanted)
bucket = bucket + granted * emission
redis.call('SET', KEYS[1], string.format('%.3f', bucket), 'PX', math.ceil((bucket - now) / 1000) + 1)
return {granted, 0}
";

static GCRA: LazyLock<redis::Script> = LazyLock::new(|| redis::Script::new(SCRIPT));

/// What Redis said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// So many tokens (at least one).
    Granted(u64),
    /// None for so many nanoseconds.
    Denied(u64),
    /// Nothing in time.
    Away,
}

/// The Redis that buckets are shared by, if one is configured.
#[derive(Default)]
pub(crate) struct Shared {
    connection: ArcSwapOption<ConnectionManager>,
    /// Not asked before.
    away_until_ms: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Whether it is worth asking.
    pub fn is_there(&self) -> bool {
        self.connection.load().is_some()
    }

    /// Takes up to `wanted` tokens from the bucket `key`.
    pub(super) async fn take(&self, key: &[u8], rate: Rate, wanted: u64) -> Answer {
        let Some(connection) = self.connection.load_full() else { return Answer::Away };
        if clock::ms(Instant::now()) < self.away_until_ms.load(Relaxed) {
            return Answer::Away;
        }
        let mut connection = ConnectionManager::clone(&connection);
        let micros = |ns: u64| format!("{}.{:03}", ns / 1_000, ns % 1_000);
        let mut call = GCRA.key(key);
        call.arg(micros(rate.emission_ns)).arg(micros(rate.burst_ns)).arg(wanted);
        match tokio::time::timeout(PATIENCE, call.invoke_async::<(u64, u64)>(&mut connection)).await {
            Ok(Ok((0, wait_us))) => Answer::Denied(wait_us.max(1).saturating_mul(1_000)),
            Ok(Ok((granted, _))) => Answer::Granted(granted),
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(%error, "Redis did not count a request; counting here");
                }
                let until = clock::ms(Instant::now() + PAUSE);
                self.away_until_ms.store(until, Relaxed);
                Answer::Away
            }
        }
    }
}

/// Connects to Redis, again and again until it is there; the connection then heals itself.
pub(crate) async fn run(shared: Arc<Shared>, url: Hidden, shutdown: CancellationToken) {
    let mut pause = RETRY_MIN;
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(CONNECT_TIMEOUT))
        .set_number_of_retries(1)
        .set_max_delay(RETRY_MAX);
    loop {
        let connect = async {
            let client = redis::Client::open(url.reveal())?;
            let manager = ConnectionManager::new_with_config(client, config.clone()).await?;
            // Requests have only milliseconds: the script is there before they come.
            GCRA.prepare_invoke().load_async(&mut manager.clone()).await?;
            Ok::<_, redis::RedisError>(manager)
        };
        let connected = tokio::select! {
            connected = connect => connected,
            () = shutdown.cancelled() => return,
        };
        match connected {
            Ok(manager) => {
                shared.connection.store(Some(Arc::new(manager)));
                shutdown.cancelled().await;
                return;
            }
            Err(error) => {
                // The URL may hold a password.
                tracing::warn!(%error, "Redis for shared rate limits is not there; every load balancer counts for itself meanwhile");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
            () = shutdown.cancelled() => return,
        }
    }
}
