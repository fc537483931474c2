//! Why a connection ended: one closed set for closes, metrics and logs.

macro_rules! causes {
    ($( $(#[$doc:meta])* $name:ident = $label:literal, )*) => {
        /// Why a connection ended, or was refused. The label is the metric's and the client's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Cause { $( $(#[$doc])* $name, )* }

        impl Cause {
            /// Every cause, in declaration order.
            pub const ALL: &'static [Cause] = &[ $( Cause::$name, )* ];

            /// Every label, in declaration order.
            pub const LABELS: &'static [&'static str] = &[ $( $label, )* ];

            /// The cause of this label.
            pub fn from_label(label: &str) -> Option<Cause> {
                Cause::ALL.iter().copied().find(|cause| cause.label() == label)
            }

            /// The stable lower-case name: a metric label, and `reason` in explanations.
            pub const fn label(self) -> &'static str {
                match self { $( Cause::$name => $label, )* }
            }
        }
    };
}

causes! {
    /// No carrier held a token.
    TokenMissing = "token_missing",
    /// The token cannot be read, or breaks a rule that no valid token breaks.
    TokenMalformed = "token_malformed",
    /// A carrier holds two tokens, and nothing says which of them counts.
    TokenRepeated = "token_repeated",
    /// The MAC does not match, or the key is not one of ours.
    BadSignature = "token_bad_signature",
    /// The token's time is over.
    TokenExpired = "token_expired",
    /// The token was revoked.
    TokenRevoked = "token_revoked",
    /// The token's time has not begun.
    TokenNotYetValid = "token_not_yet_valid",
    /// The token is valid, but not for this issuer, audience or subject, or for too long.
    TokenForbidden = "token_forbidden",
    /// A session came without the CSRF token that goes with it.
    CsrfMismatch = "csrf_mismatch",
    /// The page's origin is not allowed here.
    ForbiddenOrigin = "forbidden_origin",
    /// The identity may not use this route.
    ForbiddenRoute = "forbidden_route",
    /// No decision before the deadline.
    AuthenticationTimedOut = "authentication_timed_out",
    /// The gateway has no room.
    OverCapacity = "over_capacity",
    /// The client began its dialect's handshake a second time.
    HandshakeRepeated = "handshake_repeated",
    /// Too many frames, pings or connections.
    RateLimited = "rate_limited",
    /// The client reads too slowly.
    SlowConsumer = "slow_consumer",
    /// The client said nothing for too long.
    Idle = "idle",
    /// The connection reached its permitted age.
    Lifetime = "lifetime",
    /// The gateway is going away.
    GoingAway = "going_away",
    /// No backend can take the session, or the one that had it is gone.
    BackendUnavailable = "backend_unavailable",
    /// The backend closed the session.
    BackendClosed = "backend_closed",
    /// The client broke RFC 6455.
    ProtocolError = "protocol_error",
    /// A text message or close reason was not UTF-8.
    InvalidUtf8 = "invalid_utf8",
    /// This route does not take this type of message.
    UnsupportedType = "unsupported_type",
    /// A message over the limit.
    TooLarge = "too_large",
    /// A load balancer's question, answered.
    HealthCheck = "health_check",
    /// The request came without TLS and was redirected.
    Redirected = "redirected",
    /// The request was not a proper upgrade, and got an HTTP answer.
    BadRequest = "bad_request",
    /// The TLS handshake failed.
    TlsFailed = "tls_failed",
    /// TLS handshake or request head took too long.
    HandshakeTimedOut = "handshake_timed_out",
    /// The client closed, in order.
    ClientClosed = "client_closed",
    /// The client's connection ended without a close frame.
    ClientGone = "client_gone",
    /// Our fault.
    Internal = "internal",
}
