//! The requirements a pod states about nodes and other pods, compiled once per pod, and how they match.
//!
//! What the API server would refuse (an unknown operator, a bad selector) matches nothing here.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as K8sSelector;
use scaleup_api::selector::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A selector as the API has it: absent selects nothing, empty selects everything.
pub fn selector(selector: Option<&K8sSelector>) -> LabelSelector {
    selector.map_or_else(LabelSelector::nothing, |selector| {
        LabelSelector::from_k8s(selector).unwrap_or_else(|_| LabelSelector::nothing())
    })
}

/// One `nodeSelectorTerm`: all its requirements must hold.
#[derive(Clone, Debug, Default)]
pub struct NodeTerm {
    expressions: Vec<NodeRequirement>,
    fields: Vec<NodeRequirement>,
}

#[derive(Clone, Debug)]
struct NodeRequirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug)]
enum Operator {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    Never,
}

impl From<&NodeSelectorRequirement> for NodeRequirement {
    fn from(requirement: &NodeSelectorRequirement) -> Self {
        let values = || requirement.values.iter().flatten().cloned().collect::<BTreeSet<_>>();
        let number = || match requirement.values.as_deref() {
            Some([value]) => value.parse::<i64>().ok(),
            _ => None,
        };
        let operator = match requirement.operator.as_str() {
            "In" => Operator::In(values()),
            "NotIn" => Operator::NotIn(values()),
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => number().map_or(Operator::Never, Operator::Gt),
            "Lt" => number().map_or(Operator::Never, Operator::Lt),
            _ => Operator::Never,
        };
        Self { key: requirement.key.clone(), operator }
    }
}

impl NodeRequirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(bound) => number().is_some_and(|number| number > *bound),
            Operator::Lt(bound) => number().is_some_and(|number| number < *bound),
            Operator::Never => false,
        }
    }
}

impl From<&NodeSelectorTerm> for NodeTerm {
    fn from(term: &NodeSelectorTerm) -> Self {
        Self {
            expressions: term.match_expressions.iter().flatten().map(Into::into).collect(),
            fields: term.match_fields.iter().flatten().map(Into::into).collect(),
        }
    }
}

impl NodeTerm {
    /// Whether the node fits; an empty term fits none.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.expressions.is_empty() && self.fields.is_empty() {
            return false;
        }
        let field = |key: &str| (key == "metadata.name").then_some(name);
        self.expressions.iter().all(|one| one.matches(labels.get(&one.key).map(String::as_str)))
            && self.fields.iter().all(|one| field(&one.key).is_some() && one.matches(field(&one.key)))
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Clone, Debug)]
pub struct PodTerm {
    selector: LabelSelector,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelSelector>,
    /// The node label whose equal values make a topology.
    pub topology_key: String,
}

impl PodTerm {
    /// Compiles a term of a pod in `namespace`, which is meant if the term names none.
    pub fn new(term: &PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        Self {
            selector: selector(term.label_selector.as_ref()),
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|one| selector(Some(one))),
            topology_key: term.topology_key.clone(),
        }
    }

    /// Whether the term means a pod with these labels in that namespace, whose own labels are `namespace_labels`.
    pub fn matches(&self, namespace: &str, labels: &Labels, namespace_labels: Option<&Labels>) -> bool {
        let namespace_fits = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                selector.is_everything() || namespace_labels.is_some_and(|labels| selector.matches(labels))
            });
        namespace_fits && self.selector.matches(labels)
    }
}

/// Whether one of the tolerations covers the taint (`v1helper.TolerationsTolerateTaint`).
pub fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let filled = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
        let effect_fits = filled(&toleration.effect).is_none_or(|effect| effect == taint.effect);
        let key_fits = filled(&toleration.key).is_none_or(|key| key == taint.key);
        let value = || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
        effect_fits
            && key_fits
            && match toleration.operator.as_deref() {
                None | Some("" | "Equal") => value(),
                Some("Exists") => true,
                Some(_) => false,
            }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn node_terms_know_every_operator() {
        let check = |term: Value, expected: bool| {
            let compiled = NodeTerm::from(&serde_json::from_value::<NodeSelectorTerm>(term.clone()).unwrap());
            assert_eq!(compiled.matches("n1", &labels(&[("zone", "a"), ("cores", "8")])), expected, "{term}");
        };
        let one = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        check(one("zone", "In", json!(["a", "b"])), true);
        check(one("zone", "In", json!(["b"])), false);
        check(one("none", "In", json!([""])), false);
        check(one("zone", "NotIn", json!(["b"])), true);
        check(one("none", "NotIn", json!(["b"])), true);
        check(one("zone", "NotIn", json!(["a"])), false);
        check(one("zone", "Exists", json!([])), true);
        check(one("none", "Exists", json!([])), false);
        check(one("none", "DoesNotExist", json!([])), true);
        check(one("cores", "Gt", json!(["7"])), true);
        check(one("cores", "Gt", json!(["8"])), false);
        check(one("cores", "Lt", json!(["9"])), true);
        check(one("zone", "Lt", json!(["9"])), false);
        check(one("cores", "Gt", json!(["x"])), false);
        check(one("zone", "Like", json!(["a"])), false);
        check(json!({}), false);
        check(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true);
        check(json!({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}), false);
        check(json!({"matchFields": [{"key": "metadata.uid", "operator": "NotIn", "values": ["n1"]}]}), false);
    }

    #[test]
    fn tolerations_cover_taints() {
        let check = |toleration: Value, expected: bool| {
            let tolerations = [serde_json::from_value::<Toleration>(toleration.clone()).unwrap()];
            let taint =
                Taint { key: "k".into(), value: Some("v".into()), effect: "NoSchedule".into(), ..Taint::default() };
            assert_eq!(tolerated(&tolerations, &taint), expected, "{toleration}");
        };
        check(json!({"key": "k", "value": "v", "effect": "NoSchedule"}), true);
        check(json!({"key": "k", "operator": "Equal", "value": "w"}), false);
        check(json!({"key": "k", "operator": "Exists"}), true);
        check(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false);
        check(json!({"operator": "Exists"}), true);
        check(json!({"key": "other", "operator": "Exists"}), false);
        check(json!({"key": "k", "operator": "Unknown", "value": "v"}), false);
    }

    #[test]
    fn pod_terms_respect_namespaces() {
        let check = |term: Value, namespace: &str, expected: bool| {
            let mut whole = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}});
            whole.as_object_mut().unwrap().extend(term.as_object().unwrap().clone());
            let compiled = PodTerm::new(&serde_json::from_value(whole).unwrap(), "home");
            let namespace_labels = labels(&[("team", namespace)]);
            let found = compiled.matches(namespace, &labels(&[("app", "web")]), Some(&namespace_labels));
            assert_eq!(found, expected, "{term} {namespace}");
        };
        check(json!({}), "home", true);
        check(json!({}), "other", false);
        check(json!({"namespaces": ["other"]}), "other", true);
        check(json!({"namespaces": ["other"]}), "home", false);
        check(json!({"namespaceSelector": {}}), "anywhere", true);
        check(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}), "red", true);
        check(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}), "blue", false);
        check(json!({"labelSelector": null}), "home", false);
        check(json!({"labelSelector": {}}), "home", true);
    }
}
