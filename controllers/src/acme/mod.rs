//! Certificates by ACME (RFC 8555, HTTP-01) for Ingresses and Gateways that ask for them with the annotation
//! [`ANNOTATION`]: the Secrets that their TLS sections name are made, and renewed when a third of their lifetime is left.
//!
//! The key of a reconcile is such a Secret. What proves control of a name is published in a ConfigMap ([`CHALLENGES`]) that every
//! load balancer serves from. Only one instance of the controllers works at a time (leader election), so no name is ordered twice.
//! A Secret that somebody else made is never changed. Certificates are never deleted or revoked.

mod http;
mod order;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, join};
use instant_acme::Account;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use kube::{Api, Resource};
use parking_lot::Mutex;
use tracing::info;

use crate::base::calls::{self, Error};
use crate::base::events::{Recorder, Severity};
use crate::base::key::Key;
use crate::base::worker::{self, Outcome, Reconcile};
use crate::context::Context;
use plan::{Decision, Wanted};

/// Annotation of Ingresses and Gateways, with value `true`.
pub const ANNOTATION: &str = "scaleup.dev/acme";
/// Label of Secrets that this controller made.
pub const MANAGED_LABEL: &str = "scaleup.dev/acme";
/// ConfigMap in `kube-system` with the answers to challenges: token → key authorization. Load balancers serve them.
pub use scaleup_api::well_known::CONFIG_MAP_ACME_CHALLENGES as CHALLENGES;
/// Secret in `kube-system` with the account at the CA.
const ACCOUNT: &str = "scaleup-acme-account";

/// First and longest pause after a failed order; CAs limit how often one may fail.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(6 * 3600);
/// Longest time for one order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);
/// Orders under way at once.
const WORKERS: usize = 2;

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory URL of the CA.
    pub directory: String,
    /// E-mail address that the CA may write to. Setting it means agreeing to the CA's terms of service.
    pub contact: String,
    /// PEM of a CA that the directory's own certificate is verified with, beside the system's.
    pub root_pem: Option<Vec<u8>>,
}

/// Why there is no certificate. Shown to users in an event.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration cannot be used.
    #[error("the ACME configuration cannot be used: {0}")]
    Configuration(String),
    /// The CA refused, or cannot be reached.
    #[error("the CA did not issue a certificate: {0}")]
    Ca(#[from] instant_acme::Error),
    /// A name was not validated.
    #[error(
        "the CA could not validate {name}: {detail}. Does the name point to this load balancer, and is port 80 reachable?"
    )]
    Invalid {
        /// The name.
        name: String,
        /// The CA's words.
        detail: String,
    },
    /// The CA offers no HTTP-01 challenge for a name (a wildcard, say).
    #[error("the CA offers no HTTP-01 challenge for {0}; wildcard names need another way")]
    NoChallenge(String),
    /// It took too long.
    #[error("the order was not complete within {} s", ORDER_TIMEOUT.as_secs())]
    Timeout,
    /// Our own API.
    #[error("the order's state could not be stored")]
    Api(#[from] Error),
}

/// Subscribes and works until shutdown; does nothing unless configured.
pub fn start(cx: Context) -> BoxFuture<'static, ()> {
    let Some(config) = cx.config.acme.clone() else { return cx.shutdown.cancelled_owned().boxed() };
    let queue = cx.queue("acme");
    let q = queue.clone();
    cx.informers.ingresses.subscribe(move |change| {
        for ingress in [change.old, change.new].into_iter().flatten() {
            plan::secrets_of_ingress(ingress).into_iter().for_each(|key| q.add(key));
        }
    });
    let q = queue.clone();
    cx.informers.gateways.subscribe(move |change| {
        for gateway in [change.old, change.new].into_iter().flatten() {
            plan::secrets_of_gateway(gateway).into_iter().for_each(|key| q.add(key));
        }
    });
    cx.informers.acme_secrets.feed(&queue, |change| change.latest());
    let i = cx.informers.clone();
    let controller = Controller {
        recorder: cx.recorder.for_component("acme"),
        config,
        account: tokio::sync::Mutex::new(None),
        failures: Mutex::default(),
        cx: cx.clone(),
    };
    // Gateways may not be served by the API at all: nothing waits for them.
    let caches = join(i.ingresses.synced(), i.acme_secrets.synced());
    async move {
        if !cx.ready(caches).await {
            return;
        }
        let keys = move || {
            let ingresses = i.ingresses.list().into_iter().flat_map(|o| plan::secrets_of_ingress(&o));
            ingresses.chain(i.gateways.list().into_iter().flat_map(|o| plan::secrets_of_gateway(&o))).collect()
        };
        let resync = worker::resync(queue.clone(), cx.config.resync_period, keys, cx.shutdown.clone());
        let workers = worker::run("acme", queue, Arc::new(controller), WORKERS, cx.shutdown.clone());
        tokio::join!(resync, workers);
    }
    .boxed()
}

struct Controller {
    cx: Context,
    config: Config,
    recorder: Recorder,
    /// Opened or made when first needed.
    account: tokio::sync::Mutex<Option<Account>>,
    /// Failures in a row by Secret, and when the next attempt may be made.
    failures: Mutex<HashMap<Key, (u32, tokio::time::Instant)>>,
}

#[async_trait]
impl Reconcile for Controller {
    type Key = Key;

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(wanted) = self.wanted(key) else {
            self.failures.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let api: Api<Secret> = Api::namespaced(self.cx.client.clone(), &key.namespace);
        // The cache has only our own Secrets; somebody else's must be seen, too.
        let existing = calls::call("get Secret", &key.name, api.get_opt(&key.name)).await?;
        match plan::decide(&wanted, existing.as_ref(), Timestamp::now()) {
            Decision::Keep { renew_in } => Ok(Outcome::After(renew_in)),
            Decision::NotOurs => {
                let text = format!(
                    "Secret {} was not made by ACME and is left alone. Delete it or name another one to get a certificate.",
                    key.name
                );
                self.tell(&wanted, Severity::Warning, "AcmeSecretTaken", &text);
                Ok(Outcome::Done)
            }
            Decision::Refuse(why) => {
                self.tell(&wanted, Severity::Warning, "AcmeRefused", &why);
                Ok(Outcome::Done)
            }
            Decision::Order => {
                if let Some(wait) = self.pause(key) {
                    return Ok(Outcome::After(wait));
                }
                self.order(key, &wanted, existing.as_ref()).await
            }
        }
    }
}

impl Controller {
    /// What Ingresses and Gateways of the Secret's namespace want in it.
    fn wanted(&self, key: &Key) -> Option<Wanted> {
        let mut wanted = Wanted::default();
        for ingress in self.cx.informers.ingresses.list_in(&key.namespace) {
            wanted.add(ingress.object_ref(&()), plan::hosts_of_ingress(&ingress, &key.name));
        }
        for gateway in self.cx.informers.gateways.list_in(&key.namespace) {
            wanted.add(gateway.object_ref(&()), plan::hosts_of_gateway(&gateway, &key.name));
        }
        (!wanted.hosts.is_empty()).then_some(wanted)
    }

    async fn order(&self, key: &Key, wanted: &Wanted, existing: Option<&Secret>) -> Result<Outcome, Error> {
        let issued = tokio::time::timeout(ORDER_TIMEOUT, self.issue(wanted)).await.unwrap_or(Err(Failure::Timeout));
        let failure = match issued {
            Ok((chain_pem, key_pem)) => {
                self.failures.lock().remove(key);
                let secret = plan::secret(key, wanted, existing, &chain_pem, &key_pem);
                let api: Api<Secret> = Api::namespaced(self.cx.client.clone(), &key.namespace);
                match existing {
                    Some(_) => calls::replace("update Secret", &api, &key.name, &secret).await?,
                    None => calls::create("create Secret", &api, &key.name, &secret).await?,
                };
                info!(secret = %key, names = wanted.hosts.len(), "certificate issued");
                let names: Vec<&str> = wanted.hosts.iter().map(String::as_str).collect();
                let text = format!("Secret {} has a new certificate for {}", key.name, names.join(", "));
                self.tell(wanted, Severity::Normal, "CertificateIssued", &text);
                return Ok(Outcome::After(Duration::from_secs(1)));
            }
            Err(Failure::Api(error)) => return Err(error),
            Err(failure) => failure,
        };
        let wait = self.note_failure(key);
        let text = format!("{failure}; next attempt in {} s", wait.as_secs());
        tracing::warn!(secret = %key, error = %failure, "no certificate");
        self.tell(wanted, Severity::Warning, "CertificateFailed", &text);
        Ok(Outcome::After(wait))
    }

    /// Certificate chain and key, both PEM.
    async fn issue(&self, wanted: &Wanted) -> Result<(String, String), Failure> {
        let mut account = self.account.lock().await;
        if account.is_none() {
            *account = Some(order::account(&self.cx.client, &self.config, ACCOUNT).await?);
        }
        let account = account.as_ref().ok_or_else(|| Failure::Configuration("no account".into()))?;
        order::run(&self.cx.client, account, wanted).await
    }

    fn tell(&self, wanted: &Wanted, severity: Severity, reason: &str, text: &str) {
        for owner in &wanted.owners {
            let owner: ObjectReference = owner.clone();
            self.recorder.event_about(owner, severity, reason, text.to_owned());
        }
    }

    /// How long to wait before the next attempt.
    fn pause(&self, key: &Key) -> Option<Duration> {
        let next = self.failures.lock().get(key)?.1;
        Some(next.saturating_duration_since(tokio::time::Instant::now())).filter(|wait| !wait.is_zero())
    }

    fn note_failure(&self, key: &Key) -> Duration {
        let mut failures = self.failures.lock();
        let entry = failures.entry(key.clone()).or_insert((0, tokio::time::Instant::now()));
        let wait = (RETRY_MIN * 2u32.saturating_pow(entry.0.min(16))).min(RETRY_MAX);
        *entry = (entry.0 + 1, tokio::time::Instant::now() + wait);
        wait
    }
}
