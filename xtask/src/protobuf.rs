//! `cargo run -p xtask -- protobuf-table OLD NEW`: the API server's table of protobuf field numbers, from upstream's Go types.
//!
//! OLD and NEW are `staging/src/k8s.io` of two Kubernetes checkouts, or folders with `api` and `apimachinery` in them: the
//! release that the API server's schemas are of, and the newest. Only facts are taken: names, numbers, and where Go has a
//! pointer. Which kinds are wanted is read from the API server's own table of kinds; the types they reach follow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Where the kinds are listed.
const KINDS: &str = "apiserver/src/schema/roots.rs";
/// What is written.
const TABLE: &str = "apiserver/src/schema/protobuf/fields.txt";
/// Go's name of the package of the common types.
const META: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";

const HEADER: &str = "\
# Protobuf field numbers of the built-in types, made by `cargo run -p xtask -- protobuf-table` from the tags of k8s.io/api and
# k8s.io/apimachinery. A section per package; a line per type: its fields by JSON name, `=` before the number of a plain Go field
# (zero means absent) or `*` before that of a pointer (zero means zero). `@Type=n` is an embedded struct, whose fields stand in the
# parent's JSON; `?` is before fields that only newer releases than the schemas have.
";

/// A type by package path and name.
type Id = (String, String);

#[derive(Clone, Debug, PartialEq)]
struct Field {
    /// JSON name; of an embedded struct its type's.
    name: String,
    number: u32,
    pointer: bool,
    embedded: bool,
    /// The struct it leads to, if it is one.
    of: Option<Id>,
}

/// Structs of Go packages, read as needed.
struct Source<'a> {
    dir: &'a Path,
    packages: HashMap<String, BTreeMap<String, Vec<Field>>>,
}

impl Source<'_> {
    fn fields(&mut self, (package, name): &Id) -> Result<&[Field]> {
        if !self.packages.contains_key(package) {
            let path = self.dir.join(package.trim_start_matches("k8s.io/")).join("types.go");
            // Packages of single values (quantities, times) have no such file.
            let text = if path.is_file() { std::fs::read_to_string(&path)? } else { String::new() };
            let structs = structs(package, &text).with_context(|| path.display().to_string())?;
            self.packages.insert(package.clone(), structs);
        }
        Ok(self.packages.get(package).and_then(|p| p.get(name)).map_or(&[], Vec::as_slice))
    }
}

/// Every struct of a file with its fields that have a number and a JSON name.
fn structs(package: &str, text: &str) -> Result<BTreeMap<String, Vec<Field>>> {
    let imports = imports(text);
    let mut out = BTreeMap::new();
    let mut current: Option<(&str, Vec<Field>)> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("type ").and_then(|l| l.strip_suffix(" struct {")) {
            current = Some((name, Vec::new()));
        } else if line == "}"
            && let Some((name, fields)) = current.take()
        {
            out.insert(name.to_owned(), fields);
        } else if let Some((name, fields)) = &mut current {
            fields.extend(field(package, &imports, line.trim()).with_context(|| format!("{name}: {line}"))?);
        }
    }
    Ok(out)
}

fn imports(text: &str) -> HashMap<String, String> {
    let block = text.split_once("import (").and_then(|(_, rest)| rest.split_once(')')).map_or("", |(block, _)| block);
    let mut out = HashMap::new();
    for line in block.lines().map(str::trim) {
        let Some((alias, path)) = line.split_once('"') else { continue };
        let path = path.trim_end_matches('"');
        let alias = if alias.is_empty() { path.rsplit('/').next().unwrap_or_default() } else { alias.trim() };
        out.insert(alias.to_owned(), path.to_owned());
    }
    out
}

/// A line such as ``Replicas *int32 `json:"replicas,omitempty" protobuf:"varint,1,opt,name=replicas"` ``.
fn field(package: &str, imports: &HashMap<String, String>, line: &str) -> Result<Option<Field>> {
    let Some((declared, tags)) = line.split_once('`').filter(|_| !line.starts_with("//")) else { return Ok(None) };
    let tag = |name: &str| {
        let (_, rest) = tags.split_once(&format!("{name}:\""))?;
        rest.split('"').next()
    };
    let (Some(json), Some(protobuf)) = (tag("json"), tag("protobuf")) else { return Ok(None) };
    let number = protobuf.split(',').nth(1).context("no number")?.parse()?;
    let go_type = declared.split_whitespace().last().context("no type")?;
    let element = go_type.rsplit([']', '*']).next().unwrap_or_default();
    let of = match element.split_once('.') {
        Some((alias, name)) => imports.get(alias).map(|path| (path.clone(), name.to_owned())),
        None => Some((package.to_owned(), element.to_owned())),
    };
    let name = json.split(',').next().unwrap_or_default();
    let embedded = name.is_empty();
    let name = if embedded { element.rsplit('.').next().unwrap_or_default() } else { name };
    if name == "-" {
        return Ok(None);
    }
    Ok(Some(Field { name: name.to_owned(), number, pointer: go_type.starts_with('*'), embedded, of }))
}

/// Kinds from lines such as `root::<core::v1::Pod>(…`, and what every client sends with them.
fn kinds(text: &str) -> Result<Vec<Id>> {
    let mut out = vec![(META.to_owned(), "DeleteOptions".to_owned())];
    for line in text.lines() {
        let Some((_, rest)) = line.trim().split_once("root::<") else { continue };
        let mut parts = rest.split('>').next().unwrap_or_default().split("::");
        if let (Some(group), Some(version), Some(name)) = (parts.next(), parts.next(), parts.next()) {
            out.push((format!("k8s.io/api/{group}/{version}"), name.to_owned()));
        }
    }
    if out.len() < 2 {
        bail!("no kinds found in {KINDS}");
    }
    Ok(out)
}

/// Upstream's OpenAPI name of a package: `io.k8s.api.core.v1`.
fn openapi_name(package: &str) -> String {
    package.replacen("k8s.io", "io.k8s", 1).replace('/', ".")
}

/// A word of the table.
fn word(field: &Field, newer: bool) -> String {
    let mark = match field {
        _ if newer => "?",
        field if field.embedded => "@",
        _ => "",
    };
    format!("{mark}{}{}{}", field.name, if field.pointer { '*' } else { '=' }, field.number)
}

fn table(kinds: Vec<Id>, old: &mut Source<'_>, new: &mut Source<'_>) -> Result<String> {
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut todo, mut seen) = (kinds, BTreeSet::new());
    while let Some(id) = todo.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let (mut fields, newer) = (old.fields(&id)?.to_vec(), new.fields(&id)?.to_vec());
        if fields.is_empty() {
            continue;
        }
        todo.extend(fields.iter().filter_map(|f| f.of.clone()));
        let mut words: Vec<(u32, String)> = Vec::new();
        for field in newer {
            match fields.iter().find(|f| f.number == field.number) {
                None => words.push((field.number, word(&field, true))),
                Some(known) if known.name == field.name => {}
                Some(known) => bail!("{id:?}: number {} was {} and is {}", field.number, known.name, field.name),
            }
        }
        words.extend(fields.drain(..).map(|field| (field.number, word(&field, false))));
        words.sort();
        let words: Vec<String> = words.into_iter().map(|(_, word)| word).collect();
        lines.entry(openapi_name(&id.0)).or_default().push(format!("{} {}", id.1, words.join(" ")));
    }
    let mut out = HEADER.to_owned();
    for (package, mut types) in lines {
        types.sort();
        out.push_str(&format!("\n[{package}]\n{}\n", types.join("\n")));
    }
    Ok(out)
}

/// Writes the table.
pub fn run(root: &Path, old: &Path, new: &Path) -> Result<()> {
    let kinds = kinds(&std::fs::read_to_string(root.join(KINDS))?)?;
    let source = |dir| Source { dir, packages: HashMap::new() };
    let text = table(kinds, &mut source(old), &mut source(new))?;
    std::fs::write(root.join(TABLE), &text)?;
    println!("{TABLE}: {} lines", text.lines().count());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: &str = r#"
import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type ProbeHandler struct {
	Exec *ExecAction `json:"exec,omitempty" protobuf:"bytes,1,opt,name=exec"`
}
type Probe struct {
	metav1.TypeMeta `json:",inline"`
	// Name: `json:"x" protobuf:"bytes,9,opt,name=x"`
	ProbeHandler `json:",inline" protobuf:"bytes,1,opt,name=handler"`
	Limits map[Name]resource.Quantity `json:"limits,omitempty" protobuf:"bytes,2,rep,name=limits"`
	Metas []metav1.ObjectMeta `json:"metas" protobuf:"bytes,3,rep,name=metas"`
	Hidden string `json:"-" protobuf:"bytes,4,opt,name=hidden"`
}
"#;

    #[test]
    fn go_types_become_lines() {
        let mut read = BTreeMap::new();
        for (name, text) in [("old", TYPES.to_owned()), ("new", TYPES.replace("\"-\"", "\"shown\""))] {
            read.insert(name, structs("k8s.io/api/core/v1", &text).unwrap());
        }
        let dir = Path::new("/none");
        let mut source = |name: &str| Source {
            dir,
            packages: HashMap::from([("k8s.io/api/core/v1".to_owned(), read.remove(name).unwrap())]),
        };
        let (mut old, mut new) = (source("old"), source("new"));
        let made = table(vec![("k8s.io/api/core/v1".into(), "Probe".into())], &mut old, &mut new).unwrap();
        let body = made.strip_prefix(HEADER).unwrap();
        let want = "\n[io.k8s.api.core.v1]\nProbe @ProbeHandler=1 limits=2 metas=3 ?shown=4\nProbeHandler exec*1\n";
        assert_eq!(body, want);
    }

    #[test]
    fn kinds_are_found() {
        let found = kinds("    root::<core::v1::Pod>(\"\", \"v1\", \"Pod\", true),\n").unwrap();
        assert_eq!(found[1], ("k8s.io/api/core/v1".to_owned(), "Pod".to_owned()));
        assert!(kinds("").is_err());
    }
}
