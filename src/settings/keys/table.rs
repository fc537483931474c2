//! The table itself, section by section.

use super::{Heat, Key, NONE, REQUIRED, Shape};
use crate::protocol::cause::Cause;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

const PATH: &str = "file name, relative to the configuration file";
const SECRET_FILE: &str = "file name, relative to the configuration file, or `env:NAME`";

const fn hot(
    section: &'static str,
    name: &'static str,
    shape: Shape,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key { section, name, shape, default, conformance: None, heat: Heat::Hot, meaning }
}

impl Key {
    const fn cold(mut self) -> Key {
        self.heat = Heat::Cold;
        self
    }

    const fn conformance(mut self, default: &'static str) -> Key {
        self.conformance = Some(default);
        self
    }
}

/// Every key, section by section.
pub const KEYS: &[Key] = &[
    hot(
        "gateway",
        "workers",
        Shape::CountOrAuto(1, 1024),
        "auto",
        "Worker threads, each with a ring of its own; `\"auto\"` is one for each core.",
    )
    .cold(),
    hot(
        "gateway",
        "descriptors",
        Shape::Word(&["auto", "plain", "direct"]),
        "auto",
        "What accepted sockets are: descriptors of the process, which the limit on open files \
         bounds for all workers together, or direct ones of each worker's ring, which it bounds \
         for each. `\"auto\"` is `\"direct\"` from Linux 6.7 on, where those can be reset.",
    )
    .cold(),
    hot(
        "gateway",
        "admin",
        Shape::Text("IP address and port, or `\"off\"`"),
        "127.0.0.1:9464",
        "Where metrics, health, the live page and the admin API are served.",
    )
    .cold(),
    hot(
        "gateway",
        "admin_token_file",
        Shape::Text(SECRET_FILE),
        NONE,
        "Bearer token that the admin API asks for, at least 32 bytes. Required when `admin` is \
         not a loopback address.",
    )
    .cold(),
    hot("gateway", "log", Shape::Table("gateway.log"), NONE, "How the log is written."),
    hot(
        "gateway",
        "close_log",
        Shape::Text(PATH),
        NONE,
        "File that the lines of closed connections are appended to, as JSON; without it they go \
         to the log. It is opened anew on SIGHUP.",
    )
    .cold(),
    hot(
        "gateway",
        "revocations_file",
        Shape::Text(PATH),
        NONE,
        "File that holds the revocations, so that they outlive a restart; without it a restart \
         forgets them. It and a file beside it are written by the gateway.",
    )
    .cold(),
    hot(
        "gateway.log",
        "format",
        Shape::Word(&["auto", "pretty", "json"]),
        "auto",
        "Shape of log lines; `\"auto\"` is pretty on a terminal and JSON otherwise.",
    )
    .cold(),
    hot(
        "gateway.log",
        "level",
        Shape::Text("level, or list of `target=level`"),
        "info",
        "What is logged: `error`, `warn`, `info`, `debug`, `trace` or `off`, for all or by \
         target, as in `info,portcullis=debug`.",
    ),
    hot(
        "limits",
        "profile",
        Shape::Word(&["production", "conformance"]),
        "production",
        "Which defaults the other limits have. `\"conformance\"` is for the Autobahn test suite: \
         large messages in tiny fragments, and no rate limits. Never face the internet with it.",
    ),
    hot(
        "limits",
        "connections_max",
        Shape::Count(1, 100_000_000),
        "1_000_000",
        "Connections of all workers together.",
    ),
    hot(
        "limits",
        "unauthenticated_max",
        Shape::Count(1, 100_000_000),
        "50_000",
        "Connections not yet authenticated, of all workers together. Keep it above the honest \
         arrivals in a second times the slowest 1 % of their times to authenticate in seconds.",
    ),
    hot(
        "limits",
        "early_drop_start",
        Shape::Count(1, 100),
        "80",
        "Early drop begins at this percentage of `unauthenticated_max`.",
    ),
    hot(
        "limits",
        "early_drop_rate",
        Shape::Count(0, 100),
        "30",
        "Chance in percent that early drop resets a newcomer there; it grows to 100 at the cap. \
         It concerns prefixes with `prefix_share` connections or more.",
    ),
    hot(
        "limits",
        "prefix_share",
        Shape::Count(1, 100_000_000),
        "32",
        "Unauthenticated connections of one address (IPv4 /32, IPv6 /64; 4 times as many of a \
         /56, 16 times of a /48) that early drop leaves alone. Below `early_drop_start` nothing \
         depends on it.",
    ),
    hot(
        "limits",
        "prefix_failures_per_minute",
        Shape::Count(1, 1_000_000),
        "60",
        "Failures (refusals, expired deadlines, bad requests) of one address that are forgotten \
         in a minute; each client that authenticates makes up for one. For wider prefixes as \
         with `prefix_share`.",
    ),
    hot(
        "limits",
        "prefix_failures_burst",
        Shape::Count(1, 1_000_000),
        "120",
        "Failures of one address at once. Above that it has a penalty: it is the first to be \
         dropped from `early_drop_start` on.",
    ),
    hot(
        "limits",
        "prefixes_max",
        Shape::Count(0, 100_000_000),
        "65_536",
        "Prefixes whose failures are remembered, of all workers together.",
    ),
    hot(
        "limits",
        "tls_handshakes_per_second",
        Shape::CountOrAuto(1, 100_000_000),
        "auto",
        "TLS handshakes that may begin in a second, of all workers together; a connection above \
         it is reset at its first byte. `\"auto\"` is 2,000 for each worker.",
    ),
    hot(
        "limits",
        "connections_per_worker",
        Shape::CountOrAuto(16, 16_000_000),
        "auto",
        "Connections of one worker; `\"auto\"` derives it from the descriptor limit.",
    )
    .cold(),
    hot(
        "limits",
        "memory_max",
        Shape::SizeOrAuto(16 * MIB, 16_384 * GIB),
        "auto",
        "Memory budget of the process; `\"auto\"` derives it from the machine or its cgroup.",
    )
    .cold(),
    hot(
        "limits",
        "message_max",
        Shape::Size(125, 256 * MIB),
        "1MiB",
        "Largest message in either direction; a client's larger one is closed with 1009. A link takes a new value when it next connects.",
    )
    .conformance("32MiB"),
    hot(
        "limits",
        "first_message_max",
        Shape::Size(125, MIB),
        "16KiB",
        "Largest message before authentication, which carries the token.",
    ),
    hot(
        "limits",
        "head_max",
        Shape::Size(512, 64 * KIB),
        "8KiB",
        "Largest request head; 431 above it.",
    ),
    hot(
        "limits",
        "header_fields_max",
        Shape::Count(8, 128),
        "64",
        "Most header fields in a request; 431 above it.",
    ),
    hot(
        "limits",
        "request_line_max",
        Shape::Size(128, 32 * KIB),
        "8000B",
        "Longest request line; 414 above it.",
    ),
    hot(
        "limits",
        "token_max",
        Shape::Size(64, 4 * KIB),
        "4KiB",
        "Longest token; a longer one is refused before it is decoded.",
    ),
    hot(
        "limits",
        "dead_tokens_max",
        Shape::Count(0, 1 << 24),
        "65_536",
        "Refused tokens that one worker remembers, to refuse them again without verifying: 8 \
         bytes each, rounded up to a power of two. 0 is off.",
    )
    .cold(),
    hot(
        "limits",
        "frames_per_second",
        Shape::Count(1, 1_000_000_000),
        "1_000",
        "Data frames that one client may send in a second on average; 1008 above it.",
    )
    .conformance("1_000_000_000"),
    hot(
        "limits",
        "frames_burst",
        Shape::Count(1, 1_000_000_000),
        "4_000",
        "Data frames that one client may send at once.",
    )
    .conformance("1_000_000_000"),
    hot(
        "limits",
        "controls_per_second",
        Shape::Count(1, 1_000_000_000),
        "10",
        "Control frames (ping, pong) that one client may send in a second on average; 1008 above \
         it.",
    )
    .conformance("1_000_000_000"),
    hot(
        "limits",
        "controls_burst",
        Shape::Count(1, 1_000_000_000),
        "60",
        "Control frames that one client may send at once.",
    )
    .conformance("1_000_000_000"),
    hot(
        "limits",
        "pongs_unsent_max",
        Shape::Count(1, 255),
        "1",
        "Pongs to one client that may wait to be sent. Pings above that get one pong together, \
         for the latest of them.",
    )
    .conformance("64"),
    hot(
        "limits",
        "fragments_max",
        Shape::Count(1, 16_777_216),
        "1_024",
        "Most frames that one message may be cut into; 1009 above it.",
    )
    .conformance("1_048_576"),
    hot(
        "limits",
        "session_window",
        Shape::Size(4 * KIB, 256 * MIB),
        "256KiB",
        "Bytes in flight to one client that a backend may have without new credit.",
    )
    .conformance("32MiB"),
    hot(
        "limits",
        "link_window",
        Shape::Size(64 * KIB, 2 * GIB - 1),
        "16MiB",
        "Bytes in flight on one link, in each direction, without new credit. At least \
         `session_window`.",
    )
    .conformance("64MiB"),
    hot(
        "limits",
        "stalled_input_max",
        Shape::Size(MIB, 1024 * GIB),
        "64MiB",
        "Bytes of clients' input that may wait in one worker for backends to give credit.",
    )
    .conformance("256MiB"),
    hot(
        "limits",
        "verdicts_max",
        Shape::Count(1, 1_000_000),
        "4096",
        "Verdicts of backends and HTTP endpoints that one worker awaits at one time; further \
         clients are refused as `backend_unavailable`.",
    ),
    hot(
        "limits",
        "handshakes_per_tick",
        Shape::Count(1, 4096),
        "32",
        "TLS handshake steps of one worker before it looks after its open connections again.",
    ),
    hot(
        "limits",
        "client_buffers",
        Shape::Count(16, 32_768),
        "4_096",
        "Receive buffers of one worker for clients, of 4 KiB each: a power of two.",
    )
    .cold(),
    hot(
        "limits",
        "accepts",
        Shape::Count(1, 1024),
        "64",
        "Accepts that one worker keeps outstanding on each listener.",
    )
    .cold(),
    hot(
        "limits",
        "close_lines_per_second",
        Shape::Count(0, 1_000_000),
        "100",
        "Close lines in the log, for each second and worker; the rest is counted in a metric.",
    ),
    hot(
        "limits",
        "revocations_max",
        Shape::Count(1, 1_000_000),
        "10_000",
        "Revocations held at one time. One more is refused, never dropped in silence. A lower \
         value than there are entries removes none.",
    ),
    hot(
        "deadlines",
        "tls_handshake",
        Shape::Time(100, MINUTE),
        "3s",
        "From accept to the end of the TLS handshake. Then: silent close.",
    ),
    hot(
        "deadlines",
        "request_head",
        Shape::Time(100, MINUTE),
        "2s",
        "From the end of the TLS handshake, or accept, to a whole request head. Then: 408, or a \
         silent close when no byte came.",
    ),
    hot(
        "deadlines",
        "authenticate",
        Shape::Time(100, MINUTE),
        "5s",
        "From the 101 to a verdict. Then: explained close.",
    ),
    hot(
        "deadlines",
        "linger",
        Shape::Time(100, 30 * SECOND),
        "1s",
        "From the gateway's close frame to the client's. Then: reset.",
    ),
    hot(
        "deadlines",
        "failure_grace",
        Shape::Time(0, 30 * SECOND),
        "0s",
        "From an authenticated client's broken frame to the close frame: so long it is still \
         sent what its backend has under way, and nothing more is read from it.",
    )
    .conformance("300ms"),
    hot(
        "deadlines",
        "ping_interval",
        Shape::Time(SECOND, HOUR),
        "25s",
        "Silence of a client after which the gateway pings. Shorter than `idle`.",
    ),
    hot(
        "deadlines",
        "idle",
        Shape::Time(2 * SECOND, 24 * HOUR),
        "60s",
        "Silence of a client, pings unanswered, after which the gateway closes.",
    )
    .conformance("10m"),
    hot(
        "deadlines",
        "write_stall",
        Shape::Time(100, 10 * MINUTE),
        "10s",
        "Time without progress of a send. Then: best-effort close, reset.",
    ),
    hot(
        "deadlines",
        "lifetime",
        Shape::TimeOrOff(10 * SECOND, 720 * HOUR),
        "off",
        "Age at which a connection is asked to reconnect; jittered so that a crowd does not \
         return at once.",
    ),
    hot(
        "deadlines",
        "expiry_grace",
        Shape::Time(0, HOUR),
        "0s",
        "How long after its token's `exp` a connection may live on.",
    ),
    hot(
        "deadlines",
        "drain",
        Shape::Time(0, HOUR),
        "30s",
        "Over how long a drain spreads its closes. A supervisor's stop time-out must be longer.",
    ),
    hot(
        "deadlines",
        "link_connect",
        Shape::Time(100, MINUTE),
        "5s",
        "From the start of a connection attempt to a backend to the end of the link handshake.",
    ),
    hot(
        "deadlines",
        "link_ping",
        Shape::Time(100, 10 * MINUTE),
        "5s",
        "Silence on a link after which it is pinged; at three times this it is dead.",
    ),
    hot(
        "deadlines",
        "link_retry_min",
        Shape::Time(10, MINUTE),
        "100ms",
        "Shortest wait before a backend is tried again; it doubles, with jitter.",
    ),
    hot(
        "deadlines",
        "link_retry_max",
        Shape::Time(10, 10 * MINUTE),
        "10s",
        "Longest wait before a backend is tried again. At least `link_retry_min`.",
    ),
    hot(
        "listener",
        "address",
        Shape::Text("IP address and port"),
        REQUIRED,
        "Where to listen; `[::]:443` takes IPv6 and IPv4.",
    )
    .cold(),
    hot(
        "listener",
        "tls",
        Shape::TableOrTables("listener.tls"),
        NONE,
        "Certificates; with them the listener speaks TLS only. The client's server name (SNI) \
         selects by the certificates' alternative names; the first is served to the rest. \
         Certificates are hot, but whether a listener has any is not.",
    )
    .cold(),
    hot(
        "listener.tls",
        "certificate",
        Shape::Text(PATH),
        REQUIRED,
        "PEM file with the certificate, then its intermediates.",
    ),
    hot(
        "listener.tls",
        "key",
        Shape::Text(SECRET_FILE),
        REQUIRED,
        "PEM file with the certificate's private key (PKCS#8, SEC1 or PKCS#1, not encrypted).",
    ),
    hot(
        "listener",
        "proxy_protocol",
        Shape::Table("listener.proxy_protocol"),
        NONE,
        "Load balancers that put a PROXY protocol header before the client's bytes.",
    ),
    hot(
        "listener.proxy_protocol",
        "trusted",
        Shape::List("networks, as in `10.0.0.0/8`"),
        REQUIRED,
        "Peers in these networks must send the header and are believed; others must not send it.",
    ),
    hot(
        "listener",
        "defer_accept",
        Shape::Word(&["auto", "on", "off"]),
        "off",
        "TCP_DEFER_ACCEPT: for its first second a connection that says nothing stays in the \
         kernel, and is younger for the deadlines than it is. `\"auto\"` is where 10 s are \
         still enough for that second and all deadlines before authentication.",
    )
    .cold(),
    hot("auth", "name", Shape::Text("name"), REQUIRED, "What routes call it; unique."),
    hot(
        "auth",
        "kind",
        Shape::Word(&["jwt", "phoenix", "plug-session", "compact", "backend", "http"]),
        REQUIRED,
        "Who decides on a token, and by which format.",
    ),
    hot(
        "auth",
        "carriers",
        Shape::List(
            "`authorization`, `subprotocol`, `cookie:NAME`, `header:NAME`, \
                     `query:NAME`, `first-message`, `first-message:PATH`",
        ),
        REQUIRED,
        "Where a client may put its token; the first place that holds one counts; `backend` and `http` are shown all of them.",
    ),
    hot(
        "auth",
        "keys",
        Shape::Tables("auth.keys"),
        NONE,
        "`jwt`, `compact`: keys that sign tokens, required. While one is rotated out, list the \
         old one beside the new one.",
    ),
    hot(
        "auth.keys",
        "id",
        Shape::Text("text"),
        NONE,
        "`jwt`: the `kid` in tokens that the key signed; a key without one serves only tokens \
         without one. `compact`: the key's number in tokens, 0 to 255, required. Unique.",
    ),
    hot(
        "auth.keys",
        "algorithm",
        Shape::Word(&["HS256", "HS384", "HS512"]),
        "HS256",
        "The only algorithm that the key is used with, whatever the token says. `compact` has \
         HS256 alone.",
    ),
    hot(
        "auth.keys",
        "secret_file",
        Shape::Text(SECRET_FILE),
        NONE,
        "The key: at least 32 bytes, used as they are. One newline at the end is not part of it.",
    ),
    hot(
        "auth.keys",
        "secret",
        Shape::Text("text"),
        NONE,
        "The key itself, instead of `secret_file`. For development only.",
    ),
    hot(
        "auth",
        "issuer",
        Shape::Text("text"),
        NONE,
        "`jwt`: what `iss` must be; absent: not looked at.",
    ),
    hot(
        "auth",
        "audience",
        Shape::Text("text"),
        NONE,
        "`jwt`: what `aud` must be or contain. Without it, tokens that carry an `aud` are \
         refused: they are for somebody else.",
    ),
    hot(
        "auth",
        "leeway",
        Shape::Time(0, 30 * SECOND),
        "10s",
        "`jwt`, `compact`: by how much clocks may differ when a token's times are judged. It \
         does not lengthen a connection, which ends at `exp` plus `expiry_grace`; only one let in \
         after `exp` ends with the leeway.",
    ),
    hot(
        "auth",
        "lifetime_max",
        Shape::Time(MINUTE, 87_600 * HOUR),
        "87600h",
        "`jwt`, `compact`: how far ahead a token's end may lie; tokens that end later are refused.",
    ),
    hot(
        "auth",
        "secret_key_base_file",
        Shape::TextOrList(SECRET_FILE),
        NONE,
        "`phoenix`, `plug-session`: Phoenix's `secret_key_base`. While one is rotated out, list \
         the old one behind the new one; at most 16. One newline at the end is not part of it.",
    ),
    hot(
        "auth",
        "secret_key_base",
        Shape::TextOrList("text"),
        NONE,
        "The values themselves, instead of `secret_key_base_file`. For development only.",
    ),
    hot(
        "auth",
        "salt",
        Shape::Text("text"),
        NONE,
        "`phoenix`: the salt that tokens are signed with, as in \
         `Phoenix.Token.sign(endpoint, \"user auth\", id)`; required.",
    ),
    hot(
        "auth",
        "signing_salt",
        Shape::Text("text"),
        NONE,
        "`plug-session`: `signing_salt` of the endpoint's `@session_options`; required.",
    ),
    hot(
        "auth",
        "max_age",
        Shape::TimeOrOff(SECOND, 87_600 * HOUR),
        NONE,
        "`phoenix`: how old a token may be, whatever it says itself; `\"off\"`: as old as it \
         likes; absent: what it says, usually a day. `plug-session`: how long a connection may \
         live, since the cookie carries no time; absent or `\"off\"`: no such limit.",
    ),
    hot(
        "auth",
        "subject",
        Shape::Text("text"),
        NONE,
        "`phoenix`: the key of the subject where the signed data is a map; integers and texts \
         are subjects as they are. `plug-session`: the session's key that names the user, \
         required; a session without it gives way to the route's next `[[auth]]`.",
    ),
    hot(
        "auth",
        "csrf",
        Shape::Flag,
        "true",
        "`plug-session`: whether the query must carry the masked `_csrf_token` that belongs to \
         the session, as LiveView's client sends it.",
    ),
    hot(
        "auth",
        "iterations",
        Shape::Count(1, 10_000_000),
        "1000",
        "`phoenix`, `plug-session`: `key_iterations` of the key's derivation (PBKDF2).",
    ),
    hot(
        "auth",
        "length",
        Shape::Count(32, 1024),
        "32",
        "`phoenix`, `plug-session`: `key_length` of the derived key, in bytes.",
    ),
    hot(
        "auth",
        "digest",
        Shape::Word(&["sha256", "sha384", "sha512"]),
        "sha256",
        "`phoenix`, `plug-session`: `key_digest` of the key's derivation.",
    ),
    hot(
        "auth",
        "endpoint",
        Shape::Text("`http://` or `https://` URL"),
        NONE,
        "`kind = \"http\"`, and required there: what is asked, by GET.",
    ),
    hot(
        "auth",
        "timeout",
        Shape::Time(10, MINUTE),
        "2s",
        "`kind = \"backend\"` or `\"http\"`: how long a verdict may take before the client is \
         refused as `backend_unavailable`. The client's own deadline, \
         `deadlines.authenticate`, holds as well.",
    ),
    hot(
        "auth",
        "in_flight_max",
        Shape::Count(1, 100_000),
        "256",
        "`kind = \"http\"`: requests at the endpoint at one time, of all workers together. As \
         many idle connections are kept.",
    ),
    hot(
        "auth",
        "queue_max",
        Shape::Count(0, 1_000_000),
        "1024",
        "`kind = \"http\"`: questions that may wait for room among those in flight; further \
         ones refuse their clients at once.",
    ),
    hot(
        "auth",
        "response_max",
        Shape::Size(8 * KIB, MIB),
        "16KiB",
        "`kind = \"http\"`: most bytes of a response's head, and of its body. More decides \
         nothing.",
    ),
    hot(
        "auth",
        "headers",
        Shape::List("header names"),
        NONE,
        "`kind = \"http\"`: fields of the client's request that go along, beside those that \
         always do.",
    ),
    hot(
        "auth",
        "identity",
        Shape::Table("auth.identity"),
        NONE,
        "`kind = \"http\"`: response fields that say who the client is.",
    ),
    hot(
        "auth.identity",
        "subject",
        Shape::Text("header name"),
        "X-Auth-Subject",
        "Whom the endpoint recognised. A 2xx without it accepts nobody.",
    ),
    hot(
        "auth.identity",
        "token_id",
        Shape::Text("header name"),
        "X-Auth-Token-Id",
        "The token's own id, by which it can be revoked.",
    ),
    hot(
        "auth.identity",
        "expires",
        Shape::Text("header name"),
        "X-Auth-Expires",
        "When the connection must end, in seconds since 1970.",
    ),
    hot(
        "auth.identity",
        "issued_at",
        Shape::Text("header name"),
        "X-Auth-Issued-At",
        "When the token was made, in seconds since 1970.",
    ),
    hot(
        "auth.identity",
        "claims",
        Shape::Text("header name"),
        "X-Auth-Claims",
        "What else is known: UTF-8, at most 8 KiB, handed to the backend as it is.",
    ),
    hot(
        "auth.identity",
        "reason",
        Shape::Text("header name"),
        "X-Auth-Reason",
        "Beside 401 and 403: the label of a cause, as in `token_expired`.",
    ),
    hot(
        "auth",
        "ca_file",
        Shape::Text(PATH),
        NONE,
        "`kind = \"http\"`: PEM file with the certificates that an `https://` endpoint's must \
         lead to; absent: those of the system.",
    ),
    hot(
        "auth",
        "circuit_failures",
        Shape::Count(1, 1_000),
        "5",
        "`kind = \"http\"`: failures in a row after which the endpoint is left alone, and its \
         clients are refused at once.",
    ),
    hot(
        "auth",
        "circuit_open_min",
        Shape::Time(100, 10 * MINUTE),
        "1s",
        "`kind = \"http\"`: for how long, before one request tries it again. Doubles while that \
         fails; half of it is drawn at random.",
    ),
    hot(
        "auth",
        "circuit_open_max",
        Shape::Time(100, HOUR),
        "30s",
        "`kind = \"http\"`: longest such wait.",
    ),
    hot(
        "route",
        "path",
        Shape::Text("path, or prefix ending in `/*`"),
        REQUIRED,
        "What clients ask for. The first route in the file that matches is taken.",
    ),
    hot(
        "route",
        "origins",
        Shape::ListOrWord("origins", "any"),
        REQUIRED,
        "Pages that may connect: scheme, host and port exactly, as in `https://app.example.com`, \
         or `https://*.example.com` for all hosts below one. `[]` refuses every page.",
    ),
    hot(
        "route",
        "origin_absent",
        Shape::Word(&["allow", "refuse"]),
        "refuse",
        "What happens to requests without Origin, which no browser sends.",
    ),
    hot(
        "route",
        "auth",
        Shape::TextOrList("name of an `[[auth]]`, `\"none\"`"),
        REQUIRED,
        "How clients authenticate. Of several, in this order, the first that vouches for the \
         client's token decides: one that finds no token, or one that it has not signed, gives \
         way to the next. `\"none\"` must be written out, alone.",
    ),
    hot(
        "route",
        "backend",
        Shape::Text("name of a `[[backend]]`"),
        REQUIRED,
        "Where the sessions go.",
    ),
    hot(
        "route",
        "dialect",
        Shape::Word(&[
            "auto",
            "plain",
            "phoenix",
            "graphql-transport-ws",
            "pusher",
            "centrifuge",
        ]),
        "auto",
        "How refusals and closes are put (`closing.md`). `\"auto\"` judges by the subprotocol and \
         by what phoenix.js and pusher-js put into the URL; centrifuge must be written out.",
    ),
    hot(
        "route",
        "closes",
        Shape::TablesByName("route.closes", "reasons of `closing.md`", Cause::LABELS),
        NONE,
        "What is said of closes in place of the dialect's table: for each reason, what differs.",
    ),
    hot(
        "route.closes",
        "code",
        Shape::Count(1000, 4999),
        NONE,
        "The close code: 1000 to 1003, 1007 to 1014 or 3000 to 4999.",
    ),
    hot("route.closes", "reason", Shape::Text("text of at most 123 bytes"), NONE, "The reason."),
    hot(
        "route.closes",
        "reconnect",
        Shape::Flag,
        NONE,
        "Whether the client is told to come back. `true` where `retry_after` is given.",
    ),
    hot(
        "route.closes",
        "retry_after",
        Shape::Time(0, 3_600_000),
        NONE,
        "How long the client is told to wait.",
    ),
    hot(
        "route.closes",
        "pace",
        Shape::Time(0, 8_000),
        NONE,
        "How long the close frame waits at least after the message, for clients that come back \
         at once; up to half as much again is added at random. `\"0s\"` is not at all.",
    ),
    hot(
        "route.closes",
        "message",
        Shape::Flag,
        NONE,
        "Whether the dialect's message goes before the close frame.",
    ),
    hot(
        "route",
        "refuse",
        Shape::Word(&["explain", "http", "auto"]),
        "explain",
        "How a refused token is answered: after 101 with an explanation and a close code, with \
         401 or 403, or (`\"auto\"`) the first to browsers and the second to the rest.",
    ),
    hot(
        "route",
        "subprotocols",
        Shape::List("subprotocol names"),
        "[]",
        "Subprotocols that may be answered with, the preferred first.",
    ),
    hot(
        "route",
        "messages",
        Shape::Word(&["any", "text", "binary"]),
        "any",
        "Which messages are taken; another is closed with 1003.",
    ),
    hot(
        "route",
        "forward_headers",
        Shape::List("header names"),
        "[]",
        "Request headers that the backend is told of. Those that carry credentials are refused.",
    ),
    hot(
        "route",
        "health",
        Shape::Flag,
        "false",
        "Answer a GET or HEAD that asks for no WebSocket with 200, for load balancers, instead of \
         426 or 405; HTTP/1.0 without `Host` too.",
    ),
    hot(
        "route",
        "reauthenticate",
        Shape::Table("route.reauthenticate"),
        NONE,
        "How an open connection presents a fresh token, see `authentication.md`; without it, it \
         cannot.",
    ),
    hot(
        "route.reauthenticate",
        "prefix",
        Shape::Text("1 to 64 bytes of text, from `{` on"),
        REQUIRED,
        "A text message that begins exactly so is taken by the gateway, whatever follows, and \
         never reaches the backend. As in `'{\"type\":\"authenticate\",'`.",
    ),
    hot(
        "route.reauthenticate",
        "token",
        Shape::Text("member names with dots between them"),
        REQUIRED,
        "Where the token is in that message, which must be a JSON object.",
    ),
    hot("backend", "name", Shape::Text("name"), REQUIRED, "What routes call it; unique.").cold(),
    hot(
        "backend",
        "kind",
        Shape::WordOrLater(&["link"], &["websocket"]),
        "link",
        "What is spoken to it: the framed link of `link-protocol.md`.",
    )
    .cold(),
    hot(
        "backend",
        "endpoints",
        Shape::List("`IP:PORT` or `unix:/PATH`"),
        REQUIRED,
        "Its servers, interchangeable.",
    )
    .cold(),
    hot(
        "backend",
        "balance",
        Shape::WordOrLater(&["least-sessions", "round-robin"], &["hash-subject"]),
        "least-sessions",
        "How a new session chooses among them.",
    ),
    hot(
        "backend",
        "secret_file",
        Shape::Text(SECRET_FILE),
        NONE,
        "Key of the link's mutual authentication, at least 32 bytes. One newline at the end is \
         not part of it.",
    ),
    hot(
        "backend",
        "secret",
        Shape::Text("text"),
        NONE,
        "The key itself, instead of `secret_file`. For development only.",
    ),
];
