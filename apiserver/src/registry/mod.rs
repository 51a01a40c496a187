//! The registry: one row per kind, and what a row promises.
//!
//! Discovery, OpenAPI, tables, authorization, the generic handler and the coverage tests all read [`Resource`] rows; none
//! of them knows a kind by name. Built-in rows are in [`table`]; a CRD inserts the same kind of row at run time.

pub mod rules;
pub mod table;

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

pub use rules::{AnyRules, Decoded, RuleContext, Rules, Typed};

use crate::handler::{SubresourceHandler, VirtualCreate, WriteHooks};

/// Text of a row: static for built-in kinds, owned for CRDs.
pub type Text = Cow<'static, str>;

/// Where objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In the cluster.
    Cluster,
}

/// API verbs as RBAC and discovery spell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    /// As RBAC and discovery spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Patch => "patch",
            Verb::Update => "update",
            Verb::Watch => "watch",
        }
    }
}

/// The eight verbs of an ordinary stored kind.
pub const ALL_VERBS: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// A column of `kubectl get` (`metav1.TableColumnDefinition`) and how its cell is computed.
#[derive(Clone, Copy)]
pub struct Column {
    /// Header.
    pub name: &'static str,
    /// `string`, `integer`, `date`, …
    pub kind: &'static str,
    /// `name` for the first column, else usually empty.
    pub format: &'static str,
    /// Help text.
    pub description: &'static str,
    /// 0 is shown always, 1 with `-o wide`.
    pub priority: i32,
    /// The cell, from the object as served. Ages are rendered by the server (`5m`), as upstream does.
    pub cell: fn(&Value) -> Value,
}

/// A field that field selectors may name, beside `metadata.name` and `metadata.namespace`.
#[derive(Clone, Copy, Debug)]
pub struct SelectableField {
    /// Path as selectors spell it, e.g. `spec.nodeName`.
    pub path: &'static str,
    /// Its value, from the object as stored; empty string if unset.
    pub get: fn(&Value) -> String,
}

/// What a subresource does.
#[derive(Clone)]
pub enum SubresourceKind {
    /// `get`, `update`, `patch` on the object itself; only `status` is written.
    Status,
    /// `autoscaling/v1` Scale over `spec.replicas`, `status.replicas` and the selector.
    Scale,
    /// Only `spec.finalizers` of a namespace is written.
    Finalize,
    /// Anything else.
    Custom(Arc<dyn SubresourceHandler>),
}

/// A subresource of a row.
#[derive(Clone)]
pub struct Subresource {
    /// Path segment, e.g. `status`, `log`.
    pub name: &'static str,
    /// Verbs, for discovery and authorization.
    pub verbs: &'static [Verb],
    /// Group, version and kind of the body, where it is not the parent's: (`autoscaling`, `v1`, `Scale`).
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    /// Behaviour.
    pub kind: SubresourceKind,
}

/// Where a row's objects come from.
#[derive(Clone)]
pub enum Storage {
    /// Stored under `/registry/{group or core}/{plural}/…`.
    Own,
    /// A second API version or group over another row's objects (`events.k8s.io` over core events).
    Alias {
        /// Group and plural of the row that stores.
        of: (&'static str, &'static str),
        /// From the body a client sends to the stored form.
        to_stored: fn(Value) -> Value,
        /// From the stored form to what is served.
        from_stored: fn(Value) -> Value,
    },
    /// Nothing is stored; create computes an answer (`SelfSubjectAccessReview`).
    Virtual(Arc<dyn VirtualCreate>),
}

/// One row.
#[derive(Clone)]
pub struct Resource {
    /// API group; empty for core.
    pub group: Text,
    /// Version, e.g. `v1`.
    pub version: Text,
    /// Kind, e.g. `Pod`.
    pub kind: Text,
    /// Plural, e.g. `pods`.
    pub plural: Text,
    /// Singular, e.g. `pod`.
    pub singular: Text,
    /// Short names, e.g. `po`.
    pub short_names: Cow<'static, [Text]>,
    /// Categories, e.g. `all`.
    pub categories: Cow<'static, [Text]>,
    /// Namespaced or cluster.
    pub scope: Scope,
    /// Verbs of the main resource.
    pub verbs: &'static [Verb],
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Storage.
    pub storage: Storage,
    /// Field selectors.
    pub selectable: &'static [SelectableField],
    /// `kubectl get` columns; the first is Name.
    pub columns: &'static [Column],
    /// Whether `metadata.generation` counts changes of everything but metadata and status.
    pub has_generation: bool,
    /// Whether an object's `spec`-level writes must leave `status` alone (there is a status subresource).
    pub has_status: bool,
    /// Types, defaults and validation.
    pub rules: Arc<dyn AnyRules>,
    /// Stateful steps around writes (address allocation), if any.
    pub hooks: Option<Arc<dyn WriteHooks>>,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }
    /// For error messages.
    pub fn group_resource(&self) -> crate::error::GroupResource {
        crate::error::GroupResource { group: self.group.to_string(), resource: self.plural.to_string() }
    }
    /// Group and plural under which the objects are stored.
    pub fn stored_as(&self) -> (&str, &str) {
        match &self.storage {
            Storage::Alias { of, .. } => *of,
            _ => (&self.group, &self.plural),
        }
    }
    /// Whether instances live in a namespace.
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// All rows. Cheap to clone; a CRD change publishes a new one.
#[derive(Clone, Default)]
pub struct Registry {
    rows: Arc<Vec<Arc<Resource>>>,
}

impl Registry {
    /// From rows; the order is the order of discovery.
    pub fn new(rows: Vec<Resource>) -> Self {
        Self { rows: Arc::new(rows.into_iter().map(Arc::new).collect()) }
    }
    /// Every row.
    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.rows
    }
    /// The row served at this group, version and plural.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.rows.iter().find(|r| r.plural == plural && r.group == group && r.version == version)
    }
    /// The row that stores this group and plural.
    pub fn stored(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.rows.iter().find(|r| r.plural == plural && r.group == group && matches!(r.storage, Storage::Own))
    }
    /// The row of a kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.rows.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
    }
}
