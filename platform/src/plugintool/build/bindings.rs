//! C bindings, generated from a project's `wit/`, and its schema and golden examples as C.

use std::path::Path;

use anyhow::{Context, Result};
use scaleup_plugins::World;
use scaleup_plugins::metadata::Example;
use wit_bindgen_core::{Files, wit_parser::Resolve};

use super::super::project::Project;

/// Writes the bindings of the project's world.
pub fn write(project: &Project, folder: &Path) -> Result<()> {
    let mut resolve = Resolve::default();
    let wit = project.directory.join("wit");
    let (package, _) = resolve.push_dir(&wit).with_context(|| format!("{} holds no valid WIT", wit.display()))?;
    let world = resolve.select_world(&[package], Some(project.world.name()))?;
    let mut files = Files::default();
    wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
    for (name, content) in files.iter() {
        let path = folder.join(Path::new(name).file_name().unwrap_or_default());
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A C string literal.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => literal.extend(['\\', byte as char]),
            // Not the beginning of a trigraph.
            b' '..=b'~' if byte != b'?' => literal.push(byte as char),
            _ => literal.push_str(&format!("\\{byte:03o}")),
        }
    }
    literal.push('"');
    literal
}

/// The export `metadata`.
pub fn metadata(world: World, schema: &str, examples: &[Example]) -> String {
    let name = world.name();
    let rows: Vec<String> = examples
        .iter()
        .map(|one| {
            let texts = [&one.name, &one.config, &one.input, &one.expected].map(|text| literal(text));
            format!("    {{{}}},\n", texts.join(", "))
        })
        .collect();
    format!(
        r#"// Made by `scaleup plugin build` of schema.json and examples/golden.json.

#include <stdlib.h>

#include "{name}.h"

static const char *const EXAMPLES[{count}][4] = {{
{rows}}};

void exports_scaleup_policy_metadata_config_schema({name}_string_t *schema) {{
    {name}_string_dup(schema, {schema});
}}

void exports_scaleup_policy_metadata_examples(exports_scaleup_policy_metadata_list_example_t *examples) {{
    examples->len = {count};
    examples->ptr = malloc(({count} + 1) * sizeof *examples->ptr);
    for (size_t at = 0; at < {count}; at++) {{
        {name}_string_dup(&examples->ptr[at].name, EXAMPLES[at][0]);
        {name}_string_dup(&examples->ptr[at].config, EXAMPLES[at][1]);
        {name}_string_dup(&examples->ptr[at].input, EXAMPLES[at][2]);
        {name}_string_dup(&examples->ptr[at].expected, EXAMPLES[at][3]);
    }}
}}
"#,
        count = examples.len(),
        rows = if rows.is_empty() { "    {0},\n".to_owned() } else { rows.concat() },
        schema = literal(schema),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_hold_every_byte() {
        assert_eq!(literal("a\"b\\c\n?ä"), r#""a\"b\\c\012\077\303\244""#);
    }
}
