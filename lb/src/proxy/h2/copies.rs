//! Copies of HTTP/2 clients' requests for mirrors: written as HTTP/1.1, which is what [`crate::proxy::mirror`] sends to endpoints of
//! either version.
//!
//! Trailers of a request are not copied.

use std::cell::RefCell;
use std::rc::Rc;

use super::head::Head;
use crate::proxy::chunked::{LAST_CHUNK, write_chunk};
use crate::proxy::exchange::Copied;
use crate::proxy::mirror;
use crate::proxy::own::OwnCell;
use crate::proxy::request::{Framing, Request};
use crate::proxy::worker::Worker;
use crate::route::Rule;

/// Sends copies of a request without body, or prepares for copying one's body. `share`: index of the rule's backend that gets the
/// request itself.
pub(super) fn begin(from: (&Rc<Worker>, &OwnCell), head: &Head, rule: &Rule, share: usize) -> Option<RefCell<Copied>> {
    if head.websocket || mirror::all(rule, share).next().is_none() {
        return None;
    }
    if head.framing != Framing::None {
        return Some(RefCell::default());
    }
    send(from, head, rule, share, &[]);
    None
}

/// Sends copies of a request whose body was copied.
pub(super) fn finish(from: (&Rc<Worker>, &OwnCell), head: &Head, rule: &Rule, share: usize, copy: RefCell<Copied>) {
    let Copied { bytes, complete: true, overflowed: false } = copy.into_inner() else { return };
    if head.framing != Framing::Chunked {
        return send(from, head, rule, share, &bytes);
    }
    let mut body = Vec::with_capacity(bytes.len() + 16);
    write_chunk(&bytes, &mut body);
    body.extend_from_slice(LAST_CHUNK);
    send(from, head, rule, share, &body);
}

fn send(from: (&Rc<Worker>, &OwnCell), head: &Head, rule: &Rule, share: usize, body: &[u8]) {
    let mut written = Vec::with_capacity(512);
    head.write_http1(None, &mut written);
    let request = Request {
        length: written.len(),
        framing: head.framing,
        http10: false,
        is_head: head.method == http::Method::HEAD,
        idempotent: head.is_idempotent(),
        upgrade: false,
        expects_continue: false,
        keep_alive: true,
    };
    for mirror in mirror::all(rule, share) {
        mirror::send(from, mirror, &request, &written, body.to_vec());
    }
}
