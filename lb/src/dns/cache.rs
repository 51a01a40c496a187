//! Replies of other resolvers, kept for as long as they allow (RFC 1035 §7.4, RFC 2308), and questions that are being
//! asked, so that many clients with one question cost one packet. Bounded in bytes; does no I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::forward::Transport;
use super::zone::response_to;

/// Memory of kept replies, by the size of their packets and [`ENTRY_OVERHEAD`] each.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Rough size of a parsed entry beyond its packet.
const ENTRY_OVERHEAD: usize = 512;
/// Longest time a reply is kept, whatever it says.
const MAX_TTL: u32 = 3_600;
/// Likewise for a reply that says no.
const MAX_NEGATIVE_TTL: u32 = 300;

/// What makes two questions one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// Lower case (RFC 4343), so that clients that mix case share.
    name: Name,
    kind: RecordType,
    class: DNSClass,
    /// `RD`, `CD` and `DO` change what a resolver answers.
    flags: [bool; 3],
}

impl Question {
    /// Of a query with one question.
    pub fn of(request: &Message) -> Option<Self> {
        let [query] = &request.queries[..] else { return None };
        let dnssec_ok = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        Some(Self {
            name: query.name().to_lowercase(),
            kind: query.query_type(),
            class: query.query_class(),
            flags: [request.metadata.recursion_desired, request.metadata.checking_disabled, dnssec_ok],
        })
    }
}

/// What became of a question that somebody else asked: the packet, or nothing.
pub(super) type Shared = Option<Arc<Vec<u8>>>;

/// Resolves to what became of it; earlier than that, to nothing.
type Waiting = watch::Receiver<Option<Shared>>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cache {
    kept: Mutex<Kept>,
    asked: Mutex<HashMap<(Question, Transport), Waiting>>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<Question, Entry>,
    /// Oldest first; a number that is not the entry's was replaced.
    order: VecDeque<(Question, u64)>,
    bytes: usize,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    message: Arc<Message>,
    bytes: usize,
    number: u64,
    since: Instant,
    until: Instant,
}

/// Whose turn it is to ask.
pub(super) enum Turn {
    /// The caller's; it gives what came of it to [`Cache::done`].
    Ask(watch::Sender<Option<Shared>>),
    /// Somebody else has asked.
    Wait(Waiting),
}

impl Cache {
    /// The kept reply to `request`, with its identity and the time that is left.
    pub fn get(&self, question: &Question, request: &Message, now: Instant) -> Option<Message> {
        let (message, age) = {
            let kept = self.kept.lock();
            let entry = kept.entries.get(question).filter(|entry| now < entry.until)?;
            (entry.message.clone(), now.saturating_duration_since(entry.since))
        };
        Some(readdress(&message, request, u32::try_from(age.as_secs()).unwrap_or(u32::MAX)))
    }

    /// Keeps the reply `packet` if it may be kept.
    pub fn put(&self, question: Question, packet: &[u8], now: Instant) {
        let Ok(message) = Message::from_vec(packet) else { return };
        let Some(ttl) = lifetime(&message).filter(|ttl| *ttl > 0) else { return };
        let bytes = packet.len() + ENTRY_OVERHEAD;
        let mut kept = self.kept.lock();
        kept.next += 1;
        let number = kept.next;
        let until = now + Duration::from_secs(ttl.into());
        let entry = Entry { message: Arc::new(message), bytes, number, since: now, until };
        kept.order.push_back((question.clone(), number));
        kept.bytes += bytes;
        if let Some(old) = kept.entries.insert(question, entry) {
            kept.bytes -= old.bytes;
        }
        // Replaced entries stay in the order until they are the oldest, so that, too, is bounded.
        while kept.bytes > MAX_BYTES || kept.order.len() > MAX_BYTES / ENTRY_OVERHEAD {
            let Some((oldest, number)) = kept.order.pop_front() else { return };
            if kept.entries.get(&oldest).is_some_and(|entry| entry.number == number)
                && let Some(entry) = kept.entries.remove(&oldest)
            {
                kept.bytes -= entry.bytes;
            }
        }
    }

    /// Whether the caller should ask `question`, or wait for somebody who has.
    pub fn turn(&self, question: &Question, transport: Transport) -> Turn {
        let mut asked = self.asked.lock();
        // Bounded by the questions that may be asked at once.
        match asked.get(&(question.clone(), transport)) {
            Some(waiting) if waiting.has_changed().is_ok() => Turn::Wait(waiting.clone()),
            _ => {
                let (sender, receiver) = watch::channel(None);
                asked.insert((question.clone(), transport), receiver);
                Turn::Ask(sender)
            }
        }
    }

    /// Tells those who wait.
    pub fn done(
        &self,
        question: &Question,
        transport: Transport,
        sender: watch::Sender<Option<Shared>>,
        reply: Shared,
    ) {
        self.asked.lock().remove(&(question.clone(), transport));
        // Nobody may be waiting.
        let _ = sender.send(Some(reply));
    }
}

/// `message` as the answer to `request`, `age` seconds after it came.
pub(super) fn readdress(message: &Message, request: &Message, age: u32) -> Message {
    let mut answer = response_to(request);
    let flags = answer.metadata;
    answer.metadata = message.metadata;
    answer.metadata.id = flags.id;
    answer.metadata.recursion_desired = flags.recursion_desired;
    let older = |records: &[Record]| -> Vec<Record> {
        let mut records = records.to_vec();
        records.iter_mut().for_each(|record| record.ttl = record.ttl.saturating_sub(age));
        records
    };
    answer.add_answers(older(&message.answers));
    answer.add_authorities(older(&message.authorities));
    answer.add_additionals(older(&message.additionals));
    answer
}

/// Seconds that a reply may be kept; `None`: not at all.
fn lifetime(message: &Message) -> Option<u32> {
    if message.metadata.truncation {
        return None;
    }
    let positive = message.metadata.response_code == ResponseCode::NoError && !message.answers.is_empty();
    if positive {
        let all = message.answers.iter().chain(&message.authorities).chain(&message.additionals);
        return Some(all.map(|record| record.ttl).min().unwrap_or(0).min(MAX_TTL));
    }
    let negative = matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    // The SOA's own TTL and its last field, whichever is less (RFC 2308 §5); without one nothing is known.
    let soa = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    });
    soa.filter(|_| negative).map(|ttl| ttl.min(MAX_NEGATIVE_TTL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{MessageType, Query};
    use hickory_proto::rr::rdata::{A, SOA};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn request(text: &str, id: u16) -> Message {
        let mut request = Message::query();
        request.metadata.id = id;
        request.metadata.recursion_desired = true;
        request.add_query(Query::query(name(text), RecordType::A));
        request
    }

    fn reply(request: &Message, code: ResponseCode, answer: Option<u32>, soa: Option<(u32, u32)>) -> Message {
        let mut reply = response_to(request);
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.response_code = code;
        let own = request.queries[0].name().clone();
        if let Some(ttl) = answer {
            reply.add_answer(Record::from_rdata(own, ttl, RData::A(A::new(192, 0, 2, 1))));
        }
        if let Some((ttl, minimum)) = soa {
            let data = SOA::new(name("ns.example."), name("x.example."), 1, 1, 1, 1, minimum);
            reply.add_authority(Record::from_rdata(name("example."), ttl, RData::SOA(data)));
        }
        reply
    }

    #[test]
    fn replies_live_as_long_as_they_say() {
        let check = |code, answer, soa, expected| {
            assert_eq!(lifetime(&reply(&request("a.example.", 1), code, answer, soa)), expected);
        };
        check(ResponseCode::NoError, Some(60), None, Some(60));
        check(ResponseCode::NoError, Some(1_000_000), None, Some(MAX_TTL));
        check(ResponseCode::NoError, Some(60), Some((10, 900)), Some(10));
        check(ResponseCode::NXDomain, None, Some((900, 30)), Some(30));
        check(ResponseCode::NoError, None, Some((20, 900)), Some(20));
        check(ResponseCode::NXDomain, None, Some((9_000, 9_000)), Some(MAX_NEGATIVE_TTL));
        check(ResponseCode::NXDomain, None, None, None);
        check(ResponseCode::ServFail, None, Some((900, 30)), None);
        let mut cut = reply(&request("a.example.", 1), ResponseCode::NoError, Some(60), None);
        cut.metadata.truncation = true;
        assert_eq!(lifetime(&cut), None);
    }

    #[test]
    fn a_kept_reply_is_told_to_others_under_their_identity_and_grows_old() {
        let cache = Cache::default();
        let (first, start) = (request("a.example.", 1), Instant::now());
        let packet = reply(&first, ResponseCode::NoError, Some(60), None).to_vec().expect("encodes");
        cache.put(Question::of(&first).expect("one question"), &packet, start);
        let second = request("A.Example.", 2);
        let question = Question::of(&second).expect("one question");
        let later = start + Duration::from_secs(20);
        let got = cache.get(&question, &second, later).expect("kept");
        assert_eq!((got.metadata.id, got.answers[0].ttl), (2, 40));
        assert!(got.queries[0].name().eq_case(second.queries[0].name()), "the client's own spelling");
        assert!(cache.get(&question, &second, start + Duration::from_secs(60)).is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let cache = Cache::default();
        let now = Instant::now();
        let count = MAX_BYTES / ENTRY_OVERHEAD + 100;
        let all: Vec<Message> = (0..count).map(|i| request(&format!("n{i}.example."), 1)).collect();
        for request in &all {
            let packet = reply(request, ResponseCode::NoError, Some(60), None).to_vec().expect("encodes");
            cache.put(Question::of(request).expect("one question"), &packet, now);
        }
        assert!(cache.kept.lock().bytes <= MAX_BYTES && cache.kept.lock().order.len() <= count);
        let get = |request: &Message| cache.get(&Question::of(request).expect("one question"), request, now);
        assert!(get(&all[0]).is_none() && get(&all[count - 1]).is_some());
    }
}
