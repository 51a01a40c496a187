//! Strategic merge patch: `k8s.io/apimachinery/pkg/util/strategicpatch`, server side.
//!
//! A merge patch that knows from the schema which lists merge by key, with directives for what a merge cannot say: `$patch`
//! (replace or delete a map or list item), `$deleteFromPrimitiveList/x`, `$setElementOrder/x` and `$retainKeys`. Unlike upstream,
//! directives and nulls never survive into the result, and nothing here is a server error.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::unprocessable;
use crate::error::ApiError;
use crate::schema::graph::{Lookup, Node};
use crate::schema::table::Extra;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

/// Why a patch was refused; wording as upstream's `mergepatch` package.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("invalid patch format of primitive list")]
    BadPrimitiveList,
    #[error("invalid patch format of retainKeys")]
    BadRetainKeys,
    #[error("invalid patch format of setElementOrder list")]
    BadElementOrder,
    #[error("unknown patch type: {0} in map: {1}")]
    BadDirective(Value, String),
    #[error("merging lists cannot yet be specified in the patch")]
    MergeDirectiveInList,
    #[error("unable to find api field in struct {0} for the json field {1:?}")]
    UnknownField(&'static str, String),
    #[error("map: {0} does not contain declared merge key: {1}")]
    NoMergeKey(String, &'static str),
    #[error("cannot merge lists without merge key for {0}")]
    NoKeyDeclared(&'static str),
    #[error("lists of lists are not supported")]
    ListOfLists,
    #[error("list element types are not identical in {0:?}")]
    MixedList(String),
    #[error("the order in patch list doesn't match $setElementOrder list of {0:?}")]
    OrderMismatch(String),
    #[error("expected a list in {0:?}")]
    NotAList(String),
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::BadPrimitiveList | Error::BadRetainKeys | Error::BadElementOrder | Error::BadDirective(..) => {
                ApiError::bad_request(error.to_string())
            }
            _ => unprocessable(error.to_string()),
        }
    }
}

/// How a field merges.
#[derive(Clone, Copy)]
struct Field {
    node: Option<Node>,
    extra: Option<&'static Extra>,
}

impl Field {
    fn merges(self) -> bool {
        self.extra.is_some_and(|e| e.merge)
    }
    fn merge_key(self) -> &'static str {
        self.extra.map_or("", |e| e.merge_key)
    }
    fn type_name(self) -> &'static str {
        self.node.map_or("object", Node::type_name)
    }
    fn item(self) -> Option<Node> {
        self.node.and_then(Node::item)
    }
}

/// Patches a copy of `object`, whose kind's schema is `node`. `patch` is a JSON object.
pub fn apply(node: Node, object: &Value, patch: Value) -> Result<Value, ApiError> {
    let mut out = object.as_object().cloned().unwrap_or_default();
    if let Value::Object(patch) = patch {
        merge_map(&mut out, patch, Some(node))?;
    }
    Ok(Value::Object(out))
}

fn lookup(node: Option<Node>, name: &str) -> Result<Field, Error> {
    let Some(parent) = node else { return Ok(Field { node: None, extra: None }) };
    match parent.field(name) {
        Lookup::Known(node, extra) => Ok(Field { node: Some(node), extra }),
        Lookup::Opaque => Ok(Field { node: None, extra: None }),
        Lookup::Unknown => Err(Error::UnknownField(parent.type_name(), name.to_owned())),
    }
}

// ---- maps ----

fn merge_map(
    original: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    node: Option<Node>,
) -> Result<(), Error> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(directive)) if directive == "merge" => {}
        Some(Value::String(directive)) if directive == "replace" => {
            *original = without_directives(patch);
            return Ok(());
        }
        Some(Value::String(directive)) if directive == "delete" => {
            original.clear();
            return Ok(());
        }
        Some(other) => return Err(Error::BadDirective(other, Value::Object(patch).to_string())),
    }
    retain_keys(original, &mut patch)?;
    let orders: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER_PREFIX)).cloned().collect();
    for key in orders {
        if let Some(order) = patch.remove(&key) {
            merge_ordered(original, &mut patch, &key[ORDER_PREFIX.len()..], order, node)?;
        }
    }
    for (key, value) in patch {
        match key.strip_prefix(DELETE_PREFIX) {
            Some(name) => delete_from_list(original, name, value)?,
            None => merge_field(original, key, value, node)?,
        }
    }
    Ok(())
}

fn merge_field(original: &mut Map<String, Value>, key: String, value: Value, node: Option<Node>) -> Result<(), Error> {
    match (original.get_mut(&key), value) {
        (_, Value::Null) => {
            original.remove(&key);
        }
        (Some(Value::Object(into)), Value::Object(from)) => merge_map(into, from, lookup(node, &key)?.node)?,
        (Some(Value::Array(into)), Value::Array(from)) => {
            let field = lookup(node, &key)?;
            let merged = if field.merges() {
                merge_list(std::mem::take(into), from, field, &key)?
            } else {
                from.into_iter().filter_map(clean).collect()
            };
            *into = merged;
        }
        (_, value) => match clean(value) {
            Some(value) => {
                original.insert(key, value);
            }
            None => {
                original.remove(&key);
            }
        },
    }
    Ok(())
}

/// `$retainKeys`: fields of the original that are not listed go; every field of the patch must be listed.
fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Error> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(listed) = directive else { return Err(Error::BadRetainKeys) };
    let listed: HashSet<&str> = listed.iter().filter_map(Value::as_str).collect();
    let is_field = |key: &str, value: &Value| {
        !value.is_null() && !key.starts_with(DELETE_PREFIX) && !key.starts_with(ORDER_PREFIX)
    };
    if patch.iter().any(|(key, value)| is_field(key, value) && !listed.contains(key.as_str())) {
        return Err(Error::BadRetainKeys);
    }
    original.retain(|key, _| listed.contains(key.as_str()));
    Ok(())
}

/// A value that is new to the object: without nulls and directives. `None` if it is a map that only carries a directive.
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => Some(Value::Object(without_directives(map))),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(clean).collect())),
        other => Some(other),
    }
}

fn without_directives(map: Map<String, Value>) -> Map<String, Value> {
    let is_directive =
        |key: &str| key == RETAIN_KEYS || key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX);
    map.into_iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .filter_map(|(key, value)| Some((key, clean(value)?)))
        .collect()
}

// ---- lists ----

fn delete_from_list(original: &mut Map<String, Value>, name: &str, directive: Value) -> Result<(), Error> {
    let Value::Array(gone) = directive else { return Err(Error::BadPrimitiveList) };
    if name.is_empty() || gone.iter().any(|v| v.is_object() || v.is_array()) {
        return Err(Error::BadPrimitiveList);
    }
    if let Some(Value::Array(items)) = original.get_mut(name) {
        let gone: HashSet<&Value> = gone.iter().collect();
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// `$setElementOrder/name`: merges the list, then puts it in the order given. What only the server has keeps its place
/// relative to its neighbours.
fn merge_ordered(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    name: &str,
    order: Value,
    node: Option<Node>,
) -> Result<(), Error> {
    let Value::Array(order) = order else { return Err(Error::BadElementOrder) };
    if name.is_empty() {
        return Err(Error::BadElementOrder);
    }
    let field = lookup(node, name)?;
    let list = |from: Option<Value>| match from {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(Error::NotAList(name.to_owned())),
    };
    // A null deletes the field, order or not.
    let server = list(original.get(name).cloned())?;
    let patched = list(patch.get(name).filter(|v| !v.is_null()).cloned())?;
    if patch.get(name).is_some_and(Value::is_null) {
        return Ok(());
    }
    if let Some(patched) = &patched {
        check_order(patched, &order, field, name)?;
        patch.remove(name);
    }
    let merged = match (server.clone(), patched) {
        (None, None) => return Ok(()),
        (Some(server), None) => server,
        (None, Some(patched)) => patched.into_iter().filter_map(clean).collect(),
        (Some(server), Some(patched)) if field.merges() => merge_list(server, patched, field, name)?,
        (Some(_), Some(patched)) => patched.into_iter().filter_map(clean).collect(),
    };
    let ordered = in_order(merged, &order, &server.unwrap_or_default(), field.merge_key())?;
    original.insert(name.to_owned(), Value::Array(ordered));
    Ok(())
}

/// The items of the patch must be among those of the order list, in the same relative order.
fn check_order(patched: &[Value], order: &[Value], field: Field, name: &str) -> Result<(), Error> {
    if patched.is_empty() || order.is_empty() {
        return Ok(());
    }
    let merge_key = field.merge_key();
    let mut rest = order.iter();
    for item in patched.iter().filter(|item| item.get(PATCH).is_none()) {
        let wanted = identity(item, merge_key)?;
        if !rest.by_ref().any(|o| identity(o, merge_key).is_ok_and(|o| o == wanted)) {
            return Err(Error::OrderMismatch(name.to_owned()));
        }
    }
    Ok(())
}

fn merge_list(original: Vec<Value>, patch: Vec<Value>, field: Field, name: &str) -> Result<Vec<Value>, Error> {
    let Some(first) = original.first().or(patch.first()) else { return Ok(original) };
    if original.iter().chain(&patch).any(Value::is_array) {
        return Err(Error::ListOfLists);
    }
    let maps = first.is_object();
    if original.iter().chain(&patch).any(|item| item.is_object() != maps) {
        return Err(Error::MixedList(name.to_owned()));
    }
    if !maps {
        let mut seen = HashSet::new();
        let merged = original.iter().chain(&patch).filter(|item| seen.insert(*item)).cloned().collect();
        return in_order(merged, &patch, &original, "");
    }
    let merge_key = field.merge_key();
    if merge_key.is_empty() {
        return Err(Error::NoKeyDeclared(field.type_name()));
    }
    let (server, patch) = special_items(original, patch, merge_key)?;
    let merged = merge_items(server.clone(), patch.clone(), field, merge_key)?;
    in_order(merged, &patch, &server, merge_key)
}

/// Carries out items with `$patch`; what is left is the server's list and the ordinary items of the patch.
fn special_items(
    mut server: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &'static str,
) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let mut ordinary = Vec::new();
    let mut replace = false;
    let mut gone = HashSet::new();
    for item in patch {
        match item.get(PATCH) {
            None => ordinary.push(item),
            Some(Value::String(directive)) => match directive.as_str() {
                "delete" => {
                    gone.insert(identity(&item, merge_key)?.clone());
                }
                "replace" => replace = true,
                "merge" => return Err(Error::MergeDirectiveInList),
                _ => return Err(Error::BadDirective(directive.as_str().into(), item.to_string())),
            },
            Some(other) => return Err(Error::BadDirective(other.clone(), item.to_string())),
        }
    }
    server.retain(|item| item.get(merge_key).is_none_or(|key| !gone.contains(key)));
    if replace {
        return Ok((ordinary.into_iter().filter_map(clean).collect(), Vec::new()));
    }
    Ok((server, ordinary))
}

fn merge_items(
    mut server: Vec<Value>,
    patch: Vec<Value>,
    field: Field,
    merge_key: &'static str,
) -> Result<Vec<Value>, Error> {
    let mut at: HashMap<Value, usize> = HashMap::new();
    for (i, item) in server.iter().enumerate() {
        if let Some(key) = item.get(merge_key) {
            at.entry(key.clone()).or_insert(i);
        }
    }
    for item in patch {
        let key = identity(&item, merge_key)?.clone();
        let found = at.get(&key).and_then(|i| server.get_mut(*i)).and_then(Value::as_object_mut);
        match (found, item) {
            (Some(into), Value::Object(from)) => merge_map(into, from, field.item())?,
            (_, item) => {
                at.insert(key, server.len());
                server.extend(clean(item));
            }
        }
    }
    Ok(server)
}

/// What makes two items the same: the merge key's value, or the item itself in lists of scalars.
fn identity<'a>(item: &'a Value, merge_key: &'static str) -> Result<&'a Value, Error> {
    if merge_key.is_empty() {
        return Ok(item);
    }
    item.get(merge_key).ok_or_else(|| Error::NoMergeKey(item.to_string(), merge_key))
}

/// Upstream's `normalizeElementOrder`: items of `order` in that order, interleaved with the server's own items, which keep
/// their order in `server` and, where that can be told, their place between the others.
fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    server: &[Value],
    merge_key: &'static str,
) -> Result<Vec<Value>, Error> {
    let positions = |list: &[Value]| {
        let mut at = HashMap::new();
        for (i, item) in list.iter().enumerate() {
            if let Ok(id) = identity(item, merge_key) {
                at.entry(id.clone()).or_insert(i);
            }
        }
        at
    };
    let (in_patch, on_server) = (positions(order), positions(server));
    let position =
        |at: &HashMap<Value, usize>, item: &Value| identity(item, merge_key).ok().and_then(|id| at.get(id)).copied();
    for item in &merged {
        identity(item, merge_key)?;
    }
    let (mut theirs, mut ours): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(&in_patch, item).is_some());
    theirs.sort_by_key(|item| position(&in_patch, item).unwrap_or(usize::MAX));
    ours.sort_by_key(|item| position(&on_server, item).unwrap_or(usize::MAX));

    let mut out = Vec::with_capacity(theirs.len() + ours.len());
    let mut ours = ours.into_iter().peekable();
    for item in theirs {
        let place = position(&on_server, &item);
        while let (Some(place), Some(own)) = (place, ours.peek().and_then(|own| position(&on_server, own)))
            && own < place
        {
            out.extend(ours.next());
        }
        out.push(item);
    }
    out.extend(ours);
    Ok(out)
}

#[cfg(test)]
mod tests;
