//! One order at the CA, from challenge to certificate, and the account it is made with.

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus,
    RetryPolicy,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use scaleup_api::well_known::NAMESPACE_SYSTEM;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

use super::http::Http;
use super::plan::Wanted;
use super::{CHALLENGES, Config, Failure};
use crate::base::calls;

/// Key of the account's Secret.
const CREDENTIALS: &str = "credentials.json";
/// Key of the directory that the account belongs to.
const DIRECTORY: &str = "directory";
/// How long load balancers get to learn of a challenge (they watch the ConfigMap) before the CA is told to look.
const PROPAGATION: Duration = Duration::from_secs(1);

/// The account of an earlier run, or a new one.
pub(super) async fn account(client: &Client, config: &Config, name: &str) -> Result<Account, Failure> {
    let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE_SYSTEM);
    let builder = || Ok::<_, Failure>(Account::builder_with_http(Box::new(Http::new(config.root_pem.as_deref())?)));
    let stored = calls::call("get Secret", name, api.get_opt(name)).await?;
    let field =
        |key: &str| stored.as_ref().and_then(|secret| secret.data.as_ref()?.get(key).map(|bytes| bytes.0.clone()));
    if field(DIRECTORY).as_deref() == Some(config.directory.as_bytes())
        && let Some(Ok(credentials)) =
            field(CREDENTIALS).map(|bytes| serde_json::from_slice::<AccountCredentials>(&bytes))
    {
        return Ok(builder()?.from_credentials(credentials).await?);
    }
    let contact = format!("mailto:{}", config.contact);
    let new = NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder()?.create(&new, config.directory.clone(), None).await?;
    let credentials = serde_json::to_vec(&credentials).map_err(|e| Failure::Configuration(e.to_string()))?;
    let data = BTreeMap::from([
        (CREDENTIALS.to_owned(), ByteString(credentials)),
        (DIRECTORY.to_owned(), ByteString(config.directory.clone().into_bytes())),
    ]);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.into()),
            resource_version: stored.as_ref().and_then(|secret| secret.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    };
    match stored {
        Some(_) => calls::replace("update Secret", &api, name, &secret).await?,
        None => calls::create("create Secret", &api, name, &secret).await?,
    };
    Ok(account)
}

/// Orders a certificate; chain and key in PEM.
pub(super) async fn run(client: &Client, account: &Account, wanted: &Wanted) -> Result<(String, String), Failure> {
    let identifiers: Vec<Identifier> = wanted.hosts.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let mut tokens = Vec::new();
    let outcome = complete(client, &mut order, &mut tokens).await;
    // Whatever became of it, nobody asks for these any more.
    let removed = publish(client, tokens.iter().map(|token| (token.clone(), Value::Null)).collect()).await;
    let outcome = outcome?;
    removed?;
    Ok(outcome)
}

async fn complete(
    client: &Client,
    order: &mut instant_acme::Order,
    tokens: &mut Vec<String>,
) -> Result<(String, String), Failure> {
    let mut answers = Map::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = authorization.identifier().to_string();
        let challenge = authorization.challenge(ChallengeType::Http01).ok_or(Failure::NoChallenge(name))?;
        tokens.push(challenge.token.clone());
        answers.insert(challenge.token.clone(), challenge.key_authorization().as_str().into());
    }
    if !answers.is_empty() {
        publish(client, answers).await?;
        tokio::time::sleep(PROPAGATION).await;
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        if let Some(mut challenge) = authorization.challenge(ChallengeType::Http01) {
            challenge.set_ready().await?;
        }
    }
    let status = order.poll_ready(&RetryPolicy::default()).await?;
    if status != OrderStatus::Ready && status != OrderStatus::Valid {
        return Err(invalid(order).await);
    }
    let key_pem = order.finalize().await?;
    let chain_pem = order.poll_certificate(&RetryPolicy::default()).await?;
    Ok((chain_pem, key_pem))
}

/// Which name failed, and why.
async fn invalid(order: &mut instant_acme::Order) -> Failure {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() || authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let problem = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        let detail = problem.and_then(|problem| problem.detail.clone()).unwrap_or_else(|| "no reason given".into());
        return Failure::Invalid { name: authorization.identifier().to_string(), detail };
    }
    Failure::Invalid { name: "a name".into(), detail: "no reason given".into() }
}

/// Adds answers to challenges, or removes those that are null.
async fn publish(client: &Client, answers: Map<String, Value>) -> Result<(), Failure> {
    if answers.is_empty() {
        return Ok(());
    }
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE_SYSTEM);
    let patch = json!({"data": answers});
    match calls::merge("patch ConfigMap", &api, CHALLENGES, &patch).await {
        Err(e) if e.is_not_found() => {
            let data =
                answers.into_iter().filter_map(|(token, answer)| Some((token, answer.as_str()?.to_owned()))).collect();
            let metadata = ObjectMeta { name: Some(CHALLENGES.into()), ..ObjectMeta::default() };
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            calls::create("create ConfigMap", &api, CHALLENGES, &map).await?;
            Ok(())
        }
        other => other.map(drop).map_err(Failure::Api),
    }
}
