//! Label and field selectors (`k8s.io/apimachinery/pkg/labels`, `/fields`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use crate::names;

/// Longest selector text accepted.
const MAX_TEXT_BYTES: usize = 64 * 1024;
/// Most requirements in one selector.
const MAX_REQUIREMENTS: usize = 1024;

/// Why a selector was refused; the text is for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    NotExists,
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

/// All requirements must hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }
    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }
    /// Equality on every pair.
    pub fn from_map(labels: &BTreeMap<String, String>) -> Self {
        let requirement =
            |(k, v): (&String, &String)| Requirement { key: k.clone(), operator: Operator::In([v.clone()].into()) };
        Self { requirements: labels.iter().map(requirement).collect(), nothing: false }
    }
    /// From a `metav1.LabelSelector`; an empty one matches everything.
    pub fn from_k8s(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let mut out = Self::from_map(&selector.match_labels.clone().unwrap_or_default());
        for e in selector.match_expressions.as_deref().unwrap_or_default() {
            let values: BTreeSet<String> = e.values.clone().unwrap_or_default().into_iter().collect();
            let operator = match (e.operator.as_str(), values.is_empty()) {
                ("In", false) => Operator::In(values),
                ("NotIn", false) => Operator::NotIn(values),
                ("Exists", true) => Operator::Exists,
                ("DoesNotExist", true) => Operator::NotExists,
                ("In" | "NotIn", true) => {
                    return Err(SelectorError("must be specified when `operator` is 'In' or 'NotIn'".into()));
                }
                ("Exists" | "DoesNotExist", false) => {
                    return Err(SelectorError(
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'".into(),
                    ));
                }
                (other, _) => return Err(SelectorError(format!("{other:?} is not a valid label selector operator"))),
            };
            out.requirements.push(Requirement { key: e.key.clone(), operator });
        }
        Ok(out)
    }
    /// From the text of a query parameter: `a=b,c!=d,e in (x,y),f notin (z),g,!h,i>1`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(SelectorError(format!("selector is longer than {MAX_TEXT_BYTES} bytes")));
        }
        let mut parser = Parser { rest: text.trim() };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(SelectorError(format!("selector has more than {MAX_REQUIREMENTS} requirements")));
            }
            requirements.push(parser.requirement()?);
            parser.separator()?;
        }
        Ok(Self { requirements, nothing: false })
    }
    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }
    /// The same for labels kept in another form; `get` finds a label's value.
    pub fn matches_by<'l>(&self, get: impl Fn(&str) -> Option<&'l str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }
    /// Whether nothing is asked.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

impl Requirement {
    /// `value` is that of the requirement's key.
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(set) => value.is_some_and(|v| set.contains(v)),
            Operator::NotIn(set) => value.is_none_or(|v| !set.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::NotExists => value.is_none(),
            Operator::GreaterThan(n) => number().is_some_and(|v| v > *n),
            Operator::LessThan(n) => number().is_some_and(|v| v < *n),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<') || c.is_whitespace()
}

impl<'a> Parser<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }
    fn eat(&mut self, token: &str) -> bool {
        self.skip();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }
    fn word(&mut self) -> &'a str {
        self.skip();
        let end = self.rest.find(is_special).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }
    fn error<T>(&self, expected: &str) -> Result<T, SelectorError> {
        let found: String = self.rest.chars().take(32).collect();
        Err(SelectorError(format!("unable to parse requirement: found '{found}', expected: {expected}")))
    }
    fn key(&mut self) -> Result<String, SelectorError> {
        let key = self.word();
        if key.is_empty() {
            return self.error("identifier");
        }
        names::qualified_name(key)
            .map_err(|e| SelectorError(format!("unable to parse requirement: key: Invalid value: {key:?}: {e}")))?;
        Ok(key.to_owned())
    }
    fn value(&mut self) -> Result<String, SelectorError> {
        let value = self.word();
        names::label_value(value).map_err(|e| {
            SelectorError(format!("unable to parse requirement: values: Invalid value: {value:?}: {e}"))
        })?;
        Ok(value.to_owned())
    }
    fn number(&mut self) -> Result<i64, SelectorError> {
        let value = self.word();
        value.parse().map_err(|_| {
            SelectorError(format!(
                "unable to parse requirement: values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        })
    }
    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if !self.eat("(") {
            return self.error("'('");
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return self.error("',' or ')'");
            }
        }
    }
    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        if self.eat("!") {
            return Ok(Requirement { key: self.key()?, operator: Operator::NotExists });
        }
        let key = self.key()?;
        let operator = if self.eat("==") || self.eat("=") {
            Operator::In([self.value()?].into())
        } else if self.eat("!=") {
            Operator::NotIn([self.value()?].into())
        } else if self.eat(">") {
            Operator::GreaterThan(self.number()?)
        } else if self.eat("<") {
            Operator::LessThan(self.number()?)
        } else {
            match self.word() {
                "" => Operator::Exists,
                "in" => Operator::In(self.set()?),
                "notin" => Operator::NotIn(self.set()?),
                other => {
                    return Err(SelectorError(format!(
                        "unable to parse requirement: found '{other}', expected: in, notin, =, ==, !=, gt, lt"
                    )));
                }
            }
        };
        Ok(Requirement { key, operator })
    }
    fn separator(&mut self) -> Result<(), SelectorError> {
        self.skip();
        if self.rest.is_empty() {
            return Ok(());
        }
        if !self.eat(",") {
            return self.error("',' or 'end of string'");
        }
        self.skip();
        if self.rest.is_empty() { self.error("identifier after ','") } else { Ok(()) }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(",");
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let key = &r.key;
            match &r.operator {
                Operator::In(set) if set.len() == 1 => write!(f, "{key}={}", join(set))?,
                Operator::In(set) => write!(f, "{key} in ({})", join(set))?,
                Operator::NotIn(set) if set.len() == 1 => write!(f, "{key}!={}", join(set))?,
                Operator::NotIn(set) => write!(f, "{key} notin ({})", join(set))?,
                Operator::Exists => write!(f, "{key}")?,
                Operator::NotExists => write!(f, "!{key}")?,
                Operator::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Operator::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// e.g. `spec.nodeName`
    pub path: String,
    /// Value to compare with.
    pub value: String,
    /// `!=`
    pub negate: bool,
}

/// All terms must hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// From text: `metadata.name=web,status.phase!=Running`; `\\`, `\,` and `\=` are escapes.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(SelectorError(format!("selector is longer than {MAX_TEXT_BYTES} bytes")));
        }
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(SelectorError(format!("selector has more than {MAX_REQUIREMENTS} requirements")));
            }
            let invalid = || SelectorError(format!("invalid selector: '{term}'; can't understand '{term}'"));
            let at = term.find('=').ok_or_else(invalid)?;
            let (negate, path_end) =
                if at > 0 && term.as_bytes()[at - 1] == b'!' { (true, at - 1) } else { (false, at) };
            let raw = &term[at + 1..];
            let raw = if negate { raw } else { raw.strip_prefix('=').unwrap_or(raw) };
            let path = term[..path_end].trim();
            if path.is_empty() {
                return Err(invalid());
            }
            let value = unescape(raw).ok_or_else(invalid)?;
            requirements.push(FieldRequirement { path: path.to_owned(), value, negate });
        }
        Ok(Self { requirements })
    }
    /// The terms.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
    /// Whether an object whose fields `get` reads is selected; an absent field is the empty string.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| (get(&r.path).unwrap_or_default() == r.value) != r.negate)
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                _ => return None,
            },
            '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split_terminator(',').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    fn check(selector: &str, yes: &[&str], no: &[&str]) {
        let s = LabelSelector::parse(selector).unwrap();
        for l in yes {
            assert!(s.matches(&labels(l)), "{selector} should match {l}");
        }
        for l in no {
            assert!(!s.matches(&labels(l)), "{selector} should not match {l}");
        }
        assert_eq!(LabelSelector::parse(&s.to_string()).unwrap(), s);
    }

    #[test]
    fn label_selectors() {
        check("", &["", "a=b"], &[]);
        check("a=b", &["a=b", "a=b,c=d"], &["", "a=c"]);
        check("a==b", &["a=b"], &["a=c"]);
        check("a!=b", &["", "a=c"], &["a=b"]);
        check("a in (x, y),c", &["a=x,c=1", "a=y,c=2"], &["a=x", "a=z,c=1", "c=1"]);
        check("a notin (x,y)", &["", "a=z"], &["a=x"]);
        check("!a , b", &["b=1"], &["a=1,b=1", ""]);
        check("n>3,n<5", &["n=4"], &["n=3", "n=5", "n=x", ""]);
        check("in=in,notin", &["in=in,notin=x"], &["in=x"]);
        assert!(!LabelSelector::nothing().matches(&labels("a=b")));
    }

    #[test]
    fn bad_label_selectors() {
        for text in
            ["a=b,", ",a", "a in x", "a in (x", "a in (x y)", "=b", "!", "a=b=c", "a b", "-a=b", "a=-", "a>x", "a(b)"]
        {
            assert!(LabelSelector::parse(text).is_err(), "{text:?}");
        }
        assert!(LabelSelector::parse(&"a".repeat(MAX_TEXT_BYTES + 1)).is_err());
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("metadata.name=a\\,b,status.phase!=Running,x==y").unwrap();
        let get = |name: &'static str, phase: &'static str| {
            move |p: &str| match p {
                "metadata.name" => Some(name),
                "status.phase" => Some(phase),
                "x" => Some("y"),
                _ => None,
            }
        };
        assert!(s.matches(get("a,b", "Pending")));
        assert!(!s.matches(get("a,b", "Running")) && !s.matches(get("a", "Pending")));
        for text in ["a", "=b", "a=b=c", "a=\\x", "a=b\\"] {
            assert!(FieldSelector::parse(text).is_err(), "{text:?}");
        }
        assert!(FieldSelector::parse("").unwrap().is_empty());
    }
}
