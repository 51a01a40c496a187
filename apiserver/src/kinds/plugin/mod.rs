//! WasmPlugin, ClusterWasmPlugin and WasmModule (policy.scaleup.dev): every field is what its documentation in `scaleup_api::plugin` says.

mod binding;
pub mod content;
mod source;
#[cfg(test)]
mod tests;

use scaleup_api::plugin::{
    CONDITIONS, MAX_CONFIG_BYTES, PluginFailurePolicy, Recording, Rollout, RolloutPhase, Signature, WORLDS,
    WasmModuleSpec, WasmModuleStatus, WasmPluginSpec, WasmPluginStatus, parse_limits,
};

use super::custom::{SpecRules, StatusRules, conditions, count, duration, length, or_default, pending, range};
use super::field::{self, Errors, Path};
use super::gateway::text;
use crate::error::FieldError;

/// Most steps of a canary.
const MAX_STEPS: usize = 16;
/// Most processes that report on one plugin.
const MAX_HOLDERS: usize = 1024;
const MAX_MESSAGE_BYTES: usize = 1024;
/// Most header names in `recording.plainHeaders`.
const MAX_PLAIN_HEADERS: usize = 64;
/// Values of the fields of `failurePolicy`.
const ON_FAILURE: &[&str] = &["BuiltIn", "Refuse"];

impl SpecRules for WasmPluginSpec {
    fn fill(&mut self) {
        let default = if self.world == "admission" { "Refuse" } else { "BuiltIn" };
        let PluginFailurePolicy { fetch, compile, trap, timeout, invalid_output } =
            self.failure_policy.get_or_insert_default();
        for field in [fetch, compile, trap, timeout, invalid_output] {
            or_default(field, default);
        }
        if let Some(rollout) = &mut self.rollout {
            rollout.max_error_percent.get_or_insert(1);
        }
        if let Some(scheduling) = &mut self.scheduling {
            scheduling.weight.get_or_insert(1);
        }
    }

    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        field::one_of(errors, &at.child("world"), &self.world, &WORLDS);
        source::source(errors, &at.child("source"), self);
        if let Some(signature) = &self.signature {
            let Signature { public_key, value } = signature;
            let at = at.child("signature");
            source::base64_of(errors, &at.child("publicKey"), public_key, 32);
            source::base64_of(errors, &at.child("value"), value, 64);
        }
        if let Some(config) = &self.config
            && config.to_string().len() > MAX_CONFIG_BYTES
        {
            errors.push(FieldError::too_long(at.child("config"), MAX_CONFIG_BYTES));
        }
        if let Some(limits) = &self.limits {
            let at = at.child("limits");
            for (member, why) in parse_limits(limits).err().unwrap_or_default() {
                let given = field::value_of(limits).get(member).cloned().unwrap_or_default();
                errors.push(FieldError::invalid(at.child(member), given, why));
            }
        }
        if let Some(policy) = &self.failure_policy {
            failure_policy(errors, &at.child("failurePolicy"), policy);
        }
        if let Some(part) = &self.rollout {
            rollout(errors, &at.child("rollout"), part);
        }
        if let Some(part) = &self.recording {
            recording(errors, &at.child("recording"), part);
        }
    }

    fn validate_scope(&self, namespaced: bool, at: &Path<'_>, errors: &mut Errors) {
        source::scope(errors, &at.child("source"), &self.source, namespaced);
        binding::bindings(errors, at, self, namespaced);
    }

    fn validate_update(&self, old: &Self, at: &Path<'_>, errors: &mut Errors) {
        field::immutable(errors, &at.child("world"), &self.world, &old.world);
    }
}

fn failure_policy(errors: &mut Errors, at: &Path<'_>, policy: &PluginFailurePolicy) {
    for (member, value) in [
        ("fetch", &policy.fetch),
        ("compile", &policy.compile),
        ("trap", &policy.trap),
        ("timeout", &policy.timeout),
        ("invalidOutput", &policy.invalid_output),
    ] {
        field::optional_one_of(errors, &at.child(member), value, ON_FAILURE);
    }
}

fn rollout(errors: &mut Errors, at: &Path<'_>, rollout: &Rollout) {
    if let Some(RolloutPhase { duration: time, decisions, max_difference_percent }) = &rollout.shadow {
        let at = at.child("shadow");
        duration(errors, &at.child("duration"), time.as_deref());
        field::non_negative(errors, &at.child("decisions"), *decisions);
        range(errors, &at.child("maxDifferencePercent"), *max_difference_percent, 0, 100);
    }
    range(errors, &at.child("maxErrorPercent"), rollout.max_error_percent, 0, 100);
    let list = at.child("canary");
    if count(errors, &list, rollout.canary.len(), 0, MAX_STEPS) {
        return;
    }
    let mut before = 0;
    for (i, step) in rollout.canary.iter().enumerate() {
        let at = list.index(i);
        range(errors, &at.child("percent"), Some(step.percent), 1, 99);
        if step.percent <= before && (1..=99).contains(&step.percent) {
            let why = format!("must be more than in the step before ({before})");
            errors.push(FieldError::invalid(at.child("percent"), step.percent, why));
        }
        before = step.percent;
        duration(errors, &at.child("duration"), step.duration.as_deref());
        field::non_negative(errors, &at.child("decisions"), step.decisions);
    }
}

fn recording(errors: &mut Errors, at: &Path<'_>, recording: &Recording) {
    range(errors, &at.child("samplePercent"), recording.sample_percent, 1, 100);
    range(errors, &at.child("maxRecords"), recording.max_records, 1, 10_000);
    let list = at.child("plainHeaders");
    if !count(errors, &list, recording.plain_headers.len(), 0, MAX_PLAIN_HEADERS) {
        let headers = recording.plain_headers.iter().enumerate();
        headers.for_each(|(i, header)| field::required_format(errors, &list.index(i), header, text::token));
    }
}

impl StatusRules for WasmPluginStatus {
    fn initial() -> Option<Self> {
        Some(Self { conditions: CONDITIONS.map(pending).into(), ..Self::default() })
    }

    fn validate(&self, at: &Path<'_>, errors: &mut Errors) {
        conditions(errors, &at.child("conditions"), &self.conditions, 0);
        let list = at.child("holders");
        if count(errors, &list, self.holders.len(), 0, MAX_HOLDERS) {
            return;
        }
        for (name, holder) in &self.holders {
            let at = list.key(name);
            length(errors, &at, name, text::MAX_NAME);
            length(errors, &at.child("message"), &holder.message, MAX_MESSAGE_BYTES);
            length(errors, &at.child("state"), &holder.state, text::MAX_NAME);
        }
    }
}

impl SpecRules for WasmModuleSpec {
    fn fill(&mut self) {
        or_default(&mut self.origin, "Upload");
    }

    fn validate(&self, _: &str, at: &Path<'_>, errors: &mut Errors) {
        field::optional_one_of(errors, &at.child("origin"), &self.origin, &["Fetch", "Upload"]);
    }
}

impl StatusRules for WasmModuleStatus {}
