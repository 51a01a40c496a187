//! Volumes (`ValidateVolumes`): the kinds that the node agent mounts are looked into, the others are refused.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, ProjectedVolumeSource, ServiceAccountTokenProjection,
    Volume,
};
use scaleup_api::names;
use scaleup_api::quantity::Quantity;

use super::super::field::{self, Errors, Path};
use super::containers::{field_selector, resource_selector};
use super::unsupported;
use crate::error::FieldError;

/// Pod fields that files may hold.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const MIN_TOKEN_S: i64 = 600;
const MAX_TOKEN_S: i64 = 1 << 32;

/// Names are unique, every volume has one source.
pub fn validate(path: &Path<'_>, volumes: &[Volume], errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = path.index(i);
        validate_source(&at, volume, errors);
        field::required_format(errors, &at.child("name"), &volume.name, names::dns1123_label);
        if !seen.insert(&volume.name) {
            errors.push(FieldError::duplicate(at.child("name"), volume.name.as_str()));
        }
    }
}

fn validate_source(at: &Path<'_>, volume: &Volume, errors: &mut Errors) {
    let mut given: Vec<&str> = [
        ("emptyDir", volume.empty_dir.is_some()),
        ("hostPath", volume.host_path.is_some()),
        ("secret", volume.secret.is_some()),
        ("downwardAPI", volume.downward_api.is_some()),
        ("configMap", volume.config_map.is_some()),
        ("projected", volume.projected.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect();
    given.extend(unsupported::volume(at, volume, errors));
    let Some((first, more)) = given.split_first() else {
        errors.push(FieldError::required(at, "must specify a volume type"));
        return;
    };
    for name in more {
        errors.push(FieldError::forbidden(at.child(name), "may not specify more than 1 volume type"));
    }
    let at = at.child(first);
    // As upstream, only the first one is looked into.
    match *first {
        "emptyDir" => {
            let limit = volume.empty_dir.as_ref().and_then(|d| d.size_limit.as_ref());
            if limit.is_some_and(|l| Quantity::parse(&l.0).map_or(true, |q| q.is_negative())) {
                let why = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(at.child("sizeLimit"), why));
            }
        }
        "hostPath" => volume.host_path.iter().for_each(|s| validate_host_path(&at, s, errors)),
        "secret" => {
            let Some(source) = &volume.secret else { return };
            field::required(errors, &at.child("secretName"), field::text(&source.secret_name));
            validate_mode(&at.child("defaultMode"), source.default_mode, errors);
            validate_items(&at.child("items"), field::list(&source.items), errors);
        }
        "configMap" => {
            let Some(source) = &volume.config_map else { return };
            field::required(errors, &at.child("name"), &source.name);
            validate_mode(&at.child("defaultMode"), source.default_mode, errors);
            validate_items(&at.child("items"), field::list(&source.items), errors);
        }
        "downwardAPI" => {
            let Some(source) = &volume.downward_api else { return };
            validate_mode(&at.child("defaultMode"), source.default_mode, errors);
            field::list(&source.items).iter().for_each(|file| validate_file(&at, file, errors));
        }
        "projected" => volume.projected.iter().for_each(|s| validate_projected(&at, s, errors)),
        _ => {}
    }
}

fn validate_mode(at: &Path<'_>, mode: Option<i32>, errors: &mut Errors) {
    if let Some(mode) = mode
        && !(0..=0o777).contains(&mode)
    {
        errors.push(FieldError::invalid(at, mode, MODE));
    }
}

fn validate_host_path(at: &Path<'_>, source: &HostPathVolumeSource, errors: &mut Errors) {
    if source.path.is_empty() {
        errors.push(FieldError::required(at.child("path"), ""));
        return;
    }
    no_backsteps(&at.child("path"), &source.path, errors);
    field::optional_one_of(errors, &at.child("type"), &source.type_, HOST_PATH_TYPES);
}

fn validate_items(path: &Path<'_>, items: &[KeyToPath], errors: &mut Errors) {
    for (i, item) in items.iter().enumerate() {
        let at = path.index(i);
        field::required(errors, &at.child("key"), &item.key);
        field::required(errors, &at.child("path"), &item.path);
        local_non_reserved_path(&at.child("path"), &item.path, errors);
        validate_mode(&at.child("mode"), item.mode, errors);
    }
}

fn validate_file(at: &Path<'_>, file: &DownwardAPIVolumeFile, errors: &mut Errors) {
    field::required(errors, &at.child("path"), &file.path);
    local_non_reserved_path(&at.child("path"), &file.path, errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(selector), other) => {
            field_selector(&at.child("fieldRef"), selector, FILE_FIELDS, errors);
            if other.is_some() {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(at, "resource", why));
            }
        }
        (None, Some(selector)) => resource_selector(&at.child("resourceFieldRef"), selector, true, errors),
        (None, None) => {
            errors.push(FieldError::required(at, "one of fieldRef and resourceFieldRef is required"));
        }
    }
    validate_mode(&at.child("mode"), file.mode, errors);
}

fn validate_projected(at: &Path<'_>, source: &ProjectedVolumeSource, errors: &mut Errors) {
    validate_mode(&at.child("defaultMode"), source.default_mode, errors);
    let sources_at = at.child("sources");
    let mut paths = BTreeSet::new();
    for (i, projection) in field::list(&source.sources).iter().enumerate() {
        let source_at = sources_at.index(i);
        let mut sources = 0;
        let secret = projection.secret.as_ref().map(|s| ("secret", &s.name, &s.items));
        let config = projection.config_map.as_ref().map(|s| ("configMap", &s.name, &s.items));
        for (kind, name, items) in [secret, config].into_iter().flatten() {
            sources += 1;
            let kind_at = source_at.child(kind);
            field::required(errors, &kind_at.child("name"), name);
            validate_items(&kind_at.child("items"), field::list(items), errors);
            for _ in field::list(items).iter().filter(|i| !i.path.is_empty() && !paths.insert(i.path.as_str())) {
                errors.push(FieldError::invalid(at, name.as_str(), "conflicting duplicate paths"));
            }
        }
        if let Some(downward) = &projection.downward_api {
            sources += 1;
            for file in field::list(&downward.items) {
                validate_file(&source_at.child("downwardAPI"), file, errors);
                if !file.path.is_empty() && !paths.insert(&file.path) {
                    errors.push(FieldError::invalid(at, file.path.as_str(), "conflicting duplicate paths"));
                }
            }
        }
        if let Some(token) = &projection.service_account_token {
            sources += 1;
            validate_token(at, &source_at.child("serviceAccountToken"), token, errors);
        }
        if projection.cluster_trust_bundle.is_some() {
            sources += 1;
            unsupported::trust_bundle(&source_at.child("clusterTrustBundle"), errors);
        }
        if sources > 1 {
            errors.push(FieldError::forbidden(source_at, "may not specify more than 1 volume type per source"));
        }
    }
}

fn validate_token(volume_at: &Path<'_>, at: &Path<'_>, token: &ServiceAccountTokenProjection, errors: &mut Errors) {
    let seconds = token.expiration_seconds.unwrap_or_default();
    if seconds < MIN_TOKEN_S {
        let why = "may not specify a duration less than 10 minutes";
        errors.push(FieldError::invalid(at.child("expirationSeconds"), seconds, why));
    }
    if seconds > MAX_TOKEN_S {
        let why = "may not specify a duration larger than 2^32 seconds";
        errors.push(FieldError::invalid(at.child("expirationSeconds"), seconds, why));
    }
    // Upstream reports the path at the volume.
    if token.path.is_empty() {
        errors.push(FieldError::required(volume_at.child("path"), ""));
    } else {
        local_non_reserved_path(&volume_at.child("path"), &token.path, errors);
    }
}

fn no_backsteps(at: &Path<'_>, path: &str, errors: &mut Errors) {
    if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(at, path, "must not contain '..'"));
    }
}

/// Relative and without `..`.
pub fn local_descending_path(at: &Path<'_>, path: &str, errors: &mut Errors) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(at, path, "must be a relative path"));
    }
    no_backsteps(at, path, errors);
}

/// Also does not start with `..`, which the atomic writer of the volume uses.
fn local_non_reserved_path(at: &Path<'_>, path: &str, errors: &mut Errors) {
    local_descending_path(at, path, errors);
    if path.starts_with("..") && !path.starts_with("../") {
        errors.push(FieldError::invalid(at, path, "must not start with '..'"));
    }
}
