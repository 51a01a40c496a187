//! What checks of answers have in common.

/// At most so many of something.
pub(crate) fn at_most(what: &str, count: usize, most: usize) -> Result<(), String> {
    if count > most { Err(format!("{count} {what}, at most {most} are allowed")) } else { Ok(()) }
}

/// A text of so many bytes.
pub(crate) fn text(what: &str, text: &str, least: usize, most: usize) -> Result<(), String> {
    let bytes = text.len();
    if bytes < least || bytes > most { Err(format!("{what} has {bytes} bytes, not {least} to {most}")) } else { Ok(()) }
}

/// The beginning of a text that somebody else chose.
pub(crate) fn clip(text: &str, most: usize) -> &str {
    let mut cut = text.len().min(most);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    &text[..cut]
}
