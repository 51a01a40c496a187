//! The chunked transfer coding (RFC 9112 §7.1): taken apart strictly, written again in one canonical form.
//!
//! Nothing of the sender's framing survives: sizes are written anew, extensions are dropped, trailers are parsed. What
//! is not exactly the grammar is [`Broken`], bare line feeds included.

/// Bytes of chunk extensions accepted per message.
const MAX_EXTENSION_BYTES: usize = 4 * 1024;
/// Bytes of trailers accepted per message, and their number.
const MAX_TRAILER_BYTES: usize = 16 * 1024;
const MAX_TRAILERS: usize = 64;

/// The body is not chunked as it claims.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed")]
pub(crate) struct Broken;

/// Where the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the digits of a chunk size; how many there were.
    Size {
        size: u64,
        digits: u8,
    },
    /// In what follows the digits, up to the line's end.
    Extension {
        size: u64,
    },
    /// At the line feed that ends a size line.
    SizeEnd {
        size: u64,
    },
    /// In chunk data with this many bytes left.
    Data(u64),
    /// At the line end behind chunk data.
    DataCr,
    DataLf,
    /// In the trailer section.
    Trailer,
    /// The message is over.
    Done,
}

/// How the body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Chunked,
    /// Payload only: the end of the connection ends it.
    Plain,
}

/// One chunked body.
#[derive(Debug)]
pub(crate) struct Chunked {
    state: State,
    output: Output,
    extension_bytes: usize,
    trailer: Vec<u8>,
}

/// What a call of [`Chunked::decode`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes of input used.
    pub used: usize,
    /// Payload bytes among them.
    pub payload: usize,
    /// The body has ended; what follows in the input is not part of it.
    pub done: bool,
}

impl Chunked {
    pub fn new(output: Output) -> Self {
        Self { state: State::Size { size: 0, digits: 0 }, output, extension_bytes: 0, trailer: Vec::new() }
    }

    /// The trailer section with its last line end, as received; complete and valid once the body is done.
    pub fn trailer(&self) -> &[u8] {
        &self.trailer
    }

    /// Takes `input` apart as far as it goes and appends the body's new form to `out`.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, Broken> {
        let mut step = Step::default();
        while step.used < input.len() && self.state != State::Done {
            let rest = &input[step.used..];
            match self.state {
                State::Data(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    self.write_data(&rest[..taken], out);
                    step.used += taken;
                    step.payload += taken;
                    let left = left - taken as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                }
                State::Trailer => {
                    self.trailer.push(rest[0]);
                    step.used += 1;
                    self.end_trailer(out)?;
                }
                _ => {
                    self.state = self.line_byte(rest[0])?;
                    step.used += 1;
                }
            }
        }
        step.done = self.state == State::Done;
        Ok(step)
    }

    /// A byte outside data and trailers; the state after it.
    fn line_byte(&mut self, byte: u8) -> Result<State, Broken> {
        match (self.state, byte) {
            (State::Size { size, digits: 1.. }, b'\r') | (State::Extension { size }, b'\r') => {
                Ok(State::SizeEnd { size })
            }
            (State::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => Ok(State::Extension { size }),
            (State::Size { size, digits: digits @ 0..16 }, byte) => {
                let digit = char::from(byte).to_digit(16).ok_or(Broken)?;
                Ok(State::Size { size: (size << 4) | u64::from(digit), digits: digits + 1 })
            }
            (State::Extension { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension_bytes += 1;
                if self.extension_bytes > MAX_EXTENSION_BYTES { Err(Broken) } else { Ok(State::Extension { size }) }
            }
            (State::SizeEnd { size: 0 }, b'\n') => Ok(State::Trailer),
            (State::SizeEnd { size }, b'\n') => Ok(State::Data(size)),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { size: 0, digits: 0 }),
            _ => Err(Broken),
        }
    }

    fn write_data(&self, data: &[u8], out: &mut Vec<u8>) {
        match self.output {
            Output::Chunked => write_chunk(data, out),
            Output::Plain => out.extend_from_slice(data),
        }
    }

    /// Ends the message if the trailer section is complete.
    fn end_trailer(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        let complete = self.trailer == b"\r\n" || self.trailer.ends_with(b"\r\n\r\n");
        if !complete {
            return if self.trailer.len() > MAX_TRAILER_BYTES { Err(Broken) } else { Ok(()) };
        }
        if super::fields::has_bare_line_feed(&self.trailer) {
            return Err(Broken);
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
        let parsed = httparse::parse_headers(&self.trailer, &mut fields).map_err(|_| Broken)?;
        let httparse::Status::Complete((_, fields)) = parsed else { return Err(Broken) };
        if self.output == Output::Chunked {
            out.extend_from_slice(b"0\r\n");
            // Fields that frame or route a message have no business behind it (RFC 9110 §6.5.1).
            for field in fields.iter().filter(|field| super::fields::kind(field.name).is_none()) {
                super::fields::write(out, field.name, field.value);
            }
            out.extend_from_slice(b"\r\n");
        }
        self.state = State::Done;
        Ok(())
    }
}

/// Appends one chunk; nothing for no data, which would end the body.
pub(crate) fn write_chunk(data: &[u8], out: &mut Vec<u8>) {
    if !data.is_empty() {
        // Writing to a Vec cannot fail.
        let _ = std::io::Write::write_fmt(out, format_args!("{:x}\r\n", data.len()));
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// Ends a body written by [`write_chunk`].
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// Payload (or none if broken) and bytes left over; must not depend on how the input is cut.
    #[track_caller]
    fn check(input: &str, expected: Option<(&str, usize)>) {
        for cut in [1, 2, 3, 7, input.len().max(1)] {
            let (mut body, mut out, mut used, mut payload) = (Chunked::new(Output::Plain), Vec::new(), 0, 0);
            let mut result = Ok(false);
            for piece in input.as_bytes().chunks(cut) {
                result = body.decode(piece, &mut out).map(|step| {
                    used += step.used;
                    payload += step.payload;
                    step.done
                });
                if result != Ok(false) {
                    break;
                }
            }
            let got = (result == Ok(true)).then(|| (String::from_utf8_lossy(&out).into_owned(), input.len() - used));
            assert_eq!(got, expected.map(|(text, left)| (text.to_owned(), left)), "pieces of {cut}: {input:?}");
            assert!(got.is_none() || payload == out.len(), "payload is counted");
        }
    }

    #[test]
    fn good_bodies_end_where_they_say() {
        check("5\r\nhello\r\n0\r\n\r\n", Some(("hello", 0)));
        check("5;x=\"1\"\r\nhello\r\n3 \r\nabc\r\n000\r\nt: 1\r\nu: 2\r\n\r\nGET", Some(("helloabc", 3)));
        check("A\r\n0123456789\r\n0\r\n\r\n", Some(("0123456789", 0)));
    }

    #[test]
    fn anything_else_is_broken() {
        for input in [
            "\r\n",
            "zz\r\n",
            "-1\r\n",
            "0x3\r\nabc\r\n",
            "fffffffffffffffff\r\n",
            "2\r\nabc\r\n",
            "3\r\nabc0\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3;a\nb\r\nabc\r\n",
            "0\r\nt : 1\r\n\r\n",
            "0\r\na: b\nc: d\r\n\r\n",
            " 3\r\nabc\r\n0\r\n\r\n",
        ] {
            check(input, None);
        }
        check(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(MAX_EXTENSION_BYTES + 1)), None);
        check(&format!("0\r\nt: {}\r\n\r\n", "x".repeat(MAX_TRAILER_BYTES)), None);
    }

    #[test]
    fn the_new_form_has_only_sizes_data_and_harmless_trailers() {
        let mut out = Vec::new();
        let input = b"05;x=1\r\nhello\r\n0\r\nt: 1\r\ncontent-length: 9\r\n\r\n";
        let step = Chunked::new(Output::Chunked).decode(input, &mut out).expect("a good body");
        assert!(step.done && step.payload == 5);
        assert_eq!(String::from_utf8_lossy(&out), "5\r\nhello\r\n0\r\nt: 1\r\n\r\n");
    }
}
