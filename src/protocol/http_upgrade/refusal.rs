//! Every HTTP answer that is not a 101, as one closed set.

use std::io::Write as _;
use std::time::Duration;

use crate::protocol::cause::Cause;

/// Parts of a body: label, sentence, detail and line end.
const BODY_PARTS: usize = 12;

macro_rules! refusals {
    ($( $(#[$doc:meta])* $name:ident = $status:literal, $label:literal, $text:literal; )*) => {
        /// Why a request gets an HTTP answer instead of a 101. `Connection: close` always.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum HttpRefusal {
            $( $(#[$doc])* $name, )*
            /// 401: a token is missing or invalid; the cause is one of the `Token…` ones.
            Unauthorized(Cause),
            /// 403: understood, and not allowed.
            Forbidden(Cause),
            /// 503: no room, or no backend to serve it, for now.
            Unavailable(Cause),
        }

        impl HttpRefusal {
            /// Every refusal that carries no cause, in declaration order.
            pub const PLAIN: &'static [HttpRefusal] = &[ $( HttpRefusal::$name, )* ];

            /// The HTTP status code.
            pub const fn status(self) -> u16 {
                match self {
                    $( HttpRefusal::$name => $status, )*
                    HttpRefusal::Unauthorized(_) => 401,
                    HttpRefusal::Forbidden(_) => 403,
                    HttpRefusal::Unavailable(_) => 503,
                }
            }

            /// The stable lower-case name, for metrics and logs; the cause's own when there is one.
            pub const fn label(self) -> &'static str {
                match self {
                    $( HttpRefusal::$name => $label, )*
                    HttpRefusal::Unauthorized(cause)
                    | HttpRefusal::Forbidden(cause)
                    | HttpRefusal::Unavailable(cause) => cause.label(),
                }
            }

            /// One sentence for the body of the answer.
            const fn text(self) -> &'static str {
                match self {
                    $( HttpRefusal::$name => $text, )*
                    HttpRefusal::Unauthorized(_) => "The request is not authenticated.",
                    HttpRefusal::Forbidden(_) => "The request is not allowed.",
                    HttpRefusal::Unavailable(_) => "The service cannot take the connection now.",
                }
            }
        }
    };
}

refusals! {
    /// A request without TLS where the listener redirects those.
    Redirected = 308, "redirect_https", "This is served over TLS only.";
    /// A line ended with LF alone (RFC 9112 §2.2 permits it; an edge must not).
    BareLf = 400, "bare_lf", "A line of the request head ends with LF instead of CRLF.";
    /// A CR was not followed by LF (RFC 9112 §2.2).
    BareCr = 400, "bare_cr", "The request head has a CR that no LF follows.";
    /// NUL or another control byte (RFC 9110 §5.5).
    ControlByte = 400, "control_byte", "The request head has a control byte.";
    /// A field value continued on the next line (RFC 9112 §5.2).
    ObsoleteFold = 400, "obsolete_fold", "A header field is folded over several lines.";
    /// Whitespace between the request line and the first field (RFC 9112 §2.2).
    LeadingWhitespace = 400, "leading_whitespace", "Whitespace precedes the first header field.";
    /// Whitespace between a field name and its colon (RFC 9112 §5.1).
    SpaceBeforeColon = 400, "space_before_colon",
        "A header field has whitespace before its colon.";
    /// A field line without a proper name and colon.
    BadField = 400, "bad_field", "A header field has no valid name.";
    /// A TLS record arrived where plain HTTP was expected.
    TlsOnPlainPort = 400, "tls_on_plain_port", "This port speaks plain HTTP, not TLS.";
    /// The HTTP/2 connection preface (RFC 9113 §3.4).
    Http2Preface = 400, "http2_preface", "This server speaks HTTP/1.1, not HTTP/2.";
    /// CONNECT: this is no proxy.
    Connect = 400, "connect", "CONNECT is not served: this is not a proxy.";
    /// The request line is not `method SP target SP version`.
    BadRequestLine = 400, "bad_request_line", "The request line is malformed.";
    /// A version that is neither HTTP/1.1 nor HTTP/1.0.
    BadVersion = 400, "bad_version", "The request is not HTTP/1.1.";
    /// The request target is no clean path and query.
    BadTarget = 400, "bad_target", "The request target is malformed.";
    /// No Host field (RFC 9112 §3.2).
    HostMissing = 400, "host_missing", "The Host header field is missing.";
    /// More than one Host field (RFC 9112 §3.2).
    HostRepeated = 400, "host_repeated", "The Host header field appears more than once.";
    /// A Host field that names no host.
    HostInvalid = 400, "host_invalid", "The Host header field is invalid.";
    /// A Host field that is not the host of the absolute target (RFC 9112 §3.2.2).
    HostDiffers = 400, "host_differs",
        "The request target and the Host header field name different hosts";
    /// A request with content, or a claim of it.
    BodyNotAllowed = 400, "body_not_allowed", "The request must not have content.";
    /// More than one Origin field.
    OriginRepeated = 400, "origin_repeated", "The Origin header field appears more than once.";
    /// More than one Authorization field.
    AuthorizationRepeated = 400, "authorization_repeated",
        "The Authorization header field appears more than once.";
    /// `Upgrade` without `Connection: upgrade` (RFC 6455 §4.2.1).
    ConnectionNotUpgrade = 400, "connection_not_upgrade",
        "The Connection header field does not contain \"Upgrade\".";
    /// More than one Sec-WebSocket-Version field.
    VersionRepeated = 400, "version_repeated",
        "The Sec-WebSocket-Version header field appears more than once.";
    /// No Sec-WebSocket-Key field.
    KeyMissing = 400, "key_missing", "The Sec-WebSocket-Key header field is missing.";
    /// More than one Sec-WebSocket-Key field.
    KeyRepeated = 400, "key_repeated", "The Sec-WebSocket-Key header field appears more than once.";
    /// A Sec-WebSocket-Key that is not 16 bytes in base64.
    KeyInvalid = 400, "key_invalid",
        "The Sec-WebSocket-Key header field is not 16 bytes in base64.";
    /// An offered subprotocol that is no token, is repeated, or too many of them.
    SubprotocolInvalid = 400, "subprotocol_invalid",
        "The Sec-WebSocket-Protocol header field is malformed.";
    /// Bytes after the head, before the 101.
    EarlyBytes = 400, "early_bytes", "The client sent bytes before the upgrade was answered.";
    /// No route has this path.
    NotFound = 404, "not_found", "There is nothing at this path.";
    /// No route has this path, but one has it but for a slash at the end.
    NotFoundSlash = 404, "not_found_slash",
        "There is nothing at this path, but with or without the slash at its end there is.";
    /// A route has this path, but not for this host.
    NotFoundHost = 404, "not_found_host", "There is nothing at this path of this host.";
    /// Any method but GET, and HEAD where no health check is answered.
    MethodNotAllowed = 405, "method_not_allowed", "Only GET is allowed.";
    /// The head did not arrive in time.
    HeadTimedOut = 408, "head_timed_out", "The request head took too long.";
    /// The request line is over its limit.
    LineTooLong = 414, "line_too_long", "The request line is too long.";
    /// An Expect field (RFC 9110 §10.1.1).
    ExpectationFailed = 417, "expectation_failed", "Expect is not supported.";
    /// HTTP/1.0 has no Upgrade (RFC 9110 §7.8).
    Http10 = 426, "http_1_0",
        "HTTP/1.1 is required. A proxy between may speak HTTP/1.0, as nginx does by default.";
    /// A Sec-WebSocket-Key, and no Upgrade field: a proxy that does not pass hop-by-hop fields on
    /// makes such requests of good ones.
    UpgradeMissing = 426, "upgrade_missing",
        "The Upgrade header field is missing. A proxy between may drop it: let it pass Upgrade \
         and Connection on.";
    /// No `websocket` among the upgrades.
    UpgradeRequired = 426, "upgrade_required", "This is a WebSocket endpoint.";
    /// Sec-WebSocket-Version is missing, or not 13 (RFC 6455 §4.2.2).
    VersionUnsupported = 426, "version_unsupported", "Only WebSocket version 13 is supported.";
    /// The head is over its limit.
    HeadTooLarge = 431, "head_too_large", "The request head is too large.";
    /// More header fields than the limit.
    TooManyFields = 431, "too_many_fields", "The request has too many header fields.";
}

impl HttpRefusal {
    /// The HTTP answer for a cause, for routes and clients that are refused without a 101.
    pub const fn for_cause(cause: Cause) -> HttpRefusal {
        match cause {
            Cause::TokenMissing
            | Cause::TokenMalformed
            | Cause::BadSignature
            | Cause::TokenExpired
            | Cause::TokenRevoked
            | Cause::TokenNotYetValid => HttpRefusal::Unauthorized(cause),
            // Not 401, at which pages log their user out.
            Cause::TokenRepeated
            | Cause::TokenForbidden
            | Cause::CsrfMismatch
            | Cause::ForbiddenOrigin
            | Cause::ForbiddenRoute => HttpRefusal::Forbidden(cause),
            Cause::AuthenticationTimedOut | Cause::HandshakeTimedOut => HttpRefusal::HeadTimedOut,
            _ => HttpRefusal::Unavailable(cause),
        }
    }

    /// The cause under which a connection that got this answer is closed and counted.
    pub const fn cause(self) -> Cause {
        match self {
            HttpRefusal::Unauthorized(cause)
            | HttpRefusal::Forbidden(cause)
            | HttpRefusal::Unavailable(cause) => cause,
            HttpRefusal::HeadTimedOut => Cause::HandshakeTimedOut,
            HttpRefusal::Redirected => Cause::Redirected,
            _ => Cause::BadRequest,
        }
    }

    /// Appends the whole response: status line, fields, and a body that says what is wrong.
    pub fn write(self, out: &mut Vec<u8>) {
        self.write_with(&[], None, out);
    }

    /// As [`HttpRefusal::write`], with a `detail` behind the sentence, which must be fit to show; of
    /// [`HttpRefusal::Redirected`] it is the address. `retry_after` is for a client that should try
    /// again: the field has whole seconds, so it never comes too early.
    pub fn write_with(self, detail: &[&str], retry_after: Option<Duration>, out: &mut Vec<u8>) {
        put(out, &["HTTP/1.1 ", self.status_line(), "\r\n"]);
        // RFC 9110 §7.8: who sends Upgrade must name it in Connection.
        let connection = if self.status() == 426 { "close, Upgrade" } else { "close" };
        put(out, &["Connection: ", connection, "\r\n"]);
        match self {
            HttpRefusal::Redirected => {
                put(out, &["Location: "]);
                put(out, detail);
                put(out, &["\r\n"]);
            }
            HttpRefusal::MethodNotAllowed => put(out, &["Allow: GET\r\n"]),
            HttpRefusal::Unauthorized(Cause::TokenMissing) => {
                put(out, &["WWW-Authenticate: Bearer\r\n"]);
            }
            HttpRefusal::Unauthorized(cause) => {
                // RFC 6750 §3.1
                put(out, &["WWW-Authenticate: Bearer error=\"invalid_token\", "]);
                put(out, &["error_description=\"", cause.label(), "\"\r\n"]);
            }
            _ => {}
        }
        if let Some(wait) = retry_after {
            let seconds = wait.as_millis().div_ceil(1000);
            let _infallible = write!(out, "Retry-After: {seconds}\r\n");
        }
        if self.status() == 426 {
            put(out, &["Upgrade: websocket\r\n"]);
        }
        if self == HttpRefusal::VersionUnsupported {
            put(out, &["Sec-WebSocket-Version: 13\r\n"]);
        }
        let mut body = [""; BODY_PARTS];
        let parts = [self.label(), ": ", self.text()].into_iter();
        let detail = if self == HttpRefusal::Redirected { &[][..] } else { detail };
        let parts = parts.chain(detail.iter().copied()).take(BODY_PARTS - 1).chain(["\n"]);
        body.iter_mut().zip(parts).for_each(|(room, part)| *room = part);
        write_body(out, &body);
    }

    const fn status_line(self) -> &'static str {
        match self.status() {
            308 => "308 Permanent Redirect",
            400 => "400 Bad Request",
            401 => "401 Unauthorized",
            403 => "403 Forbidden",
            404 => "404 Not Found",
            405 => "405 Method Not Allowed",
            408 => "408 Request Timeout",
            414 => "414 URI Too Long",
            417 => "417 Expectation Failed",
            426 => "426 Upgrade Required",
            431 => "431 Request Header Fields Too Large",
            _ => "503 Service Unavailable",
        }
    }
}

fn put(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The last two fields of a response head, and its body.
pub(super) fn write_body(out: &mut Vec<u8>, body: &[&str]) {
    let length: usize = body.iter().map(|part| part.len()).sum();
    let _infallible = write!(
        out,
        "Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    for part in body {
        out.extend_from_slice(part.as_bytes());
    }
}
