//! Claims on cluster IPs and node ports, unique across API servers.
//!
//! A claim is a key in the store (`/ranges/clusterips/10.96.0.7`, `/ranges/nodeports/30080`) that whoever creates it
//! first holds; its value says for which Service. Nothing is cached: the store decides. A claim is dropped only by its
//! owner or by [`repair`], which also re-adds what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt as _;
use scaleup_store::{Error as StoreError, ListRequest, Store};
use serde::{Deserialize, Serialize};

use crate::server::ServerConfig;

/// Random tries before the taken ones are listed.
const RANDOM_TRIES: usize = 16;
/// Tries after that.
const LISTED_TRIES: usize = 64;
/// Keys read at a time.
const PAGE: usize = 1_000;
/// A claim this young may belong to a write in flight (longer than any request lasts).
const IN_FLIGHT_S: i64 = 120;

/// A pool of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pool {
    /// Cluster IPs; the number is the address.
    Ips,
    /// Node ports.
    Ports,
}

impl Pool {
    fn prefix(self) -> &'static str {
        match self {
            Pool::Ips => "/ranges/clusterips/",
            Pool::Ports => "/ranges/nodeports/",
        }
    }
    fn key(self, number: u32) -> String {
        match self {
            Pool::Ips => format!("{}{}", self.prefix(), Ipv4Addr::from(number)),
            Pool::Ports => format!("{}{number}", self.prefix()),
        }
    }
    fn parse(self, key: &str) -> Option<u32> {
        let text = key.strip_prefix(self.prefix())?;
        match self {
            Pool::Ips => text.parse::<Ipv4Addr>().ok().map(u32::from),
            Pool::Ports => text.parse::<u16>().ok().map(u32::from),
        }
    }
}

/// What may be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// First number of the range.
    pub first: u32,
    /// Last number of the range.
    pub last: u32,
    /// First that is chosen unasked; the lower ones are left to users as long as there are others.
    pub dynamic_first: u32,
}

impl Range {
    /// Whether `number` may be handed out.
    pub fn contains(&self, number: u32) -> bool {
        (self.first..=self.last).contains(&number)
    }
    /// The numbers from a random one on, the dynamic part before the rest.
    fn shuffled(self) -> impl Iterator<Item = u32> {
        let start = rand::rng().random_range(self.dynamic_first..=self.last);
        (start..=self.last).chain(self.dynamic_first..start).chain(self.first..self.dynamic_first)
    }
}

/// Why there is no claim.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    /// Somebody else holds it.
    #[error("already allocated")]
    Taken,
    /// None is left.
    #[error("range is full")]
    Full,
    /// The store did not answer.
    #[error("the store failed")]
    Store(#[source] StoreError),
}

/// For whom a claim is held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a second attempt at the same name is another owner.
    pub uid: String,
}

#[derive(Serialize, Deserialize)]
struct Claim {
    #[serde(flatten)]
    owner: Owner,
    /// When, in seconds since 1970.
    since_s: i64,
}

fn now_s() -> i64 {
    scaleup_api::time::now().0.as_second()
}

/// The claims of one server's configuration.
#[derive(Clone)]
pub(super) struct Claims {
    store: Arc<dyn Store>,
    /// The address of the Service `default/kubernetes`: the first of the range, nobody else's.
    pub kubernetes_ip: u32,
    /// Addresses that the other Services may have.
    pub ips: Range,
    /// Node ports that Services may have.
    pub ports: Range,
}

impl Claims {
    /// Over the configured ranges; `None` if the service range is no IPv4 range with room for addresses.
    pub fn new(store: Arc<dyn Store>, config: &ServerConfig) -> Option<Self> {
        let (first, last) = config.node_port_range;
        let (first, last) = (u32::from(first.min(last)), u32::from(first.max(last)));
        let (kubernetes_ip, ips) = ip_range(&config.service_cidr)?;
        let ports = Range { first, last, dynamic_first: first + static_share(last - first + 1) };
        Some(Self { store, kubernetes_ip, ips, ports })
    }

    fn range(&self, pool: Pool) -> Range {
        match pool {
            Pool::Ips => self.ips,
            Pool::Ports => self.ports,
        }
    }

    /// Claims this very number.
    pub async fn claim(&self, pool: Pool, number: u32, owner: &Owner) -> Result<(), ClaimError> {
        match self.store.create(&pool.key(number), claim_value(owner)).await {
            Ok(_) => Ok(()),
            Err(StoreError::Exists) => Err(ClaimError::Taken),
            Err(e) => Err(ClaimError::Store(e)),
        }
    }

    /// Whether nobody holds it (dry runs).
    pub async fn is_free(&self, pool: Pool, number: u32) -> Result<bool, ClaimError> {
        self.store.get(&pool.key(number)).await.map(|(kv, _)| kv.is_none()).map_err(ClaimError::Store)
    }

    /// Claims any number; with `dry_run` only finds one that is free.
    pub async fn claim_any(&self, pool: Pool, owner: &Owner, dry_run: bool) -> Result<u32, ClaimError> {
        let range = self.range(pool);
        for _ in 0..RANDOM_TRIES {
            let number = rand::rng().random_range(range.dynamic_first..=range.last);
            if self.try_one(pool, number, owner, dry_run).await? {
                return Ok(number);
            }
        }
        let taken: BTreeSet<u32> = self.list(pool).await?.into_keys().collect();
        let mut tries = 0;
        for number in range.shuffled().filter(|n| !taken.contains(n)) {
            if self.try_one(pool, number, owner, dry_run).await? {
                return Ok(number);
            }
            tries += 1;
            if tries == LISTED_TRIES {
                break;
            }
        }
        Err(ClaimError::Full)
    }

    async fn try_one(&self, pool: Pool, number: u32, owner: &Owner, dry_run: bool) -> Result<bool, ClaimError> {
        if dry_run {
            return self.is_free(pool, number).await;
        }
        match self.claim(pool, number, owner).await {
            Ok(()) => Ok(true),
            Err(ClaimError::Taken) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Gives a number back, if `owner` holds it. A failure is logged and left to [`repair`].
    pub async fn release(&self, pool: Pool, number: u32, owner: &Owner) {
        let key = pool.key(number);
        let held = match self.store.get(&key).await {
            Ok((Some(held), _)) => held,
            Ok((None, _)) => return,
            Err(error) => {
                tracing::warn!(key, %error, "claim not released; the next repair will");
                return;
            }
        };
        let claim = serde_json::from_slice::<Claim>(&held.value).ok();
        if claim.is_some_and(|c| c.owner == *owner)
            && let Err(error) = self.store.delete(&key, held.mod_revision).await
            && !matches!(error, StoreError::Conflict(_))
        {
            tracing::warn!(key, %error, "claim not released; the next repair will");
        }
    }

    /// Everything claimed, with the revision and value of each claim.
    async fn list(&self, pool: Pool) -> Result<BTreeMap<u32, (u64, Bytes)>, ClaimError> {
        let mut out = BTreeMap::new();
        let mut after: Option<String> = None;
        loop {
            let request = ListRequest { prefix: pool.prefix(), start_after: after.as_deref(), limit: PAGE, at: None };
            let page = self.store.list(request).await.map_err(ClaimError::Store)?;
            let last = page.items.last().map(|kv| kv.key.clone());
            let numbered = page.items.into_iter().filter_map(|kv| Some((pool.parse(&kv.key)?, kv)));
            out.extend(numbered.map(|(number, kv)| (number, (kv.mod_revision, kv.value))));
            match last {
                Some(last) if page.remaining > 0 => after = Some(last),
                _ => return Ok(out),
            }
        }
    }

    /// What is claimed now; taken before the Services are read, so that no claim looks orphaned that is not.
    pub async fn snapshot(&self) -> Result<Snapshot, ClaimError> {
        Ok(Snapshot { ips: self.list(Pool::Ips).await?, ports: self.list(Pool::Ports).await? })
    }

    /// Carries out what [`plan`] found.
    pub async fn apply(&self, fixes: &[Fix]) -> Result<(), ClaimError> {
        for fix in fixes {
            let result = match fix {
                Fix::Drop { pool, number, revision } => self.store.delete(&pool.key(*number), *revision).await,
                Fix::Add { pool, number, owner } => self.store.create(&pool.key(*number), claim_value(owner)).await,
                Fix::Hand { pool, number, revision, owner } => {
                    self.store.update(&pool.key(*number), claim_value(owner), *revision).await
                }
            };
            match result {
                // A lost race is somebody else's right answer; the next repair looks again.
                Ok(_) | Err(StoreError::Exists | StoreError::Conflict(_)) => {}
                Err(e) => return Err(ClaimError::Store(e)),
            }
        }
        Ok(())
    }
}

fn claim_value(owner: &Owner) -> Bytes {
    let claim = Claim { owner: owner.clone(), since_s: now_s() };
    serde_json::to_vec(&claim).unwrap_or_default().into()
}

/// The lower part of a range that is left to users: a sixteenth, at least 16, at most 256, never half of it
/// (KEP-3070, KEP-3668).
fn static_share(size: u32) -> u32 {
    (size / 16).clamp(16, 256).min(size / 2)
}

/// The `kubernetes` Service's address, and the others: without the network's and the broadcast address.
fn ip_range(cidr: &str) -> Option<(u32, Range)> {
    let (ip, bits) = cidr.split_once('/')?;
    let (ip, bits) = (u32::from(ip.parse::<Ipv4Addr>().ok()?), bits.parse::<u32>().ok()?);
    // Two bits of host at least: network, broadcast, the kubernetes Service's and one more.
    if !(1..=30).contains(&bits) {
        return None;
    }
    let size = 1u32 << (32 - bits);
    let network = ip & !(size - 1);
    let (first, last) = (network + 2, network + size - 2);
    let dynamic_first = (network + 1 + static_share(size)).clamp(first, last);
    Some((network + 1, Range { first, last, dynamic_first }))
}

/// Claims of both pools at one time.
pub(super) struct Snapshot {
    ips: BTreeMap<u32, (u64, Bytes)>,
    ports: BTreeMap<u32, (u64, Bytes)>,
}

/// One step of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fix {
    /// A claim that no Service holds.
    Drop {
        /// Which pool.
        pool: Pool,
        /// Which number.
        number: u32,
        /// Of the claim.
        revision: u64,
    },
    /// A number that a Service has and nobody claimed.
    Add {
        /// Which pool.
        pool: Pool,
        /// Which number.
        number: u32,
        /// The Service.
        owner: Owner,
    },
    /// A claim in another Service's name.
    Hand {
        /// Which pool.
        pool: Pool,
        /// Which number.
        number: u32,
        /// Of the claim.
        revision: u64,
        /// The Service that has it.
        owner: Owner,
    },
}

/// Compares claims with what the Services have (`held`); claims younger than a request may last are left alone.
pub(super) fn plan(snapshot: &Snapshot, held: &BTreeMap<(Pool, u32), Owner>) -> Vec<Fix> {
    plan_at(snapshot, held, now_s())
}

fn plan_at(snapshot: &Snapshot, held: &BTreeMap<(Pool, u32), Owner>, now_s: i64) -> Vec<Fix> {
    let mut fixes = Vec::new();
    for (pool, claims) in [(Pool::Ips, &snapshot.ips), (Pool::Ports, &snapshot.ports)] {
        for (&number, (revision, value)) in claims {
            let revision = *revision;
            let claim = serde_json::from_slice::<Claim>(value).ok();
            match held.get(&(pool, number)) {
                Some(owner) if claim.as_ref().is_some_and(|c| c.owner == *owner) => {}
                Some(owner) => fixes.push(Fix::Hand { pool, number, revision, owner: owner.clone() }),
                None if claim.is_some_and(|c| now_s - c.since_s < IN_FLIGHT_S) => {}
                None => fixes.push(Fix::Drop { pool, number, revision }),
            }
        }
        for ((_, number), owner) in held.iter().filter(|((p, n), _)| *p == pool && !claims.contains_key(n)) {
            fixes.push(Fix::Add { pool, number: *number, owner: owner.clone() });
        }
    }
    fixes
}

#[cfg(test)]
mod tests {
    use scaleup_store::memory::MemoryStore;

    use super::*;

    fn claims(cidr: &str, ports: (u16, u16)) -> Claims {
        let config = ServerConfig { service_cidr: cidr.into(), node_port_range: ports, ..ServerConfig::default() };
        Claims::new(Arc::new(MemoryStore::new()), &config).expect("ranges are good")
    }

    fn owner(name: &str) -> Owner {
        Owner { namespace: "default".into(), name: name.into(), uid: name.into() }
    }

    #[test]
    fn ranges() {
        let show = |n: u32| Ipv4Addr::from(n).to_string();
        let (kubernetes, range) = ip_range("10.96.0.0/16").expect("good");
        assert_eq!(show(kubernetes), "10.96.0.1");
        assert_eq!((show(range.first), show(range.last)), ("10.96.0.2".into(), "10.96.255.254".into()));
        assert_eq!(show(range.dynamic_first), "10.96.1.1");
        let (kubernetes, small) = ip_range("10.0.0.8/30").expect("good");
        assert_eq!(
            (show(kubernetes), show(small.first), show(small.last)),
            ("10.0.0.9".into(), "10.0.0.10".into(), "10.0.0.10".into())
        );
        assert_eq!(small.dynamic_first, small.last);
        for bad in ["10.0.0.0/31", "10.0.0.0/0", "10.0.0.0", "fd00::/108", "x/8"] {
            assert_eq!(ip_range(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn every_number_is_handed_out_once_and_comes_back() {
        let claims = claims("10.0.0.0/28", (30_000, 30_009));
        let a = owner("a");
        let mut got = BTreeSet::new();
        for _ in 0..10 {
            assert!(got.insert(claims.claim_any(Pool::Ports, &a, false).await.expect("room")));
        }
        assert!(got.iter().all(|p| (30_000..=30_009).contains(p)));
        assert!(matches!(claims.claim_any(Pool::Ports, &a, false).await, Err(ClaimError::Full)));
        assert!(matches!(claims.claim(Pool::Ports, 30_003, &a).await, Err(ClaimError::Taken)));
        claims.release(Pool::Ports, 30_003, &owner("b")).await;
        assert!(!claims.is_free(Pool::Ports, 30_003).await.expect("store works"), "only the owner releases");
        claims.release(Pool::Ports, 30_003, &a).await;
        assert_eq!(claims.claim_any(Pool::Ports, &a, true).await.expect("room"), 30_003);
        assert!(claims.is_free(Pool::Ports, 30_003).await.expect("store works"), "a dry run keeps nothing");
    }

    #[tokio::test]
    async fn repair_drops_orphans_and_adds_what_is_missing() {
        let claims = claims("10.0.0.0/24", (30_000, 30_100));
        let [kept, wrong, orphan, missing] = [30_001, 30_002, 30_003, 30_004];
        for number in [kept, wrong, orphan] {
            claims.claim(Pool::Ports, number, &owner("a")).await.expect("free");
        }
        let held = BTreeMap::from([
            ((Pool::Ports, kept), owner("a")),
            ((Pool::Ports, wrong), owner("b")),
            ((Pool::Ports, missing), owner("c")),
        ]);
        let snapshot = claims.snapshot().await.expect("store works");
        let young = plan_at(&snapshot, &held, now_s());
        assert!(!young.iter().any(|f| matches!(f, Fix::Drop { .. })), "a write may be in flight: {young:?}");
        let fixes = plan_at(&snapshot, &held, now_s() + IN_FLIGHT_S + 1);
        assert_eq!(fixes.len(), 3, "{fixes:?}");
        claims.apply(&fixes).await.expect("store works");
        let snapshot = claims.snapshot().await.expect("store works");
        assert_eq!(plan_at(&snapshot, &held, now_s() + IN_FLIGHT_S + 1), []);
        assert_eq!(snapshot.ports.keys().copied().collect::<Vec<_>>(), [kept, wrong, missing]);
    }
}
