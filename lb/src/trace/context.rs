//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>, level 1): read, continued, written. Pure.

use http::HeaderMap;

/// Longest `tracestate` that is passed on (§3.3.1.5 asks for 512 at least); a longer one is dropped whole.
const MAX_STATE_BYTES: usize = 512;
/// Most members of a `tracestate` (§3.3.1.1).
const MAX_STATE_MEMBERS: usize = 32;

/// Where a request stands in its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    pub trace_id: [u8; 16],
    /// The caller's span, when there is one.
    pub parent: Option<[u8; 8]>,
    /// Our span of the request.
    pub span_id: [u8; 8],
    pub sampled: bool,
    /// `tracestate` as received.
    pub state: Option<Box<str>>,
}

/// A number that is not 0, as the specification wants ids.
fn id<const N: usize>() -> [u8; N] {
    loop {
        let mut bytes = [0; N];
        bytes.iter_mut().for_each(|byte| *byte = rand::random());
        if bytes != [0; N] {
            return bytes;
        }
    }
}

/// A new span's id.
pub(crate) fn span_id() -> [u8; 8] {
    id()
}

impl Context {
    /// Continues what the caller says; starts a trace if that is nothing, or not valid. `decide` says whether one is sampled about
    /// which no caller decided.
    pub fn accept(traceparent: Option<&str>, tracestate: Option<&str>, decide: impl FnOnce() -> bool) -> Self {
        match traceparent.and_then(parse) {
            Some((trace_id, parent, sampled)) => Self {
                trace_id,
                parent: Some(parent),
                span_id: id(),
                sampled,
                state: tracestate.filter(|state| is_state(state)).map(Into::into),
            },
            // Without a valid parent the state says nothing (§3.3).
            None => Self { trace_id: id(), parent: None, span_id: id(), sampled: decide(), state: None },
        }
    }

    /// Appends the fields for an attempt whose span is `span_id`.
    pub fn write_headers(&self, span_id: [u8; 8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"traceparent: ");
        out.extend_from_slice(self.traceparent(span_id).as_bytes());
        out.extend_from_slice(b"\r\n");
        if let Some(state) = &self.state {
            out.extend_from_slice(b"tracestate: ");
            out.extend_from_slice(state.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The value of `traceparent` for an attempt.
    pub fn traceparent(&self, span_id: [u8; 8]) -> String {
        format!("00-{}-{}-0{}", hex(&self.trace_id), hex(&span_id), u8::from(self.sampled))
    }

    /// Replaces the trace fields of a head by those for an attempt.
    pub fn set_in(&self, span_id: [u8; 8], fields: &mut HeaderMap) {
        // Their characters are those of fields.
        let mut set = |name: &'static str, value: Option<&str>| match value.and_then(|value| value.parse().ok()) {
            Some(value) => drop(fields.insert(name, value)),
            None => drop(fields.remove(name)),
        };
        set("traceparent", Some(&self.traceparent(span_id)));
        set("tracestate", self.state.as_deref());
    }

    /// Replaces the trace fields of a whole HTTP/1.1 head by those for an attempt.
    pub fn replace_in(&self, span_id: [u8; 8], head: &mut Vec<u8>) {
        let mut out = Vec::with_capacity(head.len() + 128);
        for line in head.split_inclusive(|byte| *byte == b'\n') {
            if line == b"\r\n" {
                self.write_headers(span_id, &mut out);
            }
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            if !name.eq_ignore_ascii_case(b"traceparent") && !name.eq_ignore_ascii_case(b"tracestate") {
                out.extend_from_slice(line);
            }
        }
        *head = out;
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
        text
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    // Upper case is not valid (§3.2.2.3).
    if digits.len() != 2 * N || !digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Trace, parent and whether it is sampled (§3.2). Of later versions what is known is read (§4.3).
fn parse(text: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let mut parts = text.trim().splitn(5, '-');
    let version: [u8; 1] = unhex(parts.next()?)?;
    let trace_id: [u8; 16] = unhex(parts.next()?)?;
    let parent: [u8; 8] = unhex(parts.next()?)?;
    let flags: [u8; 1] = unhex(parts.next()?)?;
    let more = parts.next().is_some();
    let valid = version != [0xff] && !(version == [0] && more) && trace_id != [0; 16] && parent != [0; 8];
    valid.then_some((trace_id, parent, flags[0] & 1 != 0))
}

/// Whether a `tracestate` may be passed on: bounded, printable, members with a `=`.
fn is_state(state: &str) -> bool {
    let members = || state.split(',').map(str::trim).filter(|member| !member.is_empty());
    state.len() <= MAX_STATE_BYTES
        && state.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t')
        && members().count() <= MAX_STATE_MEMBERS
        && members().all(|member| member.split_once('=').is_some_and(|(key, _)| !key.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_valid_parents_are_continued() {
        let (trace_id, parent, sampled) = parse(VALID).expect("valid");
        assert_eq!(hex(&trace_id), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((hex(&parent).as_str(), sampled), ("b7ad6b7169203331", true));
        assert!(!parse(&VALID.replace("-01", "-02")).expect("valid").2, "only the lowest bit means sampled");
        assert!(parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some(), "a later version");
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c8031-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319ü-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_state_is_passed_on_with_its_parent_only() {
        let state = |parent, state| Context::accept(parent, Some(state), || true).state;
        assert_eq!(state(Some(VALID), "a=1, b@c=2").as_deref(), Some("a=1, b@c=2"));
        assert_eq!(state(Some("00-bad"), "a=1"), None);
        for bad in ["a", "=1", "a=1\r\nx: y", "a=\u{e9}", &"a=1,".repeat(40), &format!("a={}", "x".repeat(600))] {
            assert_eq!(state(Some(VALID), bad), None, "{bad:?}");
        }
    }

    #[test]
    fn heads_get_our_fields_instead_of_the_clients() {
        let context =
            Context { trace_id: [0xab; 16], parent: None, span_id: [1; 8], sampled: false, state: Some("a=1".into()) };
        let mut head =
            b"GET / HTTP/1.1\r\nhost: a\r\nTraceParent: x\r\nTRACESTATE: y\r\nx: traceparent: z\r\n\r\n".to_vec();
        let with = |span: &str| {
            format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx: traceparent: z\r\ntraceparent: 00-{}-{span}-00\r\ntracestate: a=1\r\n\r\n",
                "ab".repeat(16)
            )
        };
        context.replace_in([2; 8], &mut head);
        assert_eq!(String::from_utf8_lossy(&head), with("0202020202020202"));
        context.replace_in([3; 8], &mut head);
        assert_eq!(String::from_utf8_lossy(&head), with("0303030303030303"), "as often as there are attempts");
    }
}
