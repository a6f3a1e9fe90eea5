//! Numbers as answers have them: exact where they are whole or fractions, else in floating point.

use num::bigint::BigInt;
use num::{BigRational, One, Signed, ToPrimitive, Zero};

/// Bits of an exact number; what has more is computed in floating point.
const MOST_BITS: u64 = 1 << 14;
/// A tolerance below this is about rounding, not about precision.
const NOISE: f64 = 1e-6;

/// How exactly a rational number was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Places {
    /// Without any decimal point: it is what it says.
    Exact,
    /// With so many decimal places.
    Decimal(u32),
    /// Computed from decimals.
    Computed,
}

impl Places {
    fn with(self, other: Self) -> Self {
        if self == Places::Exact && other == Places::Exact { Places::Exact } else { Places::Computed }
    }
}

/// A value of an expression.
#[derive(Debug, Clone)]
pub(super) enum Number {
    /// A rational number.
    Rational(Rational),
    /// Any other, or one that is too long.
    Real(f64),
}

/// A rational number, and how it was written.
#[derive(Debug, Clone)]
pub(super) struct Rational {
    value: BigRational,
    places: Places,
}

impl Number {
    pub fn whole(value: i64) -> Self {
        Number::exact(BigRational::from_integer(value.into()))
    }

    /// A numerator over a denominator, which is not 0.
    pub fn fraction(numerator: i64, denominator: i64) -> Self {
        Number::exact(BigRational::new(numerator.into(), denominator.into()))
    }

    fn exact(value: BigRational) -> Self {
        Number::Rational(Rational { value, places: Places::Exact })
    }

    /// `digits` (whole, then `decimals`) times ten to the power of `exponent`.
    pub fn decimal(whole: &str, decimals: &str, exponent: i64) -> Option<Self> {
        let digits = format!("{whole}{decimals}");
        let mantissa: BigInt = digits.parse().ok()?;
        let shift = exponent.checked_sub(decimals.len() as i64)?;
        // Ten has 3.3 bits.
        if shift.unsigned_abs() > MOST_BITS / 4 || digits.len() as u64 > MOST_BITS / 4 {
            return format!("{whole}.{decimals}e{exponent}").parse().ok().map(Number::Real);
        }
        let power = BigInt::from(10).pow(shift.unsigned_abs() as u32);
        let value = if shift < 0 {
            BigRational::new(mantissa, power)
        } else {
            BigRational::from_integer(mantissa * power)
        };
        let places = if decimals.is_empty() && exponent >= 0 {
            Places::Exact
        } else {
            Places::Decimal(shift.min(0).unsigned_abs() as u32)
        };
        Some(Number::Rational(Rational { value, places }))
    }

    /// `0.12\overline{345}`: decimals that repeat for ever.
    pub fn repeating(whole: &str, decimals: &str, period: &str) -> Option<Self> {
        let parse = |digits: String| -> Option<BigInt> { digits.parse().ok() };
        let all = parse(format!("0{whole}{decimals}{period}"))?;
        let once = parse(format!("0{whole}{decimals}"))?;
        if period.is_empty() || decimals.len() + period.len() > 400 {
            return None;
        }
        let ten = BigInt::from(10);
        let nines = ten.pow(period.len() as u32) - 1;
        Some(Number::exact(BigRational::new(all - once, nines * ten.pow(decimals.len() as u32))))
    }

    pub fn to_f64(&self) -> f64 {
        match self {
            Number::Rational(rational) => rational.value.to_f64().unwrap_or(f64::NAN),
            Number::Real(value) => *value,
        }
    }

    pub fn is_finite(&self) -> bool {
        matches!(self, Number::Rational(_)) || self.to_f64().is_finite()
    }

    /// The number if it is whole and fits.
    pub fn to_whole(&self) -> Option<i64> {
        match self {
            Number::Rational(rational) if rational.value.is_integer() => rational.value.to_i64(),
            _ => None,
        }
    }

    /// A rational number of a size that can be computed with.
    fn rational(value: BigRational, places: Places) -> Self {
        match value.numer().bits() + value.denom().bits() {
            0..=MOST_BITS => Number::Rational(Rational { value, places }),
            _ => Number::Real(value.to_f64().unwrap_or(f64::NAN)),
        }
    }

    fn combine(
        &self,
        other: &Self,
        exact: impl Fn(&BigRational, &BigRational) -> Option<BigRational>,
        real: impl Fn(f64, f64) -> f64,
    ) -> Self {
        if let (Number::Rational(a), Number::Rational(b)) = (self, other) {
            return match exact(&a.value, &b.value) {
                Some(value) => Number::rational(value, a.places.with(b.places)),
                None => Number::Real(f64::NAN),
            };
        }
        Number::Real(real(self.to_f64(), other.to_f64()))
    }

    pub fn plus(&self, other: &Self) -> Self {
        self.combine(other, |a, b| Some(a + b), |a, b| a + b)
    }

    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, |a, b| Some(a - b), |a, b| a - b)
    }

    pub fn times(&self, other: &Self) -> Self {
        self.combine(other, |a, b| Some(a * b), |a, b| a * b)
    }

    /// Not finite if `other` is 0.
    pub fn over(&self, other: &Self) -> Self {
        self.combine(other, |a, b| (!b.is_zero()).then(|| a / b), |a, b| a / b)
    }

    pub fn negated(&self) -> Self {
        match self {
            Number::Rational(Rational { value, places }) => {
                Number::Rational(Rational { value: -value, places: *places })
            }
            Number::Real(value) => Number::Real(-value),
        }
    }

    pub fn absolute(&self) -> Self {
        let negative = match self {
            Number::Rational(rational) => rational.value.is_negative(),
            Number::Real(value) => *value < 0.0,
        };
        if negative { self.negated() } else { self.clone() }
    }

    /// Divided by a hundred, as a percent sign means it.
    pub fn hundredth(&self) -> Self {
        match self {
            Number::Rational(Rational { value, places }) => {
                let places = match places {
                    Places::Decimal(places) => Places::Decimal(places + 2),
                    other => *other,
                };
                Number::Rational(Rational { value: value / BigInt::from(100), places })
            }
            Number::Real(value) => Number::Real(value / 100.0),
        }
    }

    /// The power; exact where it is rational, as 8 to the power of ⅓ is.
    pub fn power(&self, exponent: &Self) -> Self {
        let real = || Number::Real(self.to_f64().powf(exponent.to_f64()));
        let (Number::Rational(base), Number::Rational(power)) = (self, exponent) else { return real() };
        let (Some(steps), Some(degree)) = (power.value.numer().to_i32(), power.value.denom().to_u32()) else {
            return real();
        };
        let Some(root) = root(&base.value, degree) else { return real() };
        let bits = (root.numer().bits() + root.denom().bits()).saturating_mul(steps.unsigned_abs().into());
        if bits > 2 * MOST_BITS {
            return real();
        }
        if root.is_zero() && steps < 0 {
            return Number::Real(f64::NAN);
        }
        Number::rational(root.pow(steps), base.places.with(power.places))
    }

    /// The root of a degree; exact where it is rational.
    pub fn root(&self, degree: &Self) -> Self {
        match (degree.to_whole(), self) {
            (Some(degree @ 1..=64), Number::Rational(radicand)) => {
                match root(&radicand.value, degree as u32) {
                    Some(root) => Number::rational(root, radicand.places),
                    None if degree == 2 => Number::Real(self.to_f64().sqrt()),
                    None if degree == 3 => Number::Real(self.to_f64().cbrt()),
                    None => Number::Real(self.to_f64().powf(1.0 / degree as f64)),
                }
            }
            (Some(2), _) => Number::Real(self.to_f64().sqrt()),
            (Some(3), _) => Number::Real(self.to_f64().cbrt()),
            _ => Number::Real(self.to_f64().powf(1.0 / degree.to_f64())),
        }
    }

    /// Whether both are the same number.
    ///
    /// Whole numbers and fractions must be equal. Where one is written with decimals, or is irrational, they may
    /// differ by `tolerance` times the greater one; with a tolerance below 1e-6, two decimals must also agree to half
    /// a unit of the last place that both have.
    pub fn equals(&self, other: &Self, tolerance: f64) -> bool {
        let (Number::Rational(a), Number::Rational(b)) = (self, other) else {
            return close(self.to_f64(), other.to_f64(), tolerance);
        };
        if a.value == b.value {
            return true;
        }
        let both_whole = a.value.is_integer() && b.value.is_integer();
        if both_whole || a.places.with(b.places) == Places::Exact {
            return false;
        }
        let Some(tolerated) = BigRational::from_float(tolerance) else { return false };
        let difference = (&a.value - &b.value).abs();
        let greater = a.value.abs().max(b.value.abs());
        let last_place = match (a.places, b.places) {
            (Places::Decimal(a), Places::Decimal(b)) => Some(a.min(b)),
            (Places::Decimal(decimals), Places::Exact) | (Places::Exact, Places::Decimal(decimals)) => {
                let whole = a.value.is_integer() || b.value.is_integer();
                Some(if whole { 0 } else { decimals })
            }
            _ => None,
        };
        let agrees = last_place.is_none_or(|places| {
            let unit = BigRational::new(BigInt::one(), BigInt::from(10).pow(places.min(4096)));
            tolerance >= NOISE || &difference + &difference < unit
        });
        agrees && difference <= tolerated * greater
    }
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    a == b || (a - b).abs() <= tolerance * a.abs().max(b.abs())
}

/// The root of a degree if it is rational.
fn root(value: &BigRational, degree: u32) -> Option<BigRational> {
    if degree == 1 {
        return Some(value.clone());
    }
    if degree == 0 || degree > 64 || value.is_negative() && degree.is_multiple_of(2) {
        return None;
    }
    let [numerator, denominator] = [value.numer(), value.denom()].map(|number| number.nth_root(degree));
    let exact = numerator.pow(degree) == *value.numer() && denominator.pow(degree) == *value.denom();
    exact.then(|| BigRational::new(numerator, denominator))
}
