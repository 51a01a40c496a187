//! Names that controllers make up, as upstream's `names.SimpleNameGenerator` and `rand.SafeEncodeString` do.

use rand::RngExt;

/// Upstream's alphabet: no vowels (no words), no characters that look alike.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the random part.
const SUFFIX_LEN: usize = 5;
/// Longest base, so that base and suffix fit into 63 characters.
const MAX_BASE_LEN: usize = 63 - SUFFIX_LEN;

fn letter(n: usize) -> char {
    char::from(ALPHABET[n % ALPHABET.len()])
}

/// `base` and five random letters, as `metadata.generateName` would have it. A name chosen by the caller makes a create
/// idempotent: if the answer is lost, the name can be looked up.
pub fn generate(base: &str) -> String {
    let mut end = base.len().min(MAX_BASE_LEN);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    let mut rng = rand::rng();
    name.extend((0..SUFFIX_LEN).map(|_| letter(rng.random_range(0..ALPHABET.len()))));
    name
}

/// Maps each byte to a letter of the alphabet (`rand.SafeEncodeString`).
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|b| letter(usize::from(b))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_and_differ() {
        let long = "x".repeat(80);
        assert_eq!(generate(&long).len(), 63);
        assert!(generate("web-").starts_with("web-"));
        assert_eq!(generate("web-").len(), 9);
        assert_ne!(generate("web-"), generate("web-"));
        scaleup_api::names::dns1123_subdomain(&generate("web-")).unwrap();
    }

    #[test]
    fn encoding_is_upstreams() {
        assert_eq!(safe_encode("4294967295"), "86f8fbc6f9");
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }
}
