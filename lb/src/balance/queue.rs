//! A bounded queue with priority classes: first come, first served within a class, strict priority between classes, and no class waits
//! for ever. Pure; waiting itself is [`super::state`]'s.

use std::collections::VecDeque;

/// Classes at most, the last one without name included.
pub(crate) const MAX_CLASSES: usize = 9;
/// After so many turns in a row for higher classes a lower one that waits has the next.
const MAX_PASSED_OVER: u32 = 31;

/// Where something waits: for taking it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    class: usize,
    number: u64,
}

/// See the module. Class 0 has the highest priority.
#[derive(Debug)]
pub(super) struct WaitQueue<T> {
    classes: [VecDeque<(u64, T)>; MAX_CLASSES],
    passed_over: [u32; MAX_CLASSES],
    next: u64,
    len: usize,
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self { classes: Default::default(), passed_over: [0; MAX_CLASSES], next: 0, len: 0 }
    }
}

impl<T> WaitQueue<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn push(&mut self, class: usize, item: T) -> Ticket {
        let ticket = Ticket { class: class.min(MAX_CLASSES - 1), number: self.next };
        self.next += 1;
        self.len += 1;
        self.classes[ticket.class].push_back((ticket.number, item));
        ticket
    }

    /// Whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let highest = self.classes.iter().position(|class| !class.is_empty())?;
        let starved = (highest + 1..MAX_CLASSES)
            .find(|class| !self.classes[*class].is_empty() && self.passed_over[*class] >= MAX_PASSED_OVER);
        let class = starved.unwrap_or(highest);
        for lower in class + 1..MAX_CLASSES {
            // One that has nobody waiting is not kept waiting.
            let waits = !self.classes[lower].is_empty();
            self.passed_over[lower] = if waits { self.passed_over[lower].saturating_add(1) } else { 0 };
        }
        self.passed_over[class] = 0;
        self.len -= 1;
        self.classes[class].pop_front().map(|(_, item)| item)
    }

    /// Takes back what does not want to wait any more; false if it had its turn.
    pub fn remove(&mut self, ticket: Ticket) -> bool {
        let class = &mut self.classes[ticket.class];
        // Numbers grow along a class.
        let Ok(at) = class.binary_search_by_key(&ticket.number, |(number, _)| *number) else { return false };
        class.remove(at);
        self.len -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(items: &[(usize, &'static str)]) -> WaitQueue<&'static str> {
        let mut queue = WaitQueue::default();
        for (class, name) in items {
            queue.push(*class, *name);
        }
        queue
    }

    fn drain(queue: &mut WaitQueue<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn classes_go_before_arrival_and_arrival_within_a_class() {
        let mut queue = filled(&[(1, "b1"), (0, "a1"), (2, "c1"), (1, "b2"), (0, "a2")]);
        assert_eq!(drain(&mut queue), ["a1", "a2", "b1", "b2", "c1"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn nobody_starves() {
        let mut queue = filled(&[(3, "low")]);
        let mut served = Vec::new();
        for _ in 0..100 {
            queue.push(0, "high");
            served.extend(queue.pop());
        }
        assert_eq!(served.iter().position(|name| *name == "low"), Some(MAX_PASSED_OVER as usize));
    }

    #[test]
    fn two_lower_classes_share_what_high_priority_leaves() {
        let mut queue = WaitQueue::default();
        let mut counts = [0; 3];
        for _ in 0..3_300 {
            for class in 0..3 {
                if class == 0 || queue.classes[class].is_empty() {
                    queue.push(class, class);
                }
            }
            counts[queue.pop().expect("somebody waits")] += 1;
        }
        assert!(counts[1] > 80 && counts[2] > 80, "{counts:?}");
    }

    #[test]
    fn leaving_the_queue_keeps_the_others_order() {
        let mut queue = WaitQueue::default();
        let tickets: Vec<_> = ["a", "b", "c"].into_iter().map(|name| queue.push(1, name)).collect();
        assert!(queue.remove(tickets[1]) && !queue.remove(tickets[1]));
        assert_eq!(queue.pop(), Some("a"));
        assert!(!queue.remove(tickets[0]), "it had its turn");
        assert_eq!((queue.pop(), queue.pop()), (Some("c"), None));
    }
}
