//! The table of field numbers, read once from `fields.txt`, which `cargo run -p xtask -- protobuf-table` makes of upstream's
//! Go types. It names fields; what they are is the schemas' to say.

use std::collections::HashMap;
use std::sync::LazyLock;

/// What a field number of a message stands for.
#[derive(Debug, PartialEq)]
pub enum Entry {
    /// A field of the JSON object.
    Field {
        /// JSON name.
        name: &'static str,
        /// Whether Go has a pointer there: then zero is not the same as absent.
        pointer: bool,
    },
    /// A message whose fields stand in the parent's JSON; its type name.
    Embedded(String),
    /// JSON name of a field that is in newer releases than the schemas.
    Newer(&'static str),
}

type Numbers = Vec<(u32, Entry)>;

static TABLE: LazyLock<HashMap<String, Numbers>> = LazyLock::new(|| read(include_str!("fields.txt")));

/// What number `number` of a type is.
pub fn find(type_name: &str, number: u32) -> Option<&'static Entry> {
    let numbers = TABLE.get(type_name)?;
    let at = numbers.binary_search_by_key(&number, |(n, _)| *n).ok()?;
    numbers.get(at).map(|(_, entry)| entry)
}

/// Every number of a type.
#[cfg(test)]
pub fn all(type_name: &str) -> &'static [(u32, Entry)] {
    TABLE.get(type_name).map_or(&[], Vec::as_slice)
}

fn read(text: &'static str) -> HashMap<String, Numbers> {
    let mut package = "";
    let mut table = HashMap::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            package = name;
            continue;
        }
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let mut numbers: Numbers = words.filter_map(|word| entry(package, word)).collect();
        numbers.sort_by_key(|(number, _)| *number);
        table.insert(format!("{package}.{name}"), numbers);
    }
    table
}

fn entry(package: &str, word: &'static str) -> Option<(u32, Entry)> {
    let (name, number) = word.split_once(['=', '*'])?;
    let entry = match (name.strip_prefix('@'), name.strip_prefix('?')) {
        (Some(inner), _) => Entry::Embedded(format!("{package}.{inner}")),
        (_, Some(newer)) => Entry::Newer(newer),
        _ => Entry::Field { name, pointer: word.contains('*') },
    };
    Some((number.parse().ok()?, entry))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::schema::roots::{ROOTS, definitions};

    /// JSON names of a type's fields; those that are `newer`, or the others.
    fn names(type_name: &str, newer: bool) -> BTreeSet<String> {
        all(type_name)
            .iter()
            .flat_map(|(_, entry)| match entry {
                Entry::Field { name, .. } if !newer => BTreeSet::from([(*name).to_owned()]),
                Entry::Newer(name) if newer => BTreeSet::from([(*name).to_owned()]),
                Entry::Embedded(inner) => names(inner, newer),
                _ => BTreeSet::new(),
            })
            .collect()
    }

    #[test]
    fn every_word_of_the_table_is_understood() {
        let text = include_str!("fields.txt");
        let words = text.lines().filter(|l| !l.starts_with(['#', '['])).flat_map(|l| l.split(' ').skip(1)).count();
        assert_eq!(words, TABLE.values().map(Vec::len).sum::<usize>());
        for (type_name, numbers) in TABLE.iter() {
            let distinct: BTreeSet<u32> = numbers.iter().map(|(n, _)| *n).collect();
            assert_eq!(distinct.len(), numbers.len(), "{type_name} has a number twice");
        }
    }

    #[test]
    fn every_field_of_every_type_has_a_number() {
        let (mut missing, mut unknown) = (Vec::new(), Vec::new());
        for (type_name, schema) in definitions(ROOTS.iter()) {
            let Some(properties) = schema["properties"].as_object() else { continue };
            // What is only answered or only in the query is never decoded.
            let answered = ["ListMeta", "Status", "StatusCause", "StatusDetails", "WatchEvent"];
            let last = type_name.rsplit('.').next().unwrap();
            if answered.contains(&last) || properties.contains_key("items") && last.ends_with("List") {
                continue;
            }
            let known = names(&type_name, false);
            // Of a whole object, these two travel in the envelope.
            let whole = properties.contains_key("metadata") || last == "DeleteOptions";
            let in_envelope = |name: &str| whole && matches!(name, "apiVersion" | "kind");
            let lacks = |name: &&String| !known.contains(*name) && !in_envelope(name);
            missing.extend(properties.keys().filter(lacks).map(|name| format!("{type_name}.{name}")));
            let odd = known.iter().filter(|name| !properties.contains_key(*name));
            let old = names(&type_name, true).into_iter().filter(|name| properties.contains_key(name));
            unknown.extend(odd.cloned().chain(old).map(|name| format!("{type_name}.{name}")));
        }
        assert_eq!(missing, Vec::<String>::new(), "without a number");
        assert_eq!(unknown, Vec::<String>::new(), "not in the schema, or in it and marked as newer");
    }
}
