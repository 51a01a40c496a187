//! The body of a list: the cache's bytes, copied chunk by chunk as the connection takes them.
//!
//! The length is known up front, so HTTP/1 sends it; memory is one chunk however long the list is.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::cache::Cached;

/// Size at which a chunk is handed over: what TLS buffers at a time. Larger ones gain nothing and leave the processor's
/// cache and the allocator's quick sizes.
const CHUNK_BYTES: usize = 64 * 1024;

/// Head, items with commas between them, tail.
pub struct ListBody {
    head: Bytes,
    items: std::vec::IntoIter<Arc<Cached>>,
    tail: Bytes,
    first: bool,
    /// Bytes not handed over yet.
    left: usize,
}

impl ListBody {
    /// `head` ends in `[`, `tail` begins with `]`.
    pub fn new(head: Bytes, items: Vec<Arc<Cached>>, tail: Bytes) -> Self {
        let inner: usize = items.iter().map(|i| i.json.len()).sum();
        let left = head.len() + inner + items.len().saturating_sub(1) + tail.len();
        Self { head, items: items.into_iter(), tail, first: true, left }
    }
}

impl HttpBody for ListBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let mut chunk = Vec::with_capacity(this.left.min(CHUNK_BYTES + CHUNK_BYTES / 4));
        chunk.extend_from_slice(&std::mem::take(&mut this.head));
        while chunk.len() < CHUNK_BYTES {
            let Some(item) = this.items.next() else {
                chunk.extend_from_slice(&std::mem::take(&mut this.tail));
                break;
            };
            if !std::mem::take(&mut this.first) {
                chunk.push(b',');
            }
            chunk.extend_from_slice(&item.json);
        }
        this.left = this.left.saturating_sub(chunk.len());
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(chunk)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    #[tokio::test]
    async fn length_is_exact_and_chunks_are_bounded() {
        for (count, size) in [(0, 1), (1, 1), (3, 10), (5000, 200), (3, CHUNK_BYTES)] {
            let value = |i: usize| {
                let name = format!("o{i}");
                json!({"apiVersion": "v1", "kind": "A", "metadata": {"name": name}, "data": "x".repeat(size)})
            };
            let items: Vec<_> = (0..count).map(|i| Arc::new(Cached::from_value(&value(i), 1, &[]).unwrap())).collect();
            let body = ListBody::new(Bytes::from_static(b"{\"items\":["), items, Bytes::from_static(b"]}"));
            let length = body.size_hint().exact().unwrap();
            let bytes = body.collect().await.unwrap().to_bytes();
            assert_eq!(bytes.len() as u64, length);
            let list: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(list["items"].as_array().unwrap().len(), count);
        }
    }
}
