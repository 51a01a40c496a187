//! Turns by weight: the order in which endpoints are served when nothing else distinguishes them. Pure.

/// Longest order; weights are rounded to fit.
const MAX_TURNS: usize = 4_096;

/// Smooth weighted round robin (as nginx's): in every `sum of weights` turns each member has as many as its weight, spread as evenly as
/// can be. `members` are `(index, weight)`; weights of 0 get no turn.
pub(super) fn turns(members: &[(u32, u32)]) -> Box<[u32]> {
    let mut members: Vec<(u32, u64)> =
        members.iter().filter(|(_, weight)| *weight > 0).map(|(index, weight)| (*index, u64::from(*weight))).collect();
    let Some(divisor) = members.iter().map(|(_, weight)| *weight).reduce(gcd) else { return Box::default() };
    members.iter_mut().for_each(|(_, weight)| *weight /= divisor);
    let total: u64 = members.iter().map(|(_, weight)| weight).sum();
    let most = MAX_TURNS.max(members.len()) as u64;
    if total > most {
        // Everybody keeps at least one turn.
        let room = most - members.len() as u64;
        members.iter_mut().for_each(|(_, weight)| *weight = 1 + *weight * room / total);
    }
    if members.iter().all(|(_, weight)| *weight == members[0].1) {
        return members.iter().map(|(index, _)| *index).collect();
    }
    let total: i64 = members.iter().map(|(_, weight)| *weight as i64).sum();
    let mut current: Vec<i64> = vec![0; members.len()];
    let next = |_| {
        let mut best = 0;
        for (at, (_, weight)) in members.iter().enumerate() {
            current[at] += *weight as i64;
            if current[at] > current[best] {
                best = at;
            }
        }
        current[best] -= total;
        members[best].0
    };
    (0..total).map(next).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(members: &[(u32, u32)], expected: &[u32]) {
        assert_eq!(*turns(members), *expected);
    }

    #[test]
    fn turns_are_smooth_and_exact() {
        check(&[], &[]);
        check(&[(0, 100), (1, 100), (2, 100)], &[0, 1, 2]);
        check(&[(0, 5), (1, 1), (2, 1)], &[0, 0, 1, 0, 2, 0, 0]);
        check(&[(7, 300), (8, 0), (9, 100)], &[7, 7, 9, 7]);
    }

    #[test]
    fn long_orders_are_bounded_and_keep_everybody() {
        let members: Vec<(u32, u32)> = (0..200).map(|i| (i, if i == 0 { 1 } else { 997 + i % 3 })).collect();
        let order = turns(&members);
        assert!(order.len() <= MAX_TURNS);
        assert!((0..200).all(|i| order.contains(&i)));
    }
}
