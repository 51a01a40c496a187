//! The operations of registry rows, as upstream's API installer names them. Neither OpenAPI version is known here.

use serde_json::{Map, Value};

use crate::present::discovery;
use crate::registry::{Resource, Subresource, SubresourceKind, Verb};
use crate::schema::roots;

/// What a PATCH of a kind without strategic merge may carry.
pub const MERGE_PATCH_TYPES: &[&str] = &["application/json-patch+json", "application/merge-patch+json"];
/// What a PATCH may carry.
pub const PATCH_TYPES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];
/// Type names of what is the same for all kinds begin with this.
pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// A URL and what can be done there.
pub struct Path {
    /// With `{namespace}` and `{name}` where they apply.
    pub path: String,
    /// In the order of methods.
    pub operations: Vec<Operation>,
}

impl Path {
    /// Parameters of every operation here, and where they stand (`path`, `query`).
    pub fn parameters(&self) -> impl Iterator<Item = (&'static Parameter, &'static str)> {
        let in_path = |(parameter, placeholder)| self.path.contains(placeholder).then_some((parameter, "path"));
        let in_path = [(&NAME, "{name}"), (&NAMESPACE, "{namespace}")].into_iter().filter_map(in_path);
        in_path.chain([(&PRETTY, "query")]).collect::<Vec<_>>().into_iter()
    }
}

/// A Path Item Object, the same in both versions but for its operations and parameters.
pub fn item(
    path: &Path,
    operation: impl Fn(&Operation) -> Value,
    parameter: impl Fn(&Parameter, &str) -> Value,
) -> Value {
    let mut item: Map<String, Value> = path.operations.iter().map(|o| (o.method.to_owned(), operation(o))).collect();
    let parameters: Vec<Value> = path.parameters().map(|(p, place)| parameter(p, place)).collect();
    item.insert("parameters".into(), parameters.into());
    Value::Object(item)
}

/// One method on a URL.
pub struct Operation {
    /// `get`, `put`, …
    pub method: &'static str,
    /// `x-kubernetes-action`
    pub action: &'static str,
    /// `x-kubernetes-group-version-kind`: group, version, kind.
    pub kind: (String, String, String),
    /// `operationId`
    pub id: String,
    /// One line.
    pub description: String,
    /// Query parameters.
    pub query: Vec<&'static Parameter>,
    /// The body's type.
    pub body: Body,
    /// Type of a successful answer.
    pub answer: Answer,
    /// Status codes of success.
    pub codes: &'static [u16],
}

/// What a request carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Nothing.
    None,
    /// An object of a type.
    Object(String),
    /// An object of a kind without a schema of its own.
    AnyObject,
    /// `DeleteOptions`, optional.
    DeleteOptions,
    /// A patch in one of several formats.
    Patch(&'static [&'static str]),
}

/// What a successful answer carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// An object of a type.
    Object(String),
    /// An object of a kind without a schema of its own.
    AnyObject,
    /// A list, which can be watched too.
    List(Option<String>),
    /// Text or a stream.
    Text,
}

/// A parameter of many operations.
#[derive(Debug, PartialEq)]
pub struct Parameter {
    /// Name.
    pub name: &'static str,
    /// `string`, `integer` or `boolean`.
    pub kind: &'static str,
    /// Help.
    pub description: &'static str,
}

const fn parameter(name: &'static str, kind: &'static str, description: &'static str) -> Parameter {
    Parameter { name, kind, description }
}

static NAMESPACE: Parameter =
    parameter("namespace", "string", "object name and auth scope, such as for teams and projects");
static NAME: Parameter = parameter("name", "string", "name of the object");
static PRETTY: Parameter = parameter("pretty", "string", "If 'true', then the output is pretty printed.");

const DRY_RUN: Parameter = parameter(
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. Valid values are: - All: all dry run stages will be \
     processed",
);
const FIELD_MANAGER: Parameter = parameter(
    "fieldManager",
    "string",
    "fieldManager is a name associated with the actor or entity that is making these changes. The value must be less than or \
     128 characters long, and only contain printable characters.",
);
const FIELD_VALIDATION: Parameter = parameter(
    "fieldValidation",
    "string",
    "fieldValidation instructs the server on how to handle objects in the request containing unknown or duplicate fields. Valid \
     values are: - Ignore: drops them silently. - Warn: sends a warning for each. This is the default. - Strict: fails the request \
     with a BadRequest error.",
);
const FORCE: Parameter = parameter(
    "force",
    "boolean",
    "Force is going to \"force\" Apply requests. It must be unset for non-apply patch requests.",
);

const LIST: &[Parameter] = &[
    parameter(
        "allowWatchBookmarks",
        "boolean",
        "allowWatchBookmarks requests watch events with type \"BOOKMARK\". Ignored if this is not a watch.",
    ),
    parameter("continue", "string", "The continue value that the server answered the previous page with."),
    parameter("fieldSelector", "string", "A selector to restrict the list of returned objects by their fields."),
    parameter("labelSelector", "string", "A selector to restrict the list of returned objects by their labels."),
    parameter("limit", "integer", "limit is a maximum number of responses to return for a list call."),
    parameter(
        "resourceVersion",
        "string",
        "resourceVersion sets a constraint on what resource versions a request may be served from. Defaults to unset",
    ),
    parameter(
        "resourceVersionMatch",
        "string",
        "resourceVersionMatch determines how resourceVersion is applied to list calls. Defaults to unset",
    ),
    parameter(
        "sendInitialEvents",
        "boolean",
        "`sendInitialEvents=true` may be set together with `watch=true`: the watch then begins with synthetic events for all \
         objects, followed by a bookmark.",
    ),
    parameter("timeoutSeconds", "integer", "Timeout for the list/watch call."),
    parameter(
        "watch",
        "boolean",
        "Watch for changes to the described resources and return them as a stream of notifications.",
    ),
];
const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    parameter(
        "gracePeriodSeconds",
        "integer",
        "The duration in seconds before the object should be deleted. Zero indicates delete immediately.",
    ),
    parameter("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    parameter(
        "propagationPolicy",
        "string",
        "Whether and how garbage collection will be performed: 'Orphan', 'Background' or 'Foreground'.",
    ),
];
const NO_PARAMETERS: &[Parameter] = &[];

/// `core_v1`, `rbacAuthorization_v1`
pub fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", lower_first(&group_name(group)))
}

/// `Core`, `Apps`, `RbacAuthorization`
fn group_name(group: &str) -> String {
    if group.is_empty() {
        return "Core".to_owned();
    }
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    short.split(['.', '-']).map(upper_first).collect()
}

fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

/// Upstream's name of a row's type, if it has a built-in schema.
pub fn type_name(group: &str, version: &str, kind: &str) -> Option<String> {
    roots::find_any(group, version, kind).map(roots::Root::type_name)
}

fn patch_types(row: &Resource) -> &'static [&'static str] {
    match roots::find(&row.group, &row.version, &row.kind) {
        Some(_) => PATCH_TYPES,
        None => MERGE_PATCH_TYPES,
    }
}

/// Every path of a row, below `base` (`api/v1`, `apis/apps/v1`).
pub fn of_row(base: &str, row: &Resource) -> Vec<Path> {
    let all = format!("/{base}/{}", row.plural);
    let collection =
        if row.namespaced() { format!("/{base}/namespaces/{{namespace}}/{}", row.plural) } else { all.clone() };
    let object = format!("{collection}/{{name}}");
    let mut out = Vec::new();
    if row.namespaced() && row.verbs.contains(&Verb::List) {
        let mut list = operation(row, Verb::List, "");
        list.id = list.id.replacen("Namespaced", "", 1) + "ForAllNamespaces";
        out.push(Path { path: all, operations: vec![list] });
    }
    let at = |verbs: &[Verb]| {
        let served = verbs.iter().filter(|v| row.verbs.contains(v));
        served.map(|v| operation(row, *v, "")).collect::<Vec<_>>()
    };
    out.push(Path { path: collection, operations: at(&[Verb::List, Verb::Create, Verb::DeleteCollection]) });
    out.push(Path { path: object.clone(), operations: at(&[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete]) });
    for subresource in &row.subresources {
        let served = subresource.verbs.iter().map(|v| on_subresource(row, subresource, *v)).collect();
        out.push(Path { path: format!("{object}/{}", subresource.name), operations: served });
    }
    out.retain(|p| !p.operations.is_empty());
    out
}

fn on_subresource(row: &Resource, subresource: &Subresource, verb: Verb) -> Operation {
    let (group, version, kind) = discovery::response_kind(row, subresource);
    let mut out = operation(row, verb, &upper_first(subresource.name));
    out.kind = (group.to_owned(), version.to_owned(), kind.to_owned());
    out.description = format!("{} {} of the specified {}", verb_text(verb), subresource.name, row.kind);
    let own_type = type_name(group, version, kind);
    // Logs, exec and the like have no object; bindings, evictions and token requests do.
    let streams =
        matches!(subresource.kind, SubresourceKind::Custom(_)) && (subresource.gvk.is_none() || own_type.is_none());
    if streams {
        out.query = Vec::new();
        out.body = Body::None;
        out.answer = Answer::Text;
        if subresource.verbs.contains(&Verb::Create) {
            out.action = "connect";
        }
        return out;
    }
    if matches!(out.body, Body::Object(_) | Body::AnyObject) {
        out.body = own_type.clone().map_or(Body::AnyObject, Body::Object);
    }
    out.answer = own_type.map_or(Answer::AnyObject, Answer::Object);
    out
}

fn verb_text(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "create",
        Verb::Delete => "delete",
        Verb::DeleteCollection => "delete collection of",
        Verb::Get => "read",
        Verb::List => "list or watch objects of kind",
        Verb::Patch => "partially update",
        Verb::Update => "replace",
        Verb::Watch => "watch",
    }
}

/// An operation on the row itself; `suffix` is what a subresource adds to its id.
fn operation(row: &Resource, verb: Verb, suffix: &str) -> Operation {
    let own_type = type_name(&row.group, &row.version, &row.kind);
    let object = own_type.clone().map_or(Body::AnyObject, Body::Object);
    let answer = own_type.clone().map_or(Answer::AnyObject, Answer::Object);
    let status = Answer::Object(format!("{META}Status"));
    let list = Answer::List(own_type.map(|name| format!("{name}List")));
    // Method, action, first word of the id, query, body, answer, codes.
    type Shape =
        (&'static str, &'static str, &'static str, &'static [&'static [Parameter]], Body, Answer, &'static [u16]);
    let (method, action, word, query, body, answer, codes): Shape = match verb {
        Verb::Create => ("post", "post", "create", &[WRITE], object, answer, &[200, 201, 202]),
        Verb::Delete => ("delete", "delete", "delete", &[DELETE], Body::DeleteOptions, status, &[200, 202]),
        Verb::DeleteCollection => {
            ("delete", "deletecollection", "delete", &[DELETE, LIST], Body::DeleteOptions, status, &[200])
        }
        Verb::Get => ("get", "get", "read", &[NO_PARAMETERS], Body::None, answer, &[200]),
        Verb::List | Verb::Watch => ("get", "list", "list", &[LIST], Body::None, list, &[200]),
        Verb::Patch => ("patch", "patch", "patch", &[PATCH], Body::Patch(patch_types(row)), answer, &[200, 201]),
        Verb::Update => ("put", "put", "replace", &[WRITE], object, answer, &[200, 201]),
    };
    let (group, version) = (group_name(&row.group), upper_first(&row.version));
    let collection = if verb == Verb::DeleteCollection { "Collection" } else { "" };
    let namespaced = if row.namespaced() { "Namespaced" } else { "" };
    let article = if matches!(verb, Verb::Create) { "a" } else { "the specified" };
    let description = match verb {
        Verb::List | Verb::DeleteCollection | Verb::Watch => format!("{} {}", verb_text(verb), row.kind),
        _ => format!("{} {article} {}", verb_text(verb), row.kind),
    };
    let watchable =
        |p: &&Parameter| verb != Verb::DeleteCollection || !matches!(p.name, "watch" | "allowWatchBookmarks");
    Operation {
        method,
        action,
        kind: (row.group.to_string(), row.version.to_string(), row.kind.to_string()),
        id: format!("{word}{group}{version}{collection}{namespaced}{}{suffix}", row.kind),
        description,
        query: query.iter().flat_map(|set| set.iter()).filter(watchable).collect(),
        body,
        answer,
        codes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::present::fixtures::registry;

    fn row_paths(group: &str, plural: &str) -> Vec<Path> {
        let registry = registry();
        let row = registry.find(group, "v1", plural).unwrap();
        of_row(&super::super::base_path(group, "v1"), row)
    }

    #[test]
    fn ids_and_paths_are_upstreams() {
        let check = |group: &str, plural: &str, want: &[&str]| {
            let all: Vec<String> = row_paths(group, plural)
                .iter()
                .flat_map(|p| p.operations.iter().map(|o| format!("{} {} {}", o.method, p.path, o.id)))
                .collect();
            for line in want {
                assert!(all.iter().any(|have| have == line), "{line} is not among {all:#?}");
            }
        };
        check(
            "",
            "pods",
            &[
                "get /api/v1/pods listCoreV1PodForAllNamespaces",
                "get /api/v1/namespaces/{namespace}/pods listCoreV1NamespacedPod",
                "post /api/v1/namespaces/{namespace}/pods createCoreV1NamespacedPod",
                "delete /api/v1/namespaces/{namespace}/pods deleteCoreV1CollectionNamespacedPod",
                "get /api/v1/namespaces/{namespace}/pods/{name} readCoreV1NamespacedPod",
                "put /api/v1/namespaces/{namespace}/pods/{name} replaceCoreV1NamespacedPod",
                "patch /api/v1/namespaces/{namespace}/pods/{name}/status patchCoreV1NamespacedPodStatus",
            ],
        );
        check("", "nodes", &["get /api/v1/nodes listCoreV1Node", "delete /api/v1/nodes/{name} deleteCoreV1Node"]);
        let scale = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale";
        check("apps", "deployments", &[&format!("get {scale} readAppsV1NamespacedDeploymentScale")]);
        let reviews = row_paths("authorization.k8s.io", "subjectaccessreviews");
        assert_eq!(reviews.len(), 1);
        assert_eq!(reviews[0].operations[0].id, "createAuthorizationV1SubjectAccessReview");
        assert_eq!(tag("rbac.authorization.k8s.io", "v1"), "rbacAuthorization_v1");
    }

    #[test]
    fn kinds_and_types_follow_the_subresource() {
        let all = row_paths("apps", "deployments");
        let scale = &all.iter().find(|p| p.path.ends_with("/scale")).unwrap().operations[0];
        assert_eq!(scale.kind.0, "autoscaling");
        assert_eq!(scale.answer, Answer::Object("io.k8s.api.autoscaling.v1.Scale".into()));
        let patch = all.iter().flat_map(|p| &p.operations).find(|o| o.method == "patch").unwrap();
        let names: Vec<&str> = patch.query.iter().map(|p| p.name).collect();
        assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        let custom = row_paths("example.com", "widgets");
        assert!(custom.iter().flat_map(|p| &p.operations).any(|o| o.body == Body::AnyObject));
    }
}
