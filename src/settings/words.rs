//! Choices that the file spells as words.

/// What a word of the file stands for.
pub(super) trait FromWord<'t> {
    /// `word` is one of its key's words.
    fn from_word(word: &'t str) -> Self;
}

impl<'t> FromWord<'t> for &'t str {
    fn from_word(word: &'t str) -> &'t str {
        word
    }
}

/// An enum whose values the file spells as words.
macro_rules! words {
    ($( #[$doc:meta] pub enum $name:ident {
        $( #[$value_doc:meta] $value:ident = $word:literal, )*
    } )*) => { $(
        #[$doc]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $( #[$value_doc] $value, )* }

        impl $name {
            /// The words, in the order of the documentation.
            pub const WORDS: &'static [&'static str] = &[$( $word, )*];

            /// How the file spells it.
            pub const fn word(self) -> &'static str {
                match self { $( $name::$value => $word, )* }
            }
        }

        impl FromWord<'_> for $name {
            fn from_word(word: &str) -> $name {
                match word {
                    $( $word => $name::$value, )*
                    _ => unreachable!("settings/shape.rs lets no other word through"),
                }
            }
        }
    )* };
}

words! {
    /// What accepted sockets are.
    pub enum Descriptors {
        /// Direct where the kernel can close them with a reset (Linux 6.7), plain otherwise.
        Auto = "auto",
        /// Descriptors of the process: RLIMIT_NOFILE bounds all workers together.
        Plain = "plain",
        /// Entries of each ring's own table: RLIMIT_NOFILE bounds each worker.
        Direct = "direct",
    }

    /// Shape of log lines.
    pub enum LogFormat {
        /// Pretty on a terminal, JSON otherwise.
        Auto = "auto",
        /// For people.
        Pretty = "pretty",
        /// For machines.
        Json = "json",
    }

    /// Whether the kernel keeps silent connections to itself at first.
    pub enum DeferAccept {
        /// Where the deadlines leave the time.
        Auto = "auto",
        /// In any case.
        On = "on",
        /// Never.
        Off = "off",
    }

    /// What clients speak to the outermost server.
    pub enum ExternalScheme {
        /// What they speak to this gateway.
        Auto = "auto",
        /// No TLS.
        Http = "http",
        /// TLS, which ends in front of the gateway.
        Https = "https",
    }

    /// Where requests are sent on to.
    pub enum Redirect {
        /// Nowhere.
        Off = "off",
        /// To the same address with TLS.
        Https = "https",
    }

    /// How the refusal of a token is delivered.
    pub enum Refuse {
        /// 101, an explanation, a close code.
        Explain = "explain",
        /// 401 or 403.
        Http = "http",
        /// `Explain` to requests with an Origin (browsers), `Http` to the rest.
        Auto = "auto",
    }

    /// Which message types a route takes.
    pub enum MessageTypes {
        /// Both.
        Any = "any",
        /// Text only (binary: 1003).
        Text = "text",
        /// Binary only (text: 1003).
        Binary = "binary",
    }

    /// How a new session chooses an endpoint.
    pub enum Balance {
        /// The one with the fewest sessions.
        LeastSessions = "least-sessions",
        /// One after the other.
        RoundRobin = "round-robin",
    }

    /// How a key is written down.
    pub enum SecretEncoding {
        /// Not at all: the bytes of the text, or of the file, are the key.
        Utf8 = "utf-8",
        /// Base64 (RFC 4648 §4).
        Base64 = "base64",
        /// Base64url (RFC 4648 §5).
        Base64Url = "base64url",
        /// Hexadecimal.
        Hex = "hex",
    }

    /// Which tokens a backend may revoke.
    pub enum RevokeScope {
        /// None.
        None = "none",
        /// On the routes that go to this backend.
        OwnRoutes = "own-routes",
        /// On every route.
        All = "all",
    }
}
