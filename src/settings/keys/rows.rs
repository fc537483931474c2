//! What a row of the table makes: the key's raw type, its validated type and default, whether a
//! reload may change it, its documentation and its schema.
//!
//! ```text
//! "limits" RawLimits => Limits in limits {
//!     message_max: Size(125, 256 * MIB) as u32 = "1MiB" (conformance "32MiB"), Live,
//!         "Largest message in either direction.";
//! }
//! "auth" RawAuth {
//!     salt: Text("text") = NONE, Live required for ["phoenix"], "The salt.";
//!     leeway: Time(0, MINUTE) as Duration = "10s", Live for ["jwt"], "By how much.";
//! }
//! ```
//!
//! A section becomes the struct of its raw values. `as` gives a row its validated value: a field
//! of the struct behind `=>`, or a method of the raw struct that applies the default. Rows
//! without `as` are given their meaning by the file of `settings/` that reads them. Behind `=>`,
//! `RestartRequired` compares the field; elsewhere it is handed the comparison. `for` and
//! `required for` tie a key to the values of `kind` in its section.

macro_rules! sections {
    ($( $section:literal $raw:ident $(=> $built:ident in $at:ident)? { $($rows:tt)* } )*) => {
        $( section! { $section $raw [$($built $at)?] $($rows)* } )*

        /// Every section's rows, in the order of the documentation.
        pub(super) const TABLE: &[&[Key]] = &[ $( $raw::KEYS, )* ];
    };
}

macro_rules! section {
    ($section:literal $raw:ident $built:tt $(
        $name:ident: $kind:ident $arguments:tt $(as $value:ty)? = $default:tt
        $((conformance $conformance:literal))?, $reload:ident $(($($same:tt)*))?
        $(for [$($optional:literal),*])? $(required for [$($required:literal),*])?,
        $meaning:literal;
    )*) => {
        #[doc = concat!("`", $section, "` as it is written.")]
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $raw { $( #[doc = $meaning] pub $name: raw_type!($kind $arguments), )* }

        impl $raw {
            /// Its name in the table of keys.
            pub const SECTION: &'static str = $section;
            const KEYS: &'static [Key] = &[ $( Key {
                section: $raw::SECTION,
                name: stringify!($name),
                full_name: concat!($section, ".", stringify!($name)),
                shape: shape!($kind $arguments),
                default: $default,
                conformance: section!(@optional $($conformance)?),
                reload: reload!($built $name $reload $(($($same)*))?),
                optional_for: &[ $($($optional),*)? ],
                required_for: &[ $($($required),*)? ],
                meaning: $meaning,
            }, )* ];
        }

        values! { $built $raw $(
            $name $kind [$($value)?] $default [$($conformance)?] $meaning;
        )* }
    };
    (@optional) => { None };
    (@optional $value:literal) => { Some($value) };
}

/// The validated values of a section.
macro_rules! values {
    ([] $raw:ident $(
        $name:ident $kind:ident [$($value:ty)?] $default:tt $conformance:tt $meaning:literal;
    )*) => {
        impl $raw { $( $(
            pub(in crate::settings) fn $name(&self) -> value_type!($kind $value) {
                read!($kind $value, &self.$name, $default)
            }
        )? )* }
    };
    ([$built:ident $at:ident] $raw:ident $(
        $name:ident $kind:ident [$($value:ty)?] $default:tt $conformance:tt $meaning:literal;
    )*) => {
        #[doc = concat!("`[", stringify!($at), "]`, checked.")]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $built { $( $(
            #[doc = $meaning]
            pub $name: value_type!($kind $value),
        )? )* }

        impl $built {
            /// What is written, and the profile's defaults for the rest.
            pub(in crate::settings) fn read(raw: &$raw, conformance: bool) -> $built {
                $built { $( $(
                    $name: read!(
                        $kind $value, &raw.$name,
                        default_of!(conformance $default $conformance)
                    ),
                )? )* }
            }
        }
    };
}

macro_rules! default_of {
    ($profile:ident $default:tt []) => {
        $default
    };
    ($profile:ident $default:tt [$conformance:literal]) => {
        if $profile { $conformance } else { $default }
    };
}

macro_rules! shape {
    (Flag()) => { Shape::Flag };
    (Table($raw:ident)) => { Shape::Table($raw::SECTION) };
    (Tables($raw:ident)) => { Shape::Tables($raw::SECTION) };
    (TableOrTables($raw:ident)) => { Shape::TableOrTables($raw::SECTION) };
    (TablesByName($raw:ident, $what:expr, $names:expr)) => {
        Shape::TablesByName($raw::SECTION, $what, $names)
    };
    ($kind:ident $arguments:tt) => { Shape::$kind $arguments };
}

macro_rules! raw_type {
    (Flag()) => { Option<bool> };
    (Count $arguments:tt) => { Number };
    (CountOrAuto $arguments:tt) => { Number };
    (List $arguments:tt) => { List };
    (TextByName $arguments:tt) => { Option<TextByName> };
    (WordOrTextByName $arguments:tt) => { Option<Spanned<WordOrTextByName>> };
    (TextOrList $arguments:tt) => { List };
    (Path $arguments:tt) => { Path };
    (ListOrWord $arguments:tt) => { Option<Spanned<ListOrWord>> };
    (Table($raw:ident)) => { Option<$raw> };
    (Tables($raw:ident)) => { Option<Spanned<Vec<Spanned<$raw>>>> };
    (TableOrTables($raw:ident)) => { Option<Spanned<Vec<Spanned<$raw>>>> };
    (TablesByName($raw:ident, $what:expr, $names:expr)) => { BTreeMap<String, Spanned<$raw>> };
    ($kind:ident $arguments:tt) => { Text };
}

macro_rules! value_type {
    (CountOrAuto $value:ty) => { Option<$value> };
    (SizeOrAuto $value:ty) => { Option<$value> };
    (TimeOrOff $value:ty) => { Option<$value> };
    ($kind:ident $value:ty) => { $value };
}

macro_rules! reload {
    ($built:tt $name:ident Live) => { Reload::Live };
    ([$built:ident $at:ident] $name:ident RestartRequired) => {
        Reload::RestartRequired(|a, b| a.$at.$name == b.$at.$name)
    };
    ($built:tt $name:ident RestartRequired ($($same:tt)*)) => {
        Reload::RestartRequired($($same)*)
    };
}

/// A value, or its default. What is written was checked against the row before, and a test
/// reads every default and both ends of every range.
macro_rules! read {
    (Count $value:ty, $raw:expr, $default:expr) => {
        read!(@number $value, raw::count($raw, $default).expect("no word in its place"))
    };
    (Size $value:ty, $raw:expr, $default:expr) => {
        read!(@number $value, raw::size($raw, $default).expect("no word in its place"))
    };
    (CountOrAuto $value:ty, $raw:expr, $default:expr) => {
        raw::count($raw, $default).map(|number| read!(@number $value, number))
    };
    (SizeOrAuto $value:ty, $raw:expr, $default:expr) => {
        raw::size($raw, $default).map(|number| read!(@number $value, number))
    };
    (Time $value:ty, $raw:expr, $default:expr) => {
        raw::time($raw, $default).expect("no word in its place")
    };
    (TimeOrOff $value:ty, $raw:expr, $default:expr) => { raw::time($raw, $default) };
    (Flag $value:ty, $raw:expr, $default:expr) => { $raw.unwrap_or($default == "true") };
    ($kind:ident $value:ty, $raw:expr, $default:expr) => {
        <$value as FromWord>::from_word(raw::text($raw, $default))
    };
    (@number $value:ty, $number:expr) => {
        <$value>::try_from($number).expect("the row's range fits its type")
    };
}
