//! The options of an algorithm, written once.

/// Makes the struct of an algorithm's options from one list of names, types and defaults. A field's comment is what
/// `arriero algorithms` says of the option; what stands behind `=` is its default, there and in an experiment file:
///
/// ```ignore
/// options! {
///     /// RLOO's options.
///     pub struct RlooConfig {
///         /// β: weight of the KL to the reference. Default 0.05 (TRL's).
///         pub beta: f64 = 0.05,
///     }
/// }
/// ```
///
/// Where the defaults hang on more than the list (a preset, or a kind that has another algorithm's options with defaults
/// of its own), `given as NAME` behind the struct's name makes a second struct: the options that stand in the file. Its
/// `over` fills in the others from any defaults, and the file tells how with `From<NAME>`.
///
/// An optional field has `#[serde(skip_serializing_if = "Option::is_none")]`, since TOML has no word for nothing.
macro_rules! options {
    (
        $(#[$about:meta])*
        pub struct $name:ident {
            $($(#[$attribute:meta])* pub $option:ident: $type:ty = $default:expr,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$attribute])* pub $option: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $($option: $default,)* }
            }
        }
    };
    (
        $(#[$about:meta])*
        pub struct $name:ident given as $given:ident {
            $($(#[$attribute:meta])* pub $option:ident: $type:ty = $default:expr,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$attribute])* pub $option: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $($option: $default,)* }
            }
        }

        #[doc = concat!("What an experiment file says of [`", stringify!($name), "`].")]
        #[derive(Debug, Clone, Default, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $given {
            $($(#[$attribute])* pub $option: Option<$type>,)*
        }

        impl $given {
            /// The options, where what is not given comes from `defaults`.
            pub fn over(self, defaults: $name) -> $name {
                $name { $($option: self.$option.unwrap_or(defaults.$option),)* }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$given as serde::Deserialize>::deserialize(deserializer).map(Self::from)
            }
        }
    };
}

pub(in crate::objective) use options;
