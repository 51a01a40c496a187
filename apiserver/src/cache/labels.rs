//! The labels of a cached object: a map's first node alone would take half as much memory as a small object.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// `metadata.labels`, in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[found].1)
    }

    /// All of them, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let labels = BTreeMap::<Box<str>, Box<str>>::deserialize(deserializer)?;
        Ok(Self(labels.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_key() {
        let labels: Labels = serde_json::from_str(r#"{"b": "2", "a/x": "1", "c": ""}"#).unwrap();
        for (key, value) in [("a/x", Some("1")), ("b", Some("2")), ("c", Some("")), ("a", None), ("d", None)] {
            assert_eq!(labels.get(key), value, "{key}");
        }
        assert_eq!(Labels::default().get("a"), None);
    }
}
