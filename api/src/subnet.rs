//! IPv4 subnets, as pods' addresses are given out: parsed, compared and divided. No I/O.

use std::fmt;
use std::net::Ipv4Addr;

/// An IPv4 subnet of at least one bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    base: Ipv4Addr,
    bits: u32,
}

impl Subnet {
    /// Parses `address/bits`; bits of the address beyond the prefix are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, bits) = text.split_once('/')?;
        let bits: u32 = bits.parse().ok().filter(|bits| (1..=32).contains(bits))?;
        let ip: Ipv4Addr = ip.parse().ok()?;
        Some(Self { base: Ipv4Addr::from_bits(ip.to_bits() & Self::mask(bits)), bits })
    }

    fn mask(bits: u32) -> u32 {
        u32::MAX.checked_shl(32 - bits).unwrap_or(0)
    }

    /// Length of the prefix, 1 to 32.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Whether some address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        let mask = Self::mask(self.bits.min(other.bits));
        self.base.to_bits() & mask == other.base.to_bits() & mask
    }

    /// Whether all of `other` is in it.
    pub fn contains(self, other: Self) -> bool {
        self.bits <= other.bits && self.overlaps(other)
    }

    /// The subnet of a shorter prefix of `bits` that it is in; itself if it has no more bits than that.
    pub fn widened(self, bits: u32) -> Self {
        let bits = bits.clamp(1, self.bits);
        Self { base: Ipv4Addr::from_bits(self.base.to_bits() & Self::mask(bits)), bits }
    }

    /// Its first address but one, where a bridge's router is by custom.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | 1)
    }

    /// How many subnets of a prefix of `bits` are in it; 0 if it is smaller than they are.
    pub fn parts(self, bits: u32) -> u32 {
        if (self.bits..=32).contains(&bits) { 1u32.checked_shl(bits - self.bits).unwrap_or(0) } else { 0 }
    }

    /// The `index`th subnet of a prefix of `bits` in it.
    pub fn part(self, bits: u32, index: u32) -> Option<Self> {
        (index < self.parts(bits)).then(|| {
            let offset = index.checked_shl(32 - bits).unwrap_or(0);
            Self { base: Ipv4Addr::from_bits(self.base.to_bits() | offset), bits }
        })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::parse(text).unwrap()
    }

    #[test]
    fn text_becomes_a_subnet_or_nothing() {
        assert_eq!(subnet("10.244.3.7/16").to_string(), "10.244.0.0/16");
        for bad in ["10.0.0.0", "10.0.0.0/0", "10.0.0.0/33", "10.0.0/8", "fd00::/64", "10.0.0.0/-1", ""] {
            assert_eq!(Subnet::parse(bad), None, "{bad}");
        }
        assert_eq!(subnet("10.1.2.0/24").gateway(), Ipv4Addr::new(10, 1, 2, 1));
    }

    #[test]
    fn subnets_overlap_and_contain() {
        let (wide, narrow, other) = (subnet("10.244.0.0/16"), subnet("10.244.9.0/24"), subnet("10.245.0.0/24"));
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide) && !wide.overlaps(other));
        assert!(wide.contains(narrow) && !narrow.contains(wide) && wide.contains(wide) && !wide.contains(other));
        assert_eq!((narrow.widened(16), wide.widened(24)), (wide, wide));
    }

    #[test]
    fn a_subnet_is_divided() {
        let pool = subnet("10.244.0.0/16");
        assert_eq!((pool.parts(24), pool.parts(16), pool.parts(15)), (256, 1, 0));
        assert_eq!(pool.part(24, 255).map(|s| s.to_string()).as_deref(), Some("10.244.255.0/24"));
        assert_eq!(pool.part(24, 256), None);
        assert_eq!(subnet("10.0.0.4/31").part(32, 1).map(|s| s.to_string()).as_deref(), Some("10.0.0.5/32"));
        assert_eq!(subnet("128.0.0.0/1").parts(32), 1 << 31);
    }
}
