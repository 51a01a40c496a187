//! Exact resource quantities (`k8s.io/apimachinery/pkg/api/resource`).
//!
//! A quantity is a decimal number with a binary (`Ki`…`Ei`), decimal (`n`…`E`) or exponent suffix. It is kept as an integer count of
//! nano-units, rounded up like upstream does at that precision, with the suffix family it was written in.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as K8sQuantity;

const NANO: i128 = 1_000_000_000;
/// Longest text accepted: enough for any legal value, short enough to bound the work.
const MAX_TEXT_BYTES: usize = 64;

/// Why a quantity did not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form number-suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is right, the suffix is not known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// Larger than 2^63 units either way.
    #[error("quantity is out of range")]
    Range,
}

/// How a quantity is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `1500m`, `2k`, `3M`
    #[default]
    DecimalSi,
    /// `64Ki`, `1Gi`
    BinarySi,
    /// `1e3`
    DecimalExponent,
}

/// An exact amount of CPU, memory or anything countable.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

fn suffix(text: &str) -> Result<(i128, i128, Format), QuantityError> {
    let decimal = |num: i128, den: i128| Ok((num, den, Format::DecimalSi));
    let binary = |bits: u32| Ok((1i128 << bits, 1, Format::BinarySi));
    match text {
        "n" => decimal(1, 1_000_000_000),
        "u" => decimal(1, 1_000_000),
        "m" => decimal(1, 1_000),
        "" => decimal(1, 1),
        "k" => decimal(1_000, 1),
        "M" => decimal(1_000_000, 1),
        "G" => decimal(1_000_000_000, 1),
        "T" => decimal(1_000_000_000_000, 1),
        "P" => decimal(1_000_000_000_000_000, 1),
        "E" => decimal(1_000_000_000_000_000_000, 1),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => exponent(text),
    }
}

fn exponent(text: &str) -> Result<(i128, i128, Format), QuantityError> {
    let digits = text.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let e: i32 = digits.parse().map_err(|_| QuantityError::Suffix)?;
    if !(-18..=18).contains(&e) {
        return Err(QuantityError::Range);
    }
    let power = 10i128.pow(e.unsigned_abs());
    Ok(if e >= 0 { (power, 1, Format::DecimalExponent) } else { (1, power, Format::DecimalExponent) })
}

impl Quantity {
    /// Parses `100m`, `1.5Gi`, `2e3`.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            return Err(QuantityError::Format);
        }
        let (negative, body) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
        let (number, tail) = body.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (numerator, denominator, format) = suffix(tail)?;
        let fraction = fraction.trim_end_matches('0');
        let whole = whole.trim_start_matches('0');
        if whole.len() > 20 || fraction.len() > 20 {
            return Err(QuantityError::Range);
        }
        let digits: i128 = format!("0{whole}{fraction}").parse().map_err(|_| QuantityError::Range)?;
        let scaled = digits.checked_mul(numerator).ok_or(QuantityError::Range)?;
        let divisor = 10i128.pow(fraction.len() as u32).checked_mul(denominator).ok_or(QuantityError::Range)?;
        let nano = ceil_mul_div(scaled, NANO, divisor).ok_or(QuantityError::Range)?;
        if nano > i128::from(i64::MAX) * NANO {
            return Err(QuantityError::Range);
        }
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }

    /// Nothing.
    pub fn zero() -> Self {
        Self::default()
    }
    /// So many thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Self { nano: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }
    /// So many units, printed decimal.
    pub fn from_value(value: i64) -> Self {
        Self { nano: i128::from(value) * NANO, format: Format::DecimalSi }
    }
    /// So many bytes, printed binary.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nano: i128::from(bytes) * NANO, format: Format::BinarySi }
    }
    /// Whole units, rounded up, saturating.
    pub fn value(&self) -> i64 {
        saturate(ceil_div(self.nano, NANO))
    }
    /// Thousandths, rounded up, saturating.
    pub fn milli_value(&self) -> i64 {
        saturate(ceil_div(self.nano, NANO / 1000))
    }
    /// Whether it is exactly nothing.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }
    /// Less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }
    /// Whether it is a whole number of units.
    pub fn is_integer(&self) -> bool {
        self.nano % NANO == 0
    }
    /// In the API's type, canonical text.
    pub fn into_k8s(self) -> K8sQuantity {
        K8sQuantity(self.to_string())
    }
}

fn ceil_div(a: i128, b: i128) -> i128 {
    let q = a / b;
    if a % b > 0 { q + 1 } else { q }
}

fn ceil_mul_div(value: i128, by: i128, divisor: i128) -> Option<i128> {
    // Reduce first, so that 1Ei does not overflow on its way through nano-units.
    let gcd = gcd(by, divisor);
    let (by, divisor) = (by / gcd, divisor / gcd);
    Some(ceil_div(value.checked_mul(by)?, divisor))
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn saturate(v: i128) -> i64 {
    i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX })
}

impl TryFrom<&K8sQuantity> for Quantity {
    type Error = QuantityError;
    fn try_from(q: &K8sQuantity) -> Result<Self, QuantityError> {
        Self::parse(&q.0)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}
impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_add(other.nano), format }
    }
}
impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: self.nano.saturating_sub(other.nano), format }
    }
}

/// Canonical form: the largest suffix that leaves no fraction.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let units = self.nano / NANO;
        // Upstream prints binary quantities below 1024, and fractions, in decimal form.
        if self.format == Format::BinarySi && self.is_integer() && units.abs() >= 1024 {
            const BINARY: [(u32, &str); 6] = [(60, "Ei"), (50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
            for (bits, name) in BINARY {
                if units % (1i128 << bits) == 0 {
                    return write!(f, "{}{name}", units >> bits);
                }
            }
            return write!(f, "{units}");
        }
        const DECIMAL: [(i128, &str, &str); 10] = [
            (NANO * 1_000_000_000_000_000_000, "E", "e18"),
            (NANO * 1_000_000_000_000_000, "P", "e15"),
            (NANO * 1_000_000_000_000, "T", "e12"),
            (NANO * 1_000_000_000, "G", "e9"),
            (NANO * 1_000_000, "M", "e6"),
            (NANO * 1_000, "k", "e3"),
            (NANO, "", ""),
            (1_000_000, "m", "e-3"),
            (1_000, "u", "e-6"),
            (1, "n", "e-9"),
        ];
        for (size, si, exponent) in DECIMAL {
            if self.nano % size == 0 {
                let name = if self.format == Format::DecimalExponent { exponent } else { si };
                return write!(f, "{}{name}", self.nano / size);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, milli: i64, value: i64, canonical: &str) {
        let q = Quantity::parse(text).unwrap();
        assert_eq!((q.milli_value(), q.value(), q.to_string().as_str()), (milli, value, canonical), "{text}");
    }

    #[test]
    fn parses_and_prints_canonically() {
        check("0", 0, 0, "0");
        check("100m", 100, 1, "100m");
        check("1.5", 1500, 2, "1500m");
        check("0.5Gi", 536_870_912_000, 536_870_912, "512Mi");
        check("1000m", 1000, 1, "1");
        check("1Ki", 1_024_000, 1024, "1Ki");
        check("1000Ki", 1_024_000_000, 1_024_000, "1000Ki");
        check("2e3", 2_000_000, 2000, "2e3");
        check("-1", -1000, -1, "-1");
        check("+5M", 5_000_000_000, 5_000_000, "5M");
        check("1n", 1, 1, "1n");
        check("0.0000000001", 1, 1, "1n");
        check(".5", 500, 1, "500m");
        check("1Ei", i64::MAX, 1 << 60, "1Ei");
    }

    #[test]
    fn refuses_what_is_not_a_quantity() {
        for text in
            ["", " 1", "1 ", "abc", "1.2.3", "1KiB", "1mm", "--1", ".", "1e99", "99999999999999999999", "100Ei", "١"]
        {
            assert!(Quantity::parse(text).is_err(), "{text:?}");
        }
        assert!(Quantity::parse(&"1".repeat(1000)).is_err());
    }

    #[test]
    fn orders_and_adds_exactly() {
        let q = |t| Quantity::parse(t).unwrap();
        assert!(q("1") == q("1000m") && q("1Gi") > q("1G") && q("-1") < q("0"));
        assert_eq!((q("100m") + q("0.2")).to_string(), "300m");
        assert_eq!((Quantity::zero() + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("2Gi") - q("1Gi")).to_string(), "1Gi");
    }
}
