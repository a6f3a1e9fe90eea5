//! JSON has no word for numbers that are not finite: they are written as null. Each of these modules is for
//! `#[serde(with = …)]` and says what null reads back as.

macro_rules! or_null {
    ($($(#[$doc:meta])* $name:ident: $number:ty = $null:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) mod $name {
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            pub fn serialize<S: Serializer>(value: &$number, serializer: S) -> Result<S::Ok, S::Error> {
                value.is_finite().then_some(*value).serialize(serializer)
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$number, D::Error> {
                Ok(Option::deserialize(deserializer)?.unwrap_or($null))
            }
        }
    )*};
}

or_null! {
    /// A number that may not be there.
    f32_or_nan: f32 = f32::NAN;
    /// A number that may not be there.
    or_nan: f64 = f64::NAN;
    /// A lower bound that may not be there.
    or_low: f64 = f64::NEG_INFINITY;
    /// An upper bound that may not be there.
    or_high: f64 = f64::INFINITY;
}
