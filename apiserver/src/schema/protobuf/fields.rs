//! The table of field numbers, read once from `fields.txt`.

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
}

type Numbers = Vec<(u32, Entry)>;

static TABLE: LazyLock<HashMap<String, Numbers>> = LazyLock::new(|| read(include_str!("fields.txt")));

/// What number `number` of a type is.
pub fn find(type_name: &str, number: u32) -> Option<&'static Entry> {
    let numbers = TABLE.get(type_name)?;
    let at = numbers.binary_search_by_key(&number, |(n, _)| *n).ok()?;
    numbers.get(at).map(|(_, entry)| entry)
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
    let entry = match name.strip_prefix('@') {
        Some(inner) => Entry::Embedded(format!("{package}.{inner}")),
        None => Entry::Field { name, pointer: word.contains('*') },
    };
    Some((number.parse().ok()?, entry))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::schema::roots::{ROOTS, definitions};

    fn names(type_name: &str) -> BTreeSet<String> {
        let entries = TABLE.get(type_name).map_or(&[][..], Vec::as_slice);
        entries
            .iter()
            .flat_map(|(_, entry)| match entry {
                Entry::Field { name, .. } => BTreeSet::from([(*name).to_owned()]),
                Entry::Embedded(inner) => names(inner),
            })
            .collect()
    }

    #[test]
    fn every_field_of_every_type_has_a_number() {
        let text = include_str!("fields.txt");
        let words = text.lines().filter(|l| !l.starts_with(['#', '['])).flat_map(|l| l.split(' ').skip(1)).count();
        assert_eq!(words, TABLE.values().map(Vec::len).sum::<usize>(), "a word of the table was not understood");
        for (type_name, numbers) in TABLE.iter() {
            let distinct: BTreeSet<u32> = numbers.iter().map(|(n, _)| *n).collect();
            assert_eq!(distinct.len(), numbers.len(), "{type_name} has a number twice");
        }
        for (type_name, schema) in definitions(ROOTS.iter()) {
            let Some(properties) = schema["properties"].as_object() else { continue };
            if type_name.ends_with("List") || type_name.ends_with(".WatchEvent") {
                continue;
            }
            let known = names(&type_name);
            for name in properties.keys() {
                // Of a whole object, these two travel in the envelope.
                assert!(known.contains(name) || matches!(name.as_str(), "apiVersion" | "kind"), "{type_name}.{name}");
            }
            for name in known {
                assert!(properties.contains_key(&name), "{type_name} has no field {name}");
            }
        }
    }
}
