//! One request and its plugin: filled in, asked, and what it said kept until the attempt that it is about.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use scaleup_plugins::routing::{self, Decision, Header, Input};
use scaleup_plugins::{Class, Decided, Failure, OnFailure};

use super::view::View;
use super::{Binding, Ruling, Verdict};
use crate::access::without_port;
use crate::backend::{Backend, Tried};
use crate::balance::clock;
use crate::balance::session::{self, Chosen};
use crate::policy::PluginRef;
use crate::route::{Head, Rule};

/// Sheets that a thread keeps for the next requests.
const MAX_SPARE: usize = 64;
/// When a client may come back, in seconds: where a plugin failed at this request, and where none is there to be asked.
const RETRY_AFTER_FAILURE: &str = "1";
const RETRY_AFTER_ABSENCE: &str = "5";
/// Fields that the load balancer itself adds to its answers.
const OUR_FIELDS: [&str; 2] = ["content-type", "date"];

/// Where questions are written: in steady state nothing is allocated.
#[derive(Default)]
struct Sheet {
    input: Input,
    /// What the question is about, as the request found it.
    backends: Vec<Option<Arc<Backend>>>,
}

/// A thread's sheets.
pub(crate) struct Desk {
    thread: usize,
    /// Decisions are counted.
    counts: bool,
    #[allow(clippy::vec_box, reason = "a sheet goes from request to request as it is")]
    spare: RefCell<Vec<Box<Sheet>>>,
}

impl Desk {
    /// Of a proxy thread.
    pub fn new(thread: usize) -> Self {
        Self { thread, counts: true, spare: RefCell::default() }
    }

    /// For explanations.
    pub fn uncounted() -> Self {
        Self { counts: false, ..Self::new(0) }
    }

    fn take(&self) -> Box<Sheet> {
        self.spare.borrow_mut().pop().unwrap_or_default()
    }

    fn put(&self, mut sheet: Box<Sheet>) {
        sheet.backends.clear();
        let mut spare = self.spare.borrow_mut();
        if spare.len() < MAX_SPARE {
            spare.push(sheet);
        }
    }
}

/// An answer in place of an endpoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub status: StatusCode,
    /// Valid fields, none that frames the message.
    pub headers: Vec<Header>,
    pub text: String,
}

/// For the next attempt.
enum Next {
    /// This endpoint of the backend.
    Pick(usize),
    BuiltIn,
    Refuse(Box<Refused>),
}

/// See the module.
pub(crate) struct Asked {
    binding: Arc<Binding>,
    view: Arc<View>,
    sheet: Box<Sheet>,
    /// Position in the sheet of the backend that the request goes to.
    position: usize,
    /// Likewise of the one that the latest answer picked.
    picked: Option<usize>,
    next: Option<Next>,
    ruling: Ruling,
    generation: Option<u64>,
}

/// Chooses where a request of `rule` goes, with the plugin that has a say in it, if there is one. `https`: the client came over TLS.
pub(crate) fn choose(rule: &Rule, head: &impl Head, https: bool, desk: &Desk) -> (Chosen, Option<Asked>) {
    if let Some(binding) = rule.plugin.as_ref().filter(|binding| binding.wanted.whole_rule) {
        return among_all(rule, binding, head, https, desk);
    }
    let chosen = session::choose(rule, head, https, rand::random);
    let Some((share, backend)) = chosen.share.zip(chosen.backend.as_ref()) else { return (chosen, None) };
    let mut sheet;
    let (binding, position) = match (&backend.plugin, &rule.plugin) {
        (Some(binding), _) => {
            sheet = desk.take();
            sheet.backends.push(Some(backend.clone()));
            (binding, 0)
        }
        (None, Some(binding)) => {
            sheet = desk.take();
            sheet.backends.extend(backends(rule));
            sheet.backends[share] = Some(backend.clone());
            (binding, share)
        }
        (None, None) => return (chosen, None),
    };
    let mut asked = Asked::new(binding, sheet, head);
    asked.position = position;
    if !asked.ask(position..position + 1, Tried::default(), desk) {
        asked.close(desk);
        return (chosen, None);
    }
    (chosen, Some(asked))
}

fn backends(rule: &Rule) -> impl Iterator<Item = Option<Arc<Backend>>> {
    rule.backends.iter().map(|share| share.cell.as_ref().map(|cell| cell.load_full()))
}

/// Lets the plugin of a rule choose among all of its endpoints.
fn among_all(
    rule: &Rule,
    binding: &Arc<Binding>,
    head: &impl Head,
    https: bool,
    desk: &Desk,
) -> (Chosen, Option<Asked>) {
    let mut sheet = desk.take();
    sheet.backends.extend(backends(rule));
    let mut asked = Asked::new(binding, sheet, head);
    let built_in = || session::choose(rule, head, https, rand::random);
    if !asked.ask(0..rule.backends.len(), Tried::default(), desk) {
        // There are no endpoints to choose from.
        asked.close(desk);
        return (built_in(), None);
    }
    match asked.picked {
        Some(share) => {
            asked.position = share;
            let backend = asked.sheet.backends.get(share).cloned().flatten();
            (session::with_share(rule, head, https, share, backend), Some(asked))
        }
        None => {
            let mut chosen = built_in();
            asked.position = chosen.share.unwrap_or_default();
            if chosen.session.as_ref().is_none_or(|session| session.pinned().is_none()) {
                // The one that was asked about, should another have come in its place meanwhile.
                chosen.backend = asked.sheet.backends.get(asked.position).cloned().flatten();
            }
            (chosen, Some(asked))
        }
    }
}

impl Asked {
    fn new(binding: &Arc<Binding>, mut sheet: Box<Sheet>, head: &impl Head) -> Self {
        write_request(&mut sheet.input.request, head, binding);
        let view = binding.view(&sheet.backends);
        let (ruling, generation) = (Ruling::Default, None);
        Self { binding: binding.clone(), view, sheet, position: 0, picked: None, next: None, ruling, generation }
    }

    /// Asks about the endpoints of the backends at these positions and keeps the answer; `false` if there are none.
    fn ask(&mut self, positions: Range<usize>, tried: Tried, desk: &Desk) -> bool {
        let (now, random) = (Instant::now(), rand::random());
        let now_ms = clock::ms(now);
        let Some(offer) = self.view.offer(positions.clone(), random) else { return false };
        let Sheet { input, backends } = &mut *self.sheet;
        backends[positions].iter().flatten().for_each(|backend| backend.refresh(now_ms));
        self.view.fill(backends, offer, tried, now_ms, &mut input.endpoints);
        (input.topology_version, input.random) = (self.view.version, random);
        input.time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let decided = self.binding.slot.policy.route(input, &self.view.topology, desk.thread, now);
        self.generation = decided.as_ref().ok().map(|decided| decided.generation);
        let mut picked = None;
        let (ruling, next) = match decided {
            Err(failure) => self.failed(&failure),
            Ok(Decided { answer: Decision::Default, .. }) => (Ruling::Default, Next::BuiltIn),
            Ok(Decided { answer: Decision::Reject(rejection), .. }) => {
                (Ruling::Reject, Next::Refuse(Box::new(self.rejection(rejection))))
            }
            Ok(Decided { answer: Decision::Pick(at), .. }) => {
                let (position, index) = self.view.place(offer, at as usize);
                picked = Some(position);
                let backend = self.sheet.backends.get(position).and_then(Option::as_ref);
                if backend.is_some_and(|backend| backend.availability.is_up(index)) && !tried.contains(index) {
                    (Ruling::Pick, Next::Pick(index))
                } else {
                    (Ruling::Overruled, Next::BuiltIn)
                }
            }
        };
        if desk.counts {
            self.binding.counts.count(desk.thread, self.generation, ruling);
        }
        (self.ruling, self.next, self.picked) = (ruling, Some(next), picked);
        true
    }

    fn failed(&self, failure: &Failure) -> (Ruling, Next) {
        let plugin = self.binding.slot.policy.name();
        tracing::debug!(%plugin, class = failure.class.name(), error = %failure, "a routing plugin gave no decision");
        if self.binding.slot.failure().on(failure.class) == OnFailure::BuiltIn {
            return (Ruling::Failed, Next::BuiltIn);
        }
        let absent = failure.skipped || matches!(failure.class, Class::Fetch | Class::Compile);
        let after = if absent { RETRY_AFTER_ABSENCE } else { RETRY_AFTER_FAILURE };
        let refused = Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            headers: vec![Header { name: "retry-after".to_owned(), value: after.to_owned() }],
            text: format!("503: plugin {plugin} gave no decision\n"),
        };
        (Ruling::Refused, Next::Refuse(Box::new(refused)))
    }

    fn rejection(&self, rejection: routing::Rejection) -> Refused {
        let status = StatusCode::from_u16(rejection.status).unwrap_or(StatusCode::FORBIDDEN);
        let mut headers = rejection.headers;
        headers.retain(|header| !OUR_FIELDS.contains(&header.name.as_str()));
        // RFC 9110 §15.4.5: no content may follow.
        let text = match status {
            StatusCode::NOT_MODIFIED => String::new(),
            status => format!("{}: refused by plugin {}\n", status.as_u16(), self.binding.slot.policy.name()),
        };
        Refused { status, headers, text }
    }

    /// The answer for the client, if the request must not be sent at all.
    pub fn refusal(&mut self) -> Option<Box<Refused>> {
        match self.next.take()? {
            Next::Refuse(refused) => Some(refused),
            other => {
                self.next = Some(other);
                None
            }
        }
    }

    /// Index of the endpoint of `backend` for the next attempt; `None` leaves it to the built-in policy.
    pub fn next(&mut self, backend: &Arc<Backend>, tried: Tried, desk: &Desk) -> Result<Option<usize>, Box<Refused>> {
        if !self.view.has(self.position, Some(backend)) {
            return Ok(None);
        }
        if self.next.is_none() {
            let attempt = &mut self.sheet.input.request.attempt;
            *attempt = attempt.saturating_add(1);
            self.ask(self.position..self.position + 1, tried, desk);
        }
        match self.next.take() {
            Some(Next::Pick(index)) => Ok(Some(index)),
            Some(Next::Refuse(refused)) => Err(refused),
            Some(Next::BuiltIn) | None => Ok(None),
        }
    }

    /// Index of the endpoint that would be asked first, in the backend that was chosen.
    pub fn first(&self) -> Option<usize> {
        match self.next {
            Some(Next::Pick(index)) => Some(index),
            _ => None,
        }
    }

    /// What is told of the latest decision.
    pub fn verdict(&self) -> Verdict {
        Verdict { plugin: self.binding.slot.policy.name().clone(), ruling: self.ruling, generation: self.generation }
    }

    /// The request is over.
    pub fn close(self, desk: &Desk) {
        desk.put(self.sheet);
    }
}

/// Overwrites `request` with what `head` says; what was allocated for the one before is used again.
fn write_request(request: &mut routing::Request, head: &impl Head, binding: &Binding) {
    let client = head.client();
    request.method = head.method().into();
    // A Service's own port passes hosts on as they are.
    write(&mut request.host, without_port(head.host()));
    request.host.make_ascii_lowercase();
    write(&mut request.path, head.path());
    (request.client, request.attempt) = (client.into(), 0);
    let place = binding.geo.place(client);
    request.place = place.map(|(latitude, longitude)| routing::Place { latitude, longitude });
    write_headers(&mut request.headers, head, &binding.wanted);
}

fn write_headers(headers: &mut Vec<Header>, head: &impl Head, wanted: &PluginRef) {
    let mut count = 0;
    for name in &wanted.headers {
        let Some(value) = head.header(name) else { continue };
        if headers.len() == count {
            headers.push(Header::default());
        }
        if let Some(header) = headers.get_mut(count) {
            write(&mut header.name, name);
            write(&mut header.value, &value);
            count += 1;
        }
    }
    headers.truncate(count);
}

fn write(text: &mut String, new: &str) {
    text.clear();
    text.push_str(new);
}
