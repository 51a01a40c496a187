//! From source to version: fetched, verified, compiled, probed, stored.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use scaleup_api::plugin::{PluginAttempt, PluginVersion, Signature, WasmPluginSpec};
use scaleup_plugins::{NotStaged, Rejection};

use super::status::{State, Work};
use super::{Controller, Plugin, source, store};
use crate::base::calls::Error;
use crate::base::events::Severity;
use crate::base::worker::Outcome;

/// Lower-case hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    let sum = digest::digest(&digest::SHA256, bytes);
    sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the bytes are those that were meant.
fn verify(spec: &WasmPluginSpec, bytes: &[u8], sum: &str) -> Result<(), (&'static str, String)> {
    let wanted = spec.sha256.as_ref().or(spec.source.blob.as_ref());
    if let Some(wanted) = wanted.filter(|wanted| *wanted != sum) {
        return Err(("DigestMismatch", format!("the module's SHA-256 is {sum}, not {wanted}")));
    }
    let Some(Signature { public_key, value }) = &spec.signature else { return Ok(()) };
    let decoded = STANDARD.decode(public_key).ok().zip(STANDARD.decode(value).ok());
    let good = decoded.is_some_and(|(key, value)| UnparsedPublicKey::new(&ED25519, key).verify(bytes, &value).is_ok());
    if good { Ok(()) } else { Err(("SignatureInvalid", "the signature is not this key's for this module".into())) }
}

/// Does what is to be done until there is a version, or it is clear that there is none.
pub async fn stage(controller: &Controller, plugin: &Plugin, work: &mut Work) -> Result<Outcome, Error> {
    work.status.observed_generation = Some(plugin.generation);
    let bytes = match source::fetch(&controller.cx.client, plugin).await {
        Ok(bytes) => bytes,
        Err(error) => {
            work.failed("Fetched", "FetchFailed", error.to_string());
            return Ok(Outcome::Backoff);
        }
    };
    let sum = sha256(&bytes);
    let known = work.status.latest.as_ref();
    let unknown = |condition: &Condition| condition.type_ == "Verified" && condition.status == "Unknown";
    // What was away and is back again goes through all of it, so that the conditions say so.
    let anew = work.status.conditions.iter().any(unknown);
    if work.is_settled() && !anew && known.is_some_and(|known| known.digest.as_ref() == Some(&sum)) {
        work.condition("Fetched", State::True, "Fetched", fetched(&bytes, &sum));
        return Ok(Outcome::Done);
    }
    work.condition("Fetched", State::True, "Fetched", fetched(&bytes, &sum));
    work.status.latest =
        Some(PluginAttempt { generation: plugin.generation, digest: Some(sum.clone()), ..PluginAttempt::default() });
    let spec = &plugin.spec;
    if let Err((reason, message)) = verify(spec, &bytes, &sum) {
        // What comes from elsewhere may be right the next time.
        let final_ = spec.source.https.is_none() && spec.source.oci.is_none();
        work.rejected("Verified", reason, message, final_);
        return Ok(if final_ { Outcome::Done } else { Outcome::Backoff });
    }
    let how = if spec.signature.is_some() { "digest and signature are right" } else { "the digest is right" };
    work.condition("Verified", State::True, "Verified", format!("{how}: sha256:{sum}"));
    match controller.stager.stage(&spec.world, &bytes, spec.config.as_ref(), spec.limits.as_ref()).await {
        Ok(()) => {}
        Err(NotStaged::Rejected(Rejection { condition, reason, message })) => {
            if condition == "Probed" {
                work.condition("Compiled", State::True, "Compiled", compiled(spec));
            }
            work.rejected(condition, reason, message, true);
            return Ok(Outcome::Done);
        }
        Err(NotStaged::Retry(why)) => {
            work.condition("Compiled", State::Unknown, "CompilerUnavailable", why);
            return Ok(Outcome::Backoff);
        }
    }
    work.condition("Compiled", State::True, "Compiled", compiled(spec));
    work.condition(
        "Probed",
        State::True,
        "Probed",
        "configuration and examples are as the component wants them".into(),
    );
    let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    store::put(&controller.cx.client, plugin.modules(), &sum, bytes).await?;
    adopt(plugin, work, sum, size);
    Ok(Outcome::Done)
}

fn fetched(bytes: &[u8], sum: &str) -> String {
    format!("{} bytes, sha256:{sum}", bytes.len())
}

fn compiled(spec: &WasmPluginSpec) -> String {
    format!("it is a component of the world {}", spec.world)
}

/// Whether two versions decide alike.
fn same(a: &PluginVersion, b: &PluginVersion) -> bool {
    (&a.digest, &a.config, &a.limits, &a.signature) == (&b.digest, &b.config, &b.limits, &b.signature)
}

/// What was staged is the active version, the candidate or the previous one already, or becomes the active one or the candidate.
fn adopt(plugin: &Plugin, work: &mut Work, digest: String, size: i64) {
    let spec = &plugin.spec;
    let mut wanted = PluginVersion {
        number: work.status.versions.unwrap_or(0) + 1,
        generation: plugin.generation,
        digest,
        size,
        config: spec.config.clone(),
        limits: spec.limits.clone(),
        failure_policy: spec.failure_policy.clone(),
        signature: spec.signature.clone(),
        ..PluginVersion::default()
    };
    let is_same = |version: &Option<PluginVersion>| version.as_ref().is_some_and(|version| same(version, &wanted));
    let (active, candidate) = (is_same(&work.status.active), is_same(&work.status.candidate));
    let back = !active && !candidate && is_same(&work.status.previous);
    let policy = spec.failure_policy.clone();
    let number = if active {
        // A failure policy is in force at once.
        let number = work.status.active.as_mut().map(|active| {
            (active.failure_policy, active.generation) = (policy, plugin.generation);
            active.number
        });
        if work.status.candidate.take().is_some() {
            work.say(
                Severity::Normal,
                "Withdrawn",
                "the version that decides is the one that is asked for again".into(),
            );
        }
        number
    } else if candidate {
        work.status.candidate.as_mut().map(|candidate| {
            (candidate.failure_policy, candidate.generation) = (policy, plugin.generation);
            candidate.number
        })
    } else if back {
        // Whoever goes back is in a hurry, and that version has proved itself.
        let previous = work.status.previous.take();
        let number = previous.as_ref().map(|previous| previous.number);
        if let Some(previous) = previous {
            work.activate(PluginVersion { generation: plugin.generation, failure_policy: policy, ..previous }, true);
            work.say(Severity::Normal, "RolledBack", format!("version {} decides again", number.unwrap_or(0)));
        }
        number
    } else {
        let number = wanted.number;
        work.status.versions = Some(number);
        if work.status.active.is_none() || !super::rollout::has_phases(spec) {
            work.activate(wanted, false);
            work.say(Severity::Normal, "Activated", format!("version {number} decides"));
        } else {
            super::rollout::begin(spec, &mut wanted, work.now);
            work.say(Severity::Normal, "RolloutStarted", format!("version {number} is tried: {}", wanted.phase));
            work.status.candidate = Some(wanted);
        }
        Some(number)
    };
    if let Some(latest) = &mut work.status.latest {
        latest.number = number;
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

    use super::*;

    #[test]
    fn digests_and_signatures_are_checked() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let sum = sha256(b"abc");
        assert!(sum.starts_with("ba7816bf"));
        let mut spec = WasmPluginSpec { sha256: Some(sum.clone()), ..WasmPluginSpec::default() };
        assert_eq!(verify(&spec, b"abc", &sum), Ok(()));
        let value = STANDARD.encode(pair.sign(b"abc"));
        spec.signature = Some(Signature { public_key: STANDARD.encode(pair.public_key()), value });
        assert_eq!(verify(&spec, b"abc", &sum), Ok(()));
        spec.sha256 = None;
        assert_eq!(verify(&spec, b"abd", &sha256(b"abd")).unwrap_err().0, "SignatureInvalid");
        spec.sha256 = Some(sum);
        assert_eq!(verify(&spec, b"abd", &sha256(b"abd")).unwrap_err().0, "DigestMismatch");
    }
}
