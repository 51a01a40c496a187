//! Protobuf's wire format: fields of a message, one at a time, without copying. Knows no field by name.

use super::Why;

/// Largest field number of the format.
const MAX_NUMBER: u64 = (1 << 29) - 1;

/// A field's value as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    /// A message, text or bytes.
    pub fn bytes(self) -> Result<&'a [u8], Why> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Why::WrongType),
        }
    }
    /// Text, which must be UTF-8.
    pub fn text(self) -> Result<&'a str, Why> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Why::NotText)
    }
    /// An integer, two's complement, or a boolean.
    pub fn varint(self) -> Result<u64, Why> {
        match self {
            Self::Varint(number) => Ok(number),
            _ => Err(Why::WrongType),
        }
    }
    /// A floating point number.
    pub fn double(self) -> Result<f64, Why> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(Why::WrongType),
        }
    }
    /// Whether it says nothing that its absence would not.
    pub fn is_zero(self) -> bool {
        match self {
            Self::Varint(number) | Self::Fixed64(number) => number == 0,
            Self::Fixed32(number) => number == 0,
            Self::Bytes(bytes) => bytes.is_empty(),
        }
    }
}

/// The fields of a message, by number, in wire order. Ends after the first error.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Of a message's bytes.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn field(&mut self) -> Option<(u32, Wire<'a>)> {
        let key = varint(&mut self.rest)?;
        let number = u32::try_from(key >> 3).ok().filter(|n| (1..=MAX_NUMBER).contains(&u64::from(*n)))?;
        let value = match key & 7 {
            0 => Wire::Varint(varint(&mut self.rest)?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(varint(&mut self.rest)?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            // Groups have been out of use since proto2's youth.
            _ => return None,
        };
        Some((number, value))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), Why>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(Why::Malformed))
    }
}

/// A packed list of integers. Ends after the first error.
pub fn packed(mut bytes: &[u8]) -> impl Iterator<Item = Result<u64, Why>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let number = varint(&mut bytes);
        if number.is_none() {
            bytes = &[];
        }
        Some(number.ok_or(Why::Malformed))
    })
}

/// `None` if it does not end or does not fit in 64 bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut out = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        out |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_at_most_64_bits() {
        let check = |bytes: &[u8], want: Option<u64>| {
            let mut rest = bytes;
            assert_eq!(varint(&mut rest), want, "{bytes:?}");
        };
        let with_last = |last: u8| [&[0xff; 9][..], &[last]].concat();
        check(&[0], Some(0));
        check(&[0x80, 0x01], Some(128));
        check(&with_last(0x01), Some(u64::MAX));
        check(&with_last(0x02), None);
        check(&with_last(0x81), None);
        check(&[0x80], None);
        check(&[], None);
    }

    #[test]
    fn fields_end_after_an_error() {
        let check = |bytes: &[u8], want: &[Result<(u32, Wire<'_>), Why>]| {
            assert_eq!(Fields::new(bytes).collect::<Vec<_>>(), want, "{bytes:?}");
        };
        check(&[], &[]);
        check(&[0x08, 1, 0x12, 1, b'x'], &[Ok((1, Wire::Varint(1))), Ok((2, Wire::Bytes(b"x")))]);
        check(&[0x0d, 1, 0, 0, 0], &[Ok((1, Wire::Fixed32(1)))]);
        check(&[0x09, 1, 0, 0, 0, 0, 0, 0, 0], &[Ok((1, Wire::Fixed64(1)))]);
        check(&[0x08, 1, 0x12, 2, b'x'], &[Ok((1, Wire::Varint(1))), Err(Why::Malformed)]);
        // Number 0, a group, a number beyond the format's.
        check(&[0x00, 1, 0x08, 1], &[Err(Why::Malformed)]);
        check(&[0x0b, 0x08, 1], &[Err(Why::Malformed)]);
        check(&[0xf8, 0xff, 0xff, 0xff, 0x7f, 1], &[Err(Why::Malformed)]);
    }
}
