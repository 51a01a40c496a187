//! What a Service port keeps across snapshots: whose turn it is, what is in flight, and who waits for a place.
//!
//! Entering costs one compare-and-swap, and only where a limit is set; the queue's lock is taken only when somebody waits. A place that
//! becomes free goes to the first in the queue, on whichever thread that one waits; newcomers never overtake.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::queue::{Ticket, WaitQueue};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct PortState {
    /// Next turn, shared over threads and snapshots so that turns are exact.
    pub turn: AtomicUsize,
    requests: Slots,
    connections: Slots,
    retries: AtomicU32,
    pub totals: Totals,
}

/// What limits did, since the port was first seen. For metrics.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Requests and connections refused for a limit, a full queue or a wait that was too long.
    pub refused: AtomicU64,
    /// Requests that waited.
    pub queued: AtomicU64,
    /// How long they did, in nanoseconds.
    pub queued_ns: AtomicU64,
    /// Retries refused for the limit on retries in flight.
    pub retries_refused: AtomicU64,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Requests,
    Connections,
}

#[derive(Debug, Default)]
struct Slots {
    active: AtomicU32,
    /// As of the last entry.
    limit: AtomicU32,
    /// In the queue, or about to be.
    waiting: AtomicU32,
    queue: Mutex<WaitQueue<oneshot::Sender<Permit>>>,
}

impl Slots {
    fn try_take(&self, limit: u32) -> bool {
        self.active.fetch_update(SeqCst, SeqCst, |active| (active < limit).then_some(active + 1)).is_ok()
    }
}

impl PortState {
    fn slots(&self, kind: Kind) -> &Slots {
        match kind {
            Kind::Requests => &self.requests,
            Kind::Connections => &self.connections,
        }
    }

    /// A place, if one is free and nobody waits.
    pub(super) fn try_enter(self: &Arc<Self>, kind: Kind, limit: u32) -> Option<Permit> {
        let slots = self.slots(kind);
        if slots.limit.load(Relaxed) != limit {
            slots.limit.store(limit, Relaxed);
        }
        (slots.waiting.load(SeqCst) == 0 && slots.try_take(limit)).then(|| Permit::new(self.clone(), Some(kind)))
    }

    /// A permit that holds no place, only retries.
    pub(super) fn free_permit(self: &Arc<Self>) -> Permit {
        Permit::new(self.clone(), None)
    }

    /// Waits for a place; `None` when `max_depth` others wait already or none became free within `timeout`.
    pub(super) async fn wait(
        self: &Arc<Self>,
        limit: u32,
        class: usize,
        max_depth: u32,
        timeout: Duration,
    ) -> Option<Permit> {
        let started = Instant::now();
        let slots = &self.requests;
        let (ticket, turn) = {
            // Counted before looking: whoever gives a place back after our look sees us.
            slots.waiting.fetch_add(1, SeqCst);
            let mut queue = slots.queue.lock();
            let free = queue.len() == 0 && slots.try_take(limit);
            if free || queue.len() >= max_depth as usize {
                slots.waiting.fetch_sub(1, SeqCst);
                return free.then(|| Permit::new(self.clone(), Some(Kind::Requests)));
            }
            let (sender, turn) = oneshot::channel();
            (queue.push(class, sender), turn)
        };
        let waiting = Waiting { slots, ticket };
        let permit = tokio::time::timeout(timeout, turn).await.ok().and_then(Result::ok);
        // Takes us out of the queue if we are still there.
        drop(waiting);
        let waited = started.elapsed();
        self.totals.queued.fetch_add(1, Relaxed);
        self.totals.queued_ns.fetch_add(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        permit.map(|mut permit| {
            permit.waited = waited;
            permit
        })
    }

    /// Gives a place back, to the first who waits.
    fn leave(self: &Arc<Self>, kind: Kind) {
        let slots = self.slots(kind);
        slots.active.fetch_sub(1, SeqCst);
        while slots.waiting.load(SeqCst) > 0 {
            let next = {
                let mut queue = slots.queue.lock();
                if queue.len() == 0 || !slots.try_take(slots.limit.load(Relaxed).max(1)) {
                    return;
                }
                queue.pop()
            };
            slots.waiting.fetch_sub(1, SeqCst);
            let permit = Permit::new(self.clone(), Some(kind));
            let refused = next.map_or_else(|| None, |next| next.send(permit).err());
            if let Some(mut permit) = refused {
                // It went away a moment ago; not by its drop, which would come back here.
                permit.kind = None;
                slots.active.fetch_sub(1, SeqCst);
            }
        }
    }

    /// In flight and waiting now: requests, connections, waiting requests.
    #[cfg_attr(not(test), expect(dead_code, reason = "for metrics"))]
    pub fn in_flight(&self) -> (u32, u32, u32) {
        (self.requests.active.load(Relaxed), self.connections.active.load(Relaxed), self.requests.waiting.load(Relaxed))
    }
}

/// Leaves the queue when dropped, as a client that goes away does.
struct Waiting<'a> {
    slots: &'a Slots,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.slots.queue.lock().remove(self.ticket) {
            self.slots.waiting.fetch_sub(1, SeqCst);
        }
    }
}

/// Leave to have one request or connection in flight; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Permit {
    state: Option<Arc<PortState>>,
    kind: Option<Kind>,
    retrying: Cell<bool>,
    waited: Duration,
}

impl Permit {
    fn new(state: Arc<PortState>, kind: Option<Kind>) -> Self {
        Self { state: Some(state), kind, retrying: Cell::new(false), waited: Duration::ZERO }
    }

    /// Time spent in the queue.
    #[expect(dead_code, reason = "for the access log")]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether a retry may be in flight too, beside those of other requests; it counts until the permit is dropped.
    pub fn begin_retry(&self, limit: Option<u32>) -> bool {
        let (Some(limit), Some(state)) = (limit, &self.state) else { return true };
        if self.retrying.get() {
            return true;
        }
        let free =
            state.retries.fetch_update(Relaxed, Relaxed, |active| (active < limit).then_some(active + 1)).is_ok();
        self.retrying.set(free);
        if !free {
            state.totals.retries_refused.fetch_add(1, Relaxed);
        }
        free
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(state) = self.state.take() else { return };
        if self.retrying.get() {
            state.retries.fetch_sub(1, Relaxed);
        }
        if let Some(kind) = self.kind {
            state.leave(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn places_go_to_those_who_wait_in_order_of_class_and_arrival() {
        let state: Arc<PortState> = Arc::default();
        let first = state.try_enter(Kind::Requests, 1).expect("it is free");
        assert!(state.try_enter(Kind::Requests, 1).is_none());
        let mut low = Box::pin(state.wait(1, 8, 10, LONG));
        let mut high = Box::pin(state.wait(1, 0, 10, LONG));
        assert!((&mut low).now_or_never().is_none() && (&mut high).now_or_never().is_none());
        drop(first);
        assert!(state.try_enter(Kind::Requests, 1).is_none(), "newcomers do not overtake");
        assert!((&mut low).now_or_never().is_none());
        let served = high.await.expect("its turn");
        assert_eq!(state.in_flight(), (1, 0, 1));
        drop(served);
        drop(low.await.expect("its turn"));
        assert_eq!(state.in_flight(), (0, 0, 0));
    }

    #[tokio::test]
    async fn waits_end_with_the_deadline_or_the_client_and_the_queue_is_bounded() {
        let state: Arc<PortState> = Arc::default();
        let held = state.try_enter(Kind::Requests, 1).expect("it is free");
        assert!(state.wait(1, 0, 10, Duration::from_millis(20)).await.is_none(), "too late");
        let mut waits: Vec<_> = (0..2).map(|_| Box::pin(state.wait(1, 0, 2, LONG))).collect();
        waits.iter_mut().for_each(|wait| assert!(wait.now_or_never().is_none()));
        assert!(state.wait(1, 0, 2, LONG).now_or_never().expect("at once").is_none(), "full");
        drop(waits.remove(0));
        assert_eq!(state.in_flight(), (1, 0, 1), "a client that goes away makes room");
        drop(held);
        drop(waits.remove(0).await.expect("its turn"));
        assert_eq!(state.in_flight(), (0, 0, 0));
        assert_eq!(state.totals.queued.load(Relaxed), 2);
    }

    #[tokio::test]
    async fn a_place_given_to_somebody_who_just_left_goes_on() {
        let state: Arc<PortState> = Arc::default();
        let held = state.try_enter(Kind::Requests, 1).expect("it is free");
        let mut gone = Box::pin(state.wait(1, 0, 9, LONG));
        let mut next = Box::pin(state.wait(1, 0, 9, LONG));
        assert!((&mut gone).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        drop(held);
        // It has its turn, but never looks.
        drop(gone);
        assert!(next.now_or_never().expect("at once").is_some());
        assert_eq!(state.in_flight(), (0, 0, 0));
    }

    #[tokio::test]
    async fn a_raised_limit_lets_more_in() {
        let state: Arc<PortState> = Arc::default();
        let held = [state.try_enter(Kind::Requests, 2), state.try_enter(Kind::Requests, 2)];
        let mut waits: Vec<_> = (0..3).map(|_| Box::pin(state.wait(2, 0, 9, LONG))).collect();
        waits.iter_mut().for_each(|wait| assert!(wait.now_or_never().is_none()));
        assert!(state.try_enter(Kind::Requests, 4).is_none());
        drop(held);
        let served: Vec<_> = waits.into_iter().map(|wait| wait.now_or_never().flatten()).collect();
        assert!(served.iter().all(Option::is_some));
    }

    #[test]
    fn threads_never_exceed_the_limit_and_nobody_is_forgotten() {
        let state: Arc<PortState> = Arc::default();
        let (most, served) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (state, most, served) = (state.clone(), most.clone(), served.clone());
                std::thread::spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                    let work = (0..8).map(|client| {
                        let (state, most, served) = (state.clone(), most.clone(), served.clone());
                        async move {
                            for _ in 0..200 {
                                let permit = match state.try_enter(Kind::Requests, 3) {
                                    Some(permit) => permit,
                                    None => state.wait(3, client % 3, 1_000, LONG).await.expect("its turn"),
                                };
                                most.fetch_max(state.in_flight().0, Relaxed);
                                served.fetch_add(1, Relaxed);
                                tokio::task::yield_now().await;
                                drop(permit);
                            }
                        }
                    });
                    runtime.block_on(futures::future::join_all(work));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("it finishes"));
        assert_eq!(served.load(Relaxed), 4 * 8 * 200);
        assert_eq!(state.in_flight(), (0, 0, 0));
        assert!(most.load(Relaxed) <= 3);
    }

    #[test]
    fn retries_in_flight_are_limited_and_end_with_their_request() {
        let state: Arc<PortState> = Arc::default();
        let (a, b) = (state.free_permit(), state.free_permit());
        assert!(a.begin_retry(Some(1)) && a.begin_retry(Some(1)), "one request has one retry in flight");
        assert!(!b.begin_retry(Some(1)) && b.begin_retry(None));
        drop(a);
        assert!(b.begin_retry(Some(1)));
    }
}
