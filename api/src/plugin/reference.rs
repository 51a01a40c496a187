//! References to artifacts in registries (OCI distribution specification).

use super::is_sha256;
use crate::names;

/// Longest repository, as the specification says of name and host together.
const MAX_REPOSITORY: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;

/// What comes after the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identifier<'a> {
    /// `:tag`
    Tag(&'a str),
    /// `@sha256:…`; without the prefix.
    Sha256(&'a str),
}

/// `registry/repository:tag` or `registry/repository@sha256:…`, in parts. The registry is always there: there is no default one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference<'a> {
    /// Host and perhaps port.
    pub registry: &'a str,
    /// Path components.
    pub repository: &'a str,
    /// Which of its manifests.
    pub identifier: Identifier<'a>,
}

impl<'a> Reference<'a> {
    /// # Errors
    /// What the text must be.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        const FORM: &str = "must be registry/repository:tag or registry/repository@sha256:… \
                            (e.g. 'registry.example.com/team/plugin:1.0')";
        let (registry, rest) = text.split_once('/').ok_or(FORM)?;
        let (repository, identifier) = match rest.split_once('@') {
            Some((repository, digest)) => {
                let digest = digest.strip_prefix("sha256:").filter(|digest| is_sha256(digest));
                (repository, Identifier::Sha256(digest.ok_or("must end in '@sha256:' and 64 hexadecimal digits")?))
            }
            None => {
                let (repository, tag) = rest.rsplit_once(':').ok_or(FORM)?;
                (repository, Identifier::Tag(tag).checked()?)
            }
        };
        host(registry)?;
        let good = repository.len() + registry.len() < MAX_REPOSITORY && repository.split('/').all(component);
        if !good {
            return Err("the repository must be lower-case words, joined by '/', '.', '_' and '-'".into());
        }
        Ok(Self { registry, repository, identifier })
    }
}

impl<'a> Identifier<'a> {
    fn checked(self) -> Result<Self, String> {
        let Self::Tag(tag) = self else { return Ok(self) };
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let good = tag.len() <= MAX_TAG
            && tag.bytes().next().is_some_and(word)
            && tag.bytes().all(|b| word(b) || b"-.".contains(&b));
        let why = "the tag must be at most 128 letters, digits and any of '_', '-', '.'";
        if good { Ok(self) } else { Err(why.into()) }
    }
}

fn host(registry: &str) -> Result<(), String> {
    let (name, port) = match registry.rsplit_once(':') {
        Some((name, port)) => (name, port.parse::<u16>().is_ok_and(|port| port > 0)),
        None => (registry, true),
    };
    let good = port && names::dns1123_subdomain(name).is_ok();
    if good { Ok(()) } else { Err("the registry must be a host name, perhaps with a port".into()) }
}

fn component(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
        && text.bytes().all(|b| plain(b) || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        let digest = "0123456789abcdef".repeat(4);
        let by_digest = format!("localhost:5000/a/b-c@sha256:{digest}");
        let parsed = Reference::parse(&by_digest).unwrap();
        assert_eq!((parsed.registry, parsed.repository), ("localhost:5000", "a/b-c"));
        assert_eq!(parsed.identifier, Identifier::Sha256(&digest));
        assert_eq!(Reference::parse("r.example.com/p:v1.0").unwrap().identifier, Identifier::Tag("v1.0"));
        for bad in [
            "",
            "plugin",
            "plugin:1",
            "r/p",
            "r/P:1",
            "r/../p:1",
            "r/p:",
            "r/p:-1",
            "r:0/p:1",
            "u@r/p:1",
            "r/p@sha256:12",
            "r/p?x:1",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
