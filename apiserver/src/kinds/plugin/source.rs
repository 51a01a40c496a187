//! `spec.source`, `spec.sha256` and what else is base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use scaleup_api::names;
use scaleup_api::plugin::{
    HttpsSource, MAX_INLINE_BYTES, ModuleSource, ObjectKeyRef, ObjectRef, OciSource, Reference, WasmPluginSpec,
    is_sha256,
};
use x509_parser::pem::Pem;

use super::super::custom::length;
use super::super::field::{self, Errors, Path};
use crate::error::FieldError;

const MAX_URL_BYTES: usize = 2048;
const MAX_CA_BYTES: usize = 64 << 10;
const ALL: &str = "exactly one of inline, configMapRef, secretRef, blob, oci and https";

pub fn source(errors: &mut Errors, at: &Path<'_>, spec: &WasmPluginSpec) {
    let ModuleSource { inline, config_map_ref, secret_ref, blob, oci, https } = &spec.source;
    let set = [
        inline.is_some(),
        config_map_ref.is_some(),
        secret_ref.is_some(),
        blob.is_some(),
        oci.is_some(),
        https.is_some(),
    ];
    match set.iter().filter(|set| **set).count() {
        0 => errors.push(FieldError::required(at, ALL)),
        1 => {}
        _ => errors.push(FieldError::forbidden(at, format!("{ALL} may be specified"))),
    }
    sha256(errors, spec);
    if let Some(inline) = inline {
        module(errors, &at.child("inline"), inline);
    }
    for (member, key) in [("configMapRef", config_map_ref), ("secretRef", secret_ref)] {
        if let Some(ObjectKeyRef { name, key, .. }) = key {
            let at = at.child(member);
            field::required_format(errors, &at.child("name"), name, names::dns1123_subdomain);
            field::required_format(errors, &at.child("key"), key, names::config_key);
        }
    }
    if let Some(blob) = blob {
        field::required_format(errors, &at.child("blob"), blob, hexadecimal);
        if spec.sha256.as_ref().is_some_and(|sha256| sha256 != blob) {
            let why = "is not spec.sha256: an uploaded module is named by its SHA-256";
            errors.push(FieldError::invalid(at.child("blob"), blob.as_str(), why));
        }
    }
    if let Some(OciSource { reference, pull_secret, ca_bundle, .. }) = oci {
        let at = at.child("oci");
        let good = |text: &str| Reference::parse(text).map(drop);
        field::required_format(errors, &at.child("reference"), reference, good);
        object(errors, &at.child("pullSecret"), pull_secret.as_ref());
        bundle(errors, &at.child("caBundle"), ca_bundle.as_deref());
    }
    if let Some(HttpsSource { url, ca_bundle, token_secret }) = https {
        let at = at.child("https");
        field::required_format(errors, &at.child("url"), url, address);
        object(errors, &at.child("tokenSecret"), token_secret.as_ref());
        bundle(errors, &at.child("caBundle"), ca_bundle.as_deref());
    }
}

fn sha256(errors: &mut Errors, spec: &WasmPluginSpec) {
    let at = Path::new("spec");
    let at = at.child("sha256");
    match &spec.sha256 {
        Some(sha256) => field::format(errors, &at, sha256, hexadecimal),
        None if spec.source.oci.is_some() || spec.source.https.is_some() => {
            errors
                .push(FieldError::required(at, "what is fetched from elsewhere is only used if it is what was meant"));
        }
        None => {}
    }
}

fn hexadecimal(text: &str) -> Result<(), String> {
    if is_sha256(text) { Ok(()) } else { Err("must be a SHA-256: 64 lower-case hexadecimal digits".into()) }
}

/// Base64 of at most [`MAX_INLINE_BYTES`]. Whether it is a module is found out when it is compiled.
fn module(errors: &mut Errors, at: &Path<'_>, text: &str) {
    if text.is_empty() {
        return errors.push(FieldError::required(at, "a module in base64"));
    }
    if text.len() > MAX_INLINE_BYTES.div_ceil(3) * 4 {
        return errors.push(FieldError::too_long(at, MAX_INLINE_BYTES.div_ceil(3) * 4));
    }
    if let Err(error) = STANDARD.decode(text) {
        errors.push(FieldError::invalid(at, clipped(text), format!("must be base64: {error}")));
    }
}

/// A value that is shown in an error.
fn clipped(text: &str) -> String {
    text.chars().take(32).collect()
}

/// Base64 of exactly so many bytes.
pub fn base64_of(errors: &mut Errors, at: &Path<'_>, text: &str, bytes: usize) {
    if text.is_empty() {
        errors.push(FieldError::required(at, format!("{bytes} bytes in base64")));
    } else if text.len() > 256 || STANDARD.decode(text).map(|decoded| decoded.len()) != Ok(bytes) {
        errors.push(FieldError::invalid(at, clipped(text), format!("must be {bytes} bytes in base64")));
    }
}

fn object(errors: &mut Errors, at: &Path<'_>, reference: Option<&ObjectRef>) {
    if let Some(ObjectRef { name, .. }) = reference {
        field::required_format(errors, &at.child("name"), name, names::dns1123_subdomain);
    }
}

fn bundle(errors: &mut Errors, at: &Path<'_>, pem: Option<&str>) {
    let Some(pem) = pem else { return };
    length(errors, at, pem, MAX_CA_BYTES);
    let mut all = Pem::iter_from_buffer(pem.as_bytes()).peekable();
    let good = all.peek().is_some()
        && all.all(|one| one.is_ok_and(|one| one.label == "CERTIFICATE" && one.parse_x509().is_ok()));
    if !good {
        errors.push(FieldError::invalid(at, clipped(pem), "must be one or more certificates in PEM"));
    }
}

/// `https://host[:port]/…` without a user.
fn address(text: &str) -> Result<(), String> {
    const FORM: &str = "must be an address that begins with 'https://', without user or fragment (e.g. \
                        'https://example.com/plugin.wasm')";
    let parsed: Option<http::Uri> = (text.len() <= MAX_URL_BYTES).then(|| text.parse().ok()).flatten();
    let good = parsed.is_some_and(|uri| {
        let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty()) && plain
    });
    if good && !text.contains('#') { Ok(()) } else { Err(FORM.into()) }
}

/// References have a namespace exactly where the plugin has none.
pub fn scope(errors: &mut Errors, at: &Path<'_>, source: &ModuleSource, namespaced: bool) {
    let key = |key: &Option<ObjectKeyRef>| key.as_ref().map(|key| key.namespace.clone());
    let object = |one: Option<&ObjectRef>| one.map(|one| one.namespace.clone());
    let oci = source.oci.as_ref().and_then(|oci| oci.pull_secret.as_ref());
    let https = source.https.as_ref().and_then(|https| https.token_secret.as_ref());
    for (parent, member, namespace) in [
        ("", "configMapRef", key(&source.config_map_ref)),
        ("", "secretRef", key(&source.secret_ref)),
        ("oci", "pullSecret", object(oci)),
        ("https", "tokenSecret", object(https)),
    ] {
        let Some(namespace) = namespace else { continue };
        let parent = if parent.is_empty() { None } else { Some(at.child(parent)) };
        let at = parent.as_ref().unwrap_or(at).child(member);
        let at = at.child("namespace");
        if namespaced && !namespace.is_empty() {
            errors.push(FieldError::forbidden(at, "a WasmPlugin refers to objects of its own namespace"));
        } else if !namespaced {
            field::required_format(errors, &at, &namespace, names::dns1123_label);
        }
    }
}
