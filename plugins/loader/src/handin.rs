//! Hands recorded decisions in at the API server, where they are asked for: what a process without an API server records can be had nowhere else.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use scaleup_plugins::{PluginKey, Slot};

/// Most records that are handed in at once.
const MOST_RECORDS: usize = 1000;
/// Most bytes of them. A longer record stays here.
const MOST_BYTES: usize = 4 << 20;
/// Longest wait for the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// JSON lines, and the number of the record to go on from.
fn batch(slot: &Slot, number: u64) -> (String, u64) {
    let (mut text, mut next) = (String::new(), number);
    for (after, record) in slot.records_since(number, MOST_RECORDS) {
        let line = record.line().ok().filter(|line| line.len() < MOST_BYTES);
        if let Some(line) = line {
            if text.len() + line.len() >= MOST_BYTES {
                break;
            }
            text += &line;
            text.push('\n');
        }
        next = after;
    }
    (text, next)
}

/// Hands in what was recorded from this number on, as far as it fits into one call; the number to go on from.
pub async fn hand_in(client: &Client, key: &PluginKey, slot: Arc<Slot>, number: u64) -> u64 {
    let made = tokio::task::spawn_blocking(move || batch(&slot, number)).await;
    let Ok((text, next)) = made else { return number };
    if text.is_empty() {
        return next;
    }
    // Names of objects need no escapes in a query.
    let request = http::Request::post(format!("/plugins/records?plugin={key}"))
        .header(http::header::CONTENT_TYPE, "application/jsonl")
        .body(text.into_bytes());
    let Ok(request) = request else { return next };
    match tokio::time::timeout(TIMEOUT, client.request_text(request)).await {
        Ok(Ok(_)) => next,
        // Recording has just ended, or the plugin is gone: it would be refused again.
        Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
            tracing::debug!(plugin = %key, message = status.message, "records are refused, and dropped");
            next
        }
        Ok(Err(error)) => {
            tracing::debug!(plugin = %key, %error, "records cannot be handed in; will retry");
            number
        }
        Err(_) => number,
    }
}
