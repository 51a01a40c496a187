//! Security contexts of pods and containers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext};

use super::super::field::{self, Errors, Path};
use super::volumes::local_descending_path;
use crate::error::FieldError;

const PROFILE_TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";
const MAX_SYSCTL: usize = 253;
const MAX_APPARMOR_PROFILE: usize = 4095;

/// `validatePodSpecSecurityContext`
pub fn validate_pod(path: &Path<'_>, context: &PodSecurityContext, spec: &PodSpec, errors: &mut Errors) {
    for (name, id) in
        [("fsGroup", context.fs_group), ("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)]
    {
        validate_id(&path.child(name), id, errors);
    }
    let at = path.child("supplementalGroups");
    for (i, id) in field::list(&context.supplemental_groups).iter().enumerate() {
        validate_id(&at.index(i), Some(*id), errors);
    }
    if field::flag(spec.share_process_namespace) && field::flag(spec.host_pid) {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(path.child("shareProcessNamespace"), true, why));
    }
    validate_sysctls(&path.child("sysctls"), context, spec, errors);
    let at = path.child("fsGroupChangePolicy");
    field::optional_one_of(errors, &at, &context.fs_group_change_policy, &["Always", "OnRootMismatch"]);
    let at = path.child("supplementalGroupsPolicy");
    field::optional_one_of(errors, &at, &context.supplemental_groups_policy, &["Merge", "Strict"]);
    validate_seccomp(&path.child("seccompProfile"), context.seccomp_profile.as_ref(), errors);
    validate_apparmor(&path.child("appArmorProfile"), context.app_armor_profile.as_ref(), errors);
}

/// `ValidateSecurityContext`
pub fn validate_container(path: &Path<'_>, context: &SecurityContext, errors: &mut Errors) {
    validate_id(&path.child("runAsUser"), context.run_as_user, errors);
    validate_id(&path.child("runAsGroup"), context.run_as_group, errors);
    let mounts = &["Default", "Unmasked"];
    field::optional_one_of(errors, &path.child("procMount"), &context.proc_mount, mounts);
    if context.proc_mount.as_deref() == Some("Unmasked") {
        let why = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(path.child("procMount"), "Unmasked", why));
    }
    validate_seccomp(&path.child("seccompProfile"), context.seccomp_profile.as_ref(), errors);
    validate_apparmor(&path.child("appArmorProfile"), context.app_armor_profile.as_ref(), errors);
    if context.allow_privilege_escalation != Some(false) {
        return;
    }
    let mut refuse = |what: &str| {
        let why = format!("cannot set `allowPrivilegeEscalation` to false and {what}");
        errors.push(FieldError::invalid(path, field::value_of(context), why));
    };
    if field::flag(context.privileged) {
        refuse("`privileged` to true");
    }
    let added = context.capabilities.iter().flat_map(|c| field::list(&c.add));
    for _ in added.filter(|c| *c == "CAP_SYS_ADMIN") {
        refuse("`capabilities.Add` CAP_SYS_ADMIN");
    }
}

fn validate_id(at: &Path<'_>, id: Option<i64>, errors: &mut Errors) {
    if let Some(id) = id
        && !(0..=i64::from(i32::MAX)).contains(&id)
    {
        errors.push(FieldError::invalid(at, id, ID_RANGE));
    }
}

fn validate_seccomp(path: &Path<'_>, profile: Option<&SeccompProfile>, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    if profile.type_.is_empty() {
        let why = "type is required when seccompProfile is set";
        errors.push(FieldError::required(path.child("type"), why));
    } else {
        field::one_of(errors, &path.child("type"), &profile.type_, PROFILE_TYPES);
    }
    let at = path.child("localhostProfile");
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Localhost", None) => {
            errors.push(FieldError::required(at, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(file)) => local_descending_path(&at, file, errors),
        (_, Some(_)) => {
            let why = "can only be set when seccomp type is Localhost";
            errors.push(FieldError::invalid(at, field::value_of(profile), why));
        }
        _ => {}
    }
}

fn validate_apparmor(path: &Path<'_>, profile: Option<&AppArmorProfile>, errors: &mut Errors) {
    let Some(profile) = profile else { return };
    if profile.type_.is_empty() {
        let why = "type is required when appArmorProfile is set";
        errors.push(FieldError::required(path.child("type"), why));
    } else {
        field::one_of(errors, &path.child("type"), &profile.type_, PROFILE_TYPES);
    }
    let at = path.child("localhostProfile");
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Localhost", None | Some("")) => {
            errors.push(FieldError::required(at, "must be set when AppArmor type is Localhost"));
        }
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                errors.push(FieldError::invalid(at, name, "must not be padded with whitespace"));
            }
            if name.len() > MAX_APPARMOR_PROFILE {
                errors.push(FieldError::too_long(at, MAX_APPARMOR_PROFILE));
            }
        }
        (_, Some(name)) => {
            errors.push(FieldError::invalid(at, name, "can only be set when AppArmor type is Localhost"));
        }
        _ => {}
    }
}

fn validate_sysctls(path: &Path<'_>, context: &PodSecurityContext, spec: &PodSpec, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, sysctl) in field::list(&context.sysctls).iter().enumerate() {
        let at = path.index(i);
        let at = at.child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else if !is_sysctl(name) {
            let why = format!(
                "must have at most {MAX_SYSCTL} characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
            );
            errors.push(FieldError::invalid(at, name, why));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(at, name));
        }
        if field::flag(spec.host_network) && name.starts_with("net") {
            errors.push(FieldError::invalid(at, name, "may not be specified when 'hostNetwork' is true"));
        }
        let ipc = name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name.starts_with("fs.mqueue");
        if field::flag(spec.host_ipc) && (ipc || name == "kernel.sem") {
            errors.push(FieldError::invalid(at, name, "may not be specified when 'hostIPC' is true"));
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(alnum)
            && bytes.last().is_some_and(alnum)
            && bytes.iter().all(|b| alnum(b) || matches!(b, b'-' | b'_'))
    };
    name.len() <= MAX_SYSCTL && name.split(['.', '/']).all(part)
}
