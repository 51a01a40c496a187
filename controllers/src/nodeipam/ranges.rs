//! Which part of the cluster's range which node has, by value. Knows no API.

use std::collections::BTreeMap;

use scaleup_api::subnet::Subnet;

/// The parts of one range, and who has them. A subnet is given to one node at a time.
#[derive(Debug)]
pub(super) struct Ranges {
    range: Subnet,
    part_bits: u32,
    taken: BTreeMap<Subnet, String>,
    /// Where the next search begins: a part that was released is not given out at once, as upstream's allocator does it.
    next: u32,
}

impl Ranges {
    /// Parts of a prefix of `part_bits` of `range`; none if it has no room for one.
    pub fn new(range: Subnet, part_bits: u32) -> Self {
        Self { range, part_bits, taken: BTreeMap::new(), next: 0 }
    }

    /// Notes that `node` has `subnet`, whatever its size and wherever it is. The node that overlaps it, if another had
    /// (part of) it before.
    pub fn occupy(&mut self, subnet: Subnet, node: &str) -> Option<String> {
        let other = self.holder(subnet, node).map(str::to_owned);
        // Two nodes with one subnet came so from elsewhere: the first one's claim is what must be kept from others.
        self.taken.entry(subnet).or_insert_with(|| node.to_owned());
        other
    }

    /// Gives `node` the part that it was given before, else the wanted one, if it is a part and free, else the next free one;
    /// `None` if there is none.
    pub fn allocate(&mut self, node: &str, wanted: Option<Subnet>) -> Option<Subnet> {
        let is_part = |subnet: Subnet| subnet.bits() == self.part_bits && self.range.contains(subnet);
        if let Some((given, _)) = self.taken.iter().find(|(subnet, holder)| *holder == node && is_part(**subnet)) {
            return Some(*given);
        }
        if let Some(subnet) = wanted.filter(|s| is_part(*s) && self.is_free(*s)) {
            self.taken.insert(subnet, node.to_owned());
            return Some(subnet);
        }
        let count = self.range.parts(self.part_bits);
        let (index, subnet) = (0..count)
            .map(|i| (self.next + i) % count)
            .filter_map(|i| Some((i, self.range.part(self.part_bits, i)?)))
            .find(|(_, subnet)| self.is_free(*subnet))?;
        self.next = (index + 1) % count;
        self.taken.insert(subnet, node.to_owned());
        Some(subnet)
    }

    /// Takes everything back from `node`.
    pub fn release(&mut self, node: &str) {
        self.taken.retain(|_, holder| holder != node);
    }

    fn is_free(&self, subnet: Subnet) -> bool {
        self.holder(subnet, "").is_none()
    }

    /// Who beside `node` has some of `subnet`.
    fn holder(&self, subnet: Subnet, node: &str) -> Option<&str> {
        // Subnets nest or are apart: one that overlaps begins in this one, or is one of the few that this one begins in.
        let inside = self.taken.range(subnet..).take_while(|(taken, _)| taken.overlaps(subnet));
        let around = (1..=subnet.bits()).filter_map(|bits| self.taken.get_key_value(&subnet.widened(bits)));
        inside.chain(around).map(|(_, holder)| holder.as_str()).find(|holder| *holder != node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::parse(text).unwrap()
    }

    fn shown(subnet: Option<Subnet>) -> String {
        subnet.map_or("none".to_owned(), |s| s.to_string())
    }

    #[test]
    fn every_node_has_its_own_part_until_there_is_none() {
        let mut ranges = Ranges::new(subnet("10.244.0.0/22"), 24);
        let got: Vec<String> = ["a", "b", "c", "d", "e"].iter().map(|n| shown(ranges.allocate(n, None))).collect();
        assert_eq!(got, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24", "none"]);
        ranges.release("b");
        assert_eq!(shown(ranges.allocate("e", None)), "10.244.1.0/24");
    }

    #[test]
    fn a_wish_is_granted_to_the_first() {
        let mut ranges = Ranges::new(subnet("10.244.0.0/16"), 24);
        let wish = Some(subnet("10.244.7.0/24"));
        assert_eq!(shown(ranges.allocate("a", wish)), "10.244.7.0/24");
        assert_eq!(shown(ranges.allocate("b", wish)), "10.244.0.0/24");
        assert_eq!(shown(ranges.allocate("b", Some(subnet("10.244.8.0/24")))), "10.244.0.0/24", "asked again");
        for elsewhere in ["10.9.0.0/24", "10.244.9.0/25", "10.244.0.0/16"] {
            let got = ranges.allocate(elsewhere, Some(subnet(elsewhere))).unwrap();
            assert!(got.bits() == 24 && subnet("10.244.0.0/16").contains(got), "{elsewhere}: {got}");
        }
    }

    #[test]
    fn what_nodes_have_already_is_not_given_out() {
        let mut ranges = Ranges::new(subnet("10.244.0.0/22"), 24);
        assert_eq!(ranges.occupy(subnet("10.244.0.0/23"), "old"), None);
        assert_eq!(ranges.occupy(subnet("10.244.1.0/24"), "new").as_deref(), Some("old"));
        assert_eq!(ranges.occupy(subnet("10.244.2.128/25"), "small"), None);
        assert_eq!(ranges.occupy(subnet("10.244.2.0/24"), "wide").as_deref(), Some("small"));
        assert_eq!(ranges.occupy(subnet("192.168.0.0/16"), "far"), None);
        assert_eq!(shown(ranges.allocate("a", None)), "10.244.3.0/24");
        assert_eq!(shown(ranges.allocate("b", None)), "none");
        ranges.release("old");
        assert_eq!(shown(ranges.allocate("b", None)), "10.244.0.0/24");
        assert_eq!(shown(ranges.allocate("c", None)), "none", "10.244.1.0/24 is still the new node's");
    }
}
