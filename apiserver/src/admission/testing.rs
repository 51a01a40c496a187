//! Writes for tests of plugins.

use serde_json::Value;

use super::{Attributes, Notes};
use crate::auth::testing::user;
use crate::present::fixtures;
use crate::registry::{Resource, Scope, Verb};
use crate::user::UserInfo;

/// A write, and what plugins make of it.
pub(super) struct Write {
    pub resource: Resource,
    pub verb: Verb,
    pub subresource: Option<&'static str>,
    pub user: UserInfo,
    pub object: Value,
    pub old: Option<Value>,
    pub namespace: String,
    pub name: String,
}

impl Write {
    pub fn create(group: &'static str, kind: &'static str, plural: &'static str, object: Value) -> Self {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let mut resource = fixtures::resource(group, "v1", kind, plural);
        if namespace.is_empty() {
            resource.scope = Scope::Cluster;
        }
        Self {
            resource,
            verb: Verb::Create,
            subresource: None,
            user: user("alice", &[]),
            object,
            old: None,
            namespace,
            name,
        }
    }

    pub fn update(group: &'static str, kind: &'static str, plural: &'static str, object: Value, old: Value) -> Self {
        Self { verb: Verb::Update, old: Some(old), ..Self::create(group, kind, plural, object) }
    }

    pub fn delete(group: &'static str, kind: &'static str, plural: &'static str, old: Value) -> Self {
        let write = Self::create(group, kind, plural, old.clone());
        Self { verb: Verb::Delete, old: Some(old), object: Value::Null, ..write }
    }

    pub fn by(self, user: UserInfo) -> Self {
        Self { user, ..self }
    }

    pub fn sub(self, subresource: &'static str) -> Self {
        Self { subresource: Some(subresource), ..self }
    }

    pub fn with<T>(&mut self, f: impl FnOnce(&mut Attributes<'_>) -> T) -> T {
        let mut warnings = Vec::new();
        f(&mut Attributes {
            resource: &self.resource,
            subresource: self.subresource,
            verb: self.verb,
            namespace: &self.namespace,
            name: &self.name,
            user: &self.user,
            object: &mut self.object,
            old: self.old.as_ref(),
            dry_run: false,
            warnings: &mut warnings,
            notes: &Notes::default(),
        })
    }
}
