//! The table itself, section by section. `rows.rs` says what a row makes.
//! Long because: it is one table, and each key has its row.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::super::raw::{self, List, ListOrWord, Number, Path, Text, TextByName, WordOrTextByName};
use super::super::words::FromWord;
use super::super::{
    DeferAccept, Descriptors, ExternalScheme, LogFormat, MessageTypes, Redirect, Refuse,
    RevokeScope, SecretEncoding,
};
use super::{Key, NONE, REQUIRED, Reload, Shape};
use crate::base::secret::Secret;
use crate::protocol::acceptance::Preset;
use crate::protocol::cause::Cause;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

const PATH: &str = "file name, relative to the configuration file";
const SECRET_FILE: &str = "file name, relative to the configuration file, or `env:NAME`";
const CARRIERS: &str = "`authorization`, `subprotocol`, `cookie:NAME`, `header:NAME`, \
                        `query:NAME`, `first-message`, `first-message:PATH`";
const DIALECTS: &[&str] =
    &["auto", "plain", "phoenix", "graphql-transport-ws", "pusher", "centrifuge"];

/// Compares what the lists have in common: what one of them has more is another key's change.
fn same_each<T, V: PartialEq>(a: &[T], b: &[T], value: impl Fn(&T) -> V) -> bool {
    a.iter().zip(b).all(|(a, b)| value(a) == value(b))
}

fn same_secret(a: &Option<Secret>, b: &Option<Secret>) -> bool {
    a.as_ref().map(Secret::expose) == b.as_ref().map(Secret::expose)
}

sections! {
    "gateway" RawGateway {
        workers: CountOrAuto(1, 1024) as u16 = "auto",
            RestartRequired(|a, b| a.gateway.workers == b.gateway.workers),
            "Worker threads, each with its own ring; `\"auto\"` is one for each core.";
        descriptors: Word(Descriptors::WORDS) as Descriptors = "auto",
            RestartRequired(|a, b| a.gateway.descriptors == b.gateway.descriptors),
            "Descriptors of accepted sockets: plain ones of the process, which the limit on open \
             files bounds for all workers together, or direct ones of each worker's ring, which \
             it bounds for each worker. `\"auto\"` is `\"direct\"` from Linux 6.7 on, where \
             direct ones can be reset.";
        admin: Text("IP address and port, or `\"off\"`") as &str = "127.0.0.1:9464",
            RestartRequired(|a, b| a.gateway.admin == b.gateway.admin),
            "Address of metrics, health, the live page and the admin API.";
        admin_token_file: Text(SECRET_FILE) = NONE,
            RestartRequired(|a, b| same_secret(&a.gateway.admin_token, &b.gateway.admin_token)),
            "Bearer token that the admin API requires, at least 32 bytes. Required when `admin` is \
             not a loopback address.";
        admin_socket: Text(PATH) = NONE,
            RestartRequired(|a, b| a.gateway.admin_socket == b.gateway.admin_socket),
            "Unix socket of the admin API, for root and the gateway's own user; made with mode \
             0600. The command line uses it. Without `admin_token_file`, changes are accepted here \
             alone.";
        ready_without_backend: Flag() as bool = "true", Live,
            "Whether `/readyz` answers 200 while no link to any backend is ready. `true` is for a \
             single gateway, whose clients then learn why; with several, `false` sends clients to \
             the gateways that can reach a backend.";
        drain_delay: Time(0, HOUR) as Duration = "0s", Live,
            "How long a drain goes on accepting connections after `/readyz` has begun to answer \
             503, so that a load balancer stops sending clients before it begins to refuse them. A \
             supervisor's stop timeout must be longer than this and `deadlines.drain` together.";
        log: Table(RawLog) = NONE, Live,
            "How the log is written.";
        close_log: Text(PATH) = NONE,
            RestartRequired(|a, b| a.gateway.close_log == b.gateway.close_log),
            "File to which the gateway appends the lines of closed connections, as JSON; without \
             it they go to the log. SIGHUP reopens it.";
        revocations_file: Text(PATH) = NONE,
            RestartRequired(|a, b| a.gateway.revocations_file == b.gateway.revocations_file),
            "File that holds the revocations, so that they survive a restart; without it a \
             restart forgets them. The gateway writes this file and a temporary one beside it.";
    }
    "gateway.log" RawLog {
        format: Word(LogFormat::WORDS) as LogFormat = "auto",
            RestartRequired(|a, b| a.gateway.log_format == b.gateway.log_format),
            "Shape of log lines; `\"auto\"` is pretty on a terminal and JSON otherwise.";
        level: Text("level, or list of `target=level`") as &str = "info", Live,
            "What is logged: `error`, `warn`, `info`, `debug`, `trace` or `off`, for all or by \
             target, as in `info,portcullis=debug`.";
        subject: Word(&["off", "plain", "hash"]) as &str = "off", Live,
            "Whether close lines name the client's subject: `\"plain\"` as it is, escaped; \
             `\"hash\"` as the first 32 digits of the HMAC-SHA-256 by `subject_key_file`. It takes \
             the memory of one subject for each open connection.";
        subject_key_file: Text(SECRET_FILE) = NONE, Live,
            "Key for `subject = \"hash\"`, required there: at least 32 bytes, the same on all \
             gateways whose logs are compared. One newline at the end is removed.";
    }
    "limits" RawLimits => Limits in limits {
        profile: Word(&["production", "conformance"]) = "production", Live,
            "Selects the defaults of the other limits. `\"conformance\"` is for the Autobahn test \
             suite: large messages in tiny fragments, and no rate limits. Never expose it to the \
             internet.";
        connections_max: Count(1, 100_000_000) as u32 = "1_000_000", Live,
            "Connections of all workers together.";
        explain_reserve: Count(0, 1_000_000) as u32 = "256", Live,
            "Places of `connections_max`, of all workers together and at most a sixteenth of them, \
             that are kept to tell clients beyond the others to come back later \
             (`over_capacity`), one client of each address at a time.";
        unauthenticated_max: Count(1, 100_000_000) as u32 = "50_000", Live,
            "Unauthenticated connections of all workers together. Keep it above the honest \
             arrivals per second times their p99 time to authenticate in seconds.";
        anonymous_max: Count(1, 100_000_000) as u32 = "100_000", Live,
            "Visitors of all workers together: open clients without an identity, on routes whose \
             `auth` ends with `\"anonymous\"`. Above it a newcomer takes the place of a visitor of the \
             address prefix with the most, or is refused as `over_capacity` where its own has as many.";
        early_drop_start: Count(1, 100) as u8 = "80", Live,
            "Early drop begins at this percentage of `unauthenticated_max`.";
        early_drop_rate: Count(0, 100) as u8 = "30", Live,
            "Chance in percent that early drop resets a newcomer there; it grows to 100 at the \
             cap. It applies to prefixes with `prefix_share` connections or more.";
        prefix_share: Count(1, 100_000_000) as u32 = "32", Live,
            "Unauthenticated connections of one address (IPv4 /32, IPv6 /64; 4 times as many of a \
             /56, 16 times of a /48) below which early drop does not apply. It has no effect \
             below `early_drop_start`.";
        prefix_failures_per_minute: Count(1, 1_000_000) as u32 = "60", Live,
            "Failures (refusals, expired deadlines, bad requests) of one address that are \
             forgotten in a minute; each client that authenticates cancels one. Wider prefixes as \
             with `prefix_share`.";
        prefix_failures_burst: Count(1, 1_000_000) as u32 = "120", Live,
            "Failures of one address in one burst. Above that it has a penalty: from \
             `early_drop_start` on it is dropped first.";
        prefixes_max: Count(0, 100_000_000) as u32 = "65_536", Live,
            "Prefixes whose failures are remembered, of all workers together.";
        tls_handshakes_per_second: CountOrAuto(1, 100_000_000) as u32 = "auto", Live,
            "TLS handshakes that may begin in a second, of all workers together; a connection \
             above it is reset when its ClientHello is whole. `\"auto\"` is 2,000 for each worker.";
        connections_per_worker: CountOrAuto(16, 16_000_000) as u32 = "auto", RestartRequired,
            "Connections of one worker; `\"auto\"` derives it from the descriptor limit.";
        memory_max: SizeOrAuto(16 * MIB, 16_384 * GIB) as u64 = "auto", RestartRequired,
            "Memory budget of the process; `\"auto\"` derives it from the machine or its cgroup.";
        message_max: Size(125, 256 * MIB) as u32 = "1MiB" (conformance "32MiB"), Live,
            "Largest message in either direction; a client's larger one is closed with 1009. A \
             link takes a new value when it next connects.";
        first_message_max: Size(125, MIB) as u32 = "16KiB", Live,
            "Largest message before authentication, which carries the token.";
        proxy_header_max: Size(536, 64 * KIB) as u32 = "4KiB", Live,
            "Largest PROXY header of version 2, extensions such as a client certificate included.";
        first_messages_max: Count(1, 1_000) as u16 = "8", Live,
            "Messages that a client may begin before the application that judges it by messages has \
             let it in; together they may have `first_message_max` bytes.";
        head_max: Size(512, 64 * KIB) as u32 = "8KiB", Live,
            "Largest request head; 431 above it.";
        header_fields_max: Count(8, 128) as u16 = "64", Live,
            "Most header fields in a request; 431 above it.";
        request_line_max: Size(128, 32 * KIB) as u32 = "8000B", Live,
            "Longest request line; 414 above it.";
        token_max: Size(64, 16 * KIB) as u16 = "4KiB", Live,
            "Longest token; a longer one is refused before it is decoded. At most `head_max` and \
             `first_message_max`, which bound what an unauthenticated client makes the gateway hold: \
             above 4KiB raise them, too.";
        dead_tokens_max: Count(0, 1 << 24) as u32 = "65_536", RestartRequired,
            "Rejected tokens that one worker remembers, to refuse them again without \
             verification: 8 bytes each, rounded up to a power of two. 0 is off.";
        frames_per_second: Count(1, 1_000_000_000) as u32 = "1_000" (conformance "1_000_000_000"),
            Live,
            "Data frames that one client may send in a second on average; above it the gateway \
             closes with `rate_limited` (code in \
             [closing.md](closing.md#every-reason-in-every-dialect)).";
        frames_burst: Count(1, 1_000_000_000) as u32 = "4_000" (conformance "1_000_000_000"), Live,
            "Data frames that one client may send in one burst.";
        controls_per_second: Count(1, 1_000_000_000) as u32 = "10" (conformance "1_000_000_000"),
            Live,
            "Control frames (ping, pong) that one client may send in a second on average; above \
             it `rate_limited`.";
        controls_burst: Count(1, 1_000_000_000) as u32 = "60" (conformance "1_000_000_000"), Live,
            "Control frames that one client may send in one burst.";
        pongs_unsent_max: Count(1, 255) as u8 = "1" (conformance "64"), Live,
            "Pongs to one client that may wait to be sent. Further pings get one pong together, \
             for the latest of them.";
        fragments_max: Count(1, 16_777_216) as u32 = "1_024" (conformance "1_048_576"), Live,
            "Most frames of one message; 1009 above it.";
        session_window: Size(4 * KIB, 256 * MIB) as u32 = "256KiB" (conformance "32MiB"), Live,
            "Bytes in flight to one client that a backend may have without new credit.";
        client_send_buffer: Size(16 * KIB, 64 * MIB) as u32 = "128KiB", RestartRequired,
            "The kernel's send buffer of one client (SO_SNDBUF). The kernel takes up to twice as \
             much memory, and no more than `net.core.wmem_max` allows. A client far away gets at \
             most about this much in one round trip.";
        link_window: Size(64 * KIB, 2 * GIB - 1) as u32 = "16MiB" (conformance "64MiB"), Live,
            "Bytes in flight on one link, in each direction, without new credit. At least \
             `session_window`.";
        link_output_max: Size(256 * KIB, GIB) as u32 = "16MiB" (conformance "64MiB"), Live,
            "Bytes that may wait to be sent on one link. Above half of it clients' messages wait, \
             above all of it newcomers are refused as `backend_unavailable`, and at twice that the \
             link is given up.";
        stalled_input_max: Size(MIB, 1024 * GIB) as u64 = "64MiB" (conformance "256MiB"), Live,
            "Bytes of clients' input that may wait in one worker for credit of backends.";
        verdicts_max: Count(1, 1_000_000) as u32 = "4096", Live,
            "Auth decisions of backends and HTTP endpoints that one worker awaits concurrently; \
             further clients are refused as `backend_unavailable`.";
        handshakes_per_tick: Count(1, 4096) as u32 = "32", Live,
            "TLS handshake steps of one worker before it serves its open connections again.";
        upstream_head_max: Size(KIB, 64 * KIB) as u32 = "16KiB", Live,
            "Largest head of a WebSocket server's answer to a handshake, interim answers included.";
        client_buffers: Count(16, 32_768) as u16 = "4_096", RestartRequired,
            "Receive buffers of one worker for clients, of 4 KiB each: a power of two.";
        accepts: Count(1, 1024) as u16 = "64", RestartRequired,
            "Accepts that one worker keeps outstanding on each listener.";
        close_lines_per_second: Count(0, 1_000_000) as u32 = "100", Live,
            "Close lines in the log, for each second and worker; a metric counts the others.";
        revocations_max: Count(1, 1_000_000) as u32 = "10_000", Live,
            "Revocations held concurrently. A further one is refused, never dropped silently. A \
             value below the number of entries removes none.";
    }
    "deadlines" RawDeadlines => Deadlines in deadlines {
        tls_handshake: Time(100, MINUTE) as Duration = "3s", Live,
            "From accept to the end of the TLS handshake. Then: silent close.";
        request_head: Time(100, MINUTE) as Duration = "2s", Live,
            "From the end of the TLS handshake, or accept, to a complete request head. Then: 408, \
             or a silent close if no byte came.";
        authenticate: Time(100, MINUTE) as Duration = "5s", Live,
            "From the 101 to an auth decision. Then: explained close.";
        linger: Time(100, 30 * SECOND) as Duration = "1s", Live,
            "From the gateway's close frame to the client's. Then: reset.";
        failure_grace: Time(0, 30 * SECOND) as Duration = "0s" (conformance "300ms"), Live,
            "From an authenticated client's broken frame to the close frame. Meanwhile the \
             gateway sends the client what its backend has under way, and reads nothing from it.";
        ping_interval: Time(SECOND, HOUR) as Duration = "25s", Live,
            "Silence of a client after which the gateway pings it. Shorter than `idle`.";
        idle: Time(2 * SECOND, 24 * HOUR) as Duration = "60s" (conformance "10m"), Live,
            "Silence of a client, with pings unanswered, after which the gateway closes it.";
        write_stall: Time(100, 10 * MINUTE) as Duration = "10s", Live,
            "Time without progress of a send. Then: best-effort close, reset.";
        lifetime: TimeOrOff(10 * SECOND, 720 * HOUR) as Duration = "off", Live,
            "Age at which the gateway closes a connection so that it reconnects; jittered, so \
             that clients do not return in one burst.";
        expiry_grace: Time(0, HOUR) as Duration = "0s", Live,
            "How long a connection may outlive its token's `exp`.";
        drain: Time(0, HOUR) as Duration = "30s", Live,
            "Time over which a drain spreads its closes. A supervisor's stop timeout must be \
             longer.";
        link_connect: Time(100, MINUTE) as Duration = "5s", Live,
            "From the start of a connection attempt to a backend to the end of the link \
             handshake.";
        upstream_connect: Time(100, MINUTE) as Duration = "5s", Live,
            "From the start of a client's handshake with a WebSocket server behind the gateway to its \
             answer, other servers that are tried included.";
        resolve_interval: Time(SECOND, HOUR) as Duration = "15s", Live,
            "How often the names of endpoints are resolved; also the longest that an answer may \
             take.";
        link_ping: Time(100, 10 * MINUTE) as Duration = "5s", Live,
            "Silence on a link after which the gateway pings; after twice this the log names the \
             backend, after three times this the gateway drops the link and closes its sessions.";
        link_stall: Time(100, 10 * MINUTE) as Duration = "10s", Live,
            "Time without any credit from a backend, while clients of its link wait to send, after \
             which the log names it, once. Nothing else happens.";
        link_retry_min: Time(10, MINUTE) as Duration = "100ms", Live,
            "Shortest wait before a backend is tried again; it doubles, with jitter.";
        link_retry_max: Time(10, 10 * MINUTE) as Duration = "10s", Live,
            "Longest wait before a backend is tried again. At least `link_retry_min`.";
    }
    "listener" RawListener {
        address: Text("IP address and port") = REQUIRED,
            RestartRequired(|a, b| {
                a.listeners.iter().map(|l| l.address).eq(b.listeners.iter().map(|l| l.address))
            }),
            "Where to listen; `[::]:443` takes IPv6 and IPv4.";
        tls: TableOrTables(RawCertificate) = NONE,
            RestartRequired(|a, b| same_each(&a.listeners, &b.listeners, |l| l.tls.is_some())),
            "Certificates; with them the listener speaks TLS only. The client's server name (SNI) \
             selects one by alternative name; without a match the gateway uses the first. A reload \
             changes certificates, but not whether a listener has any.";
        proxy_protocol: Table(RawProxy) = NONE, Live,
            "Load balancers that send a PROXY protocol header before the client's bytes.";
        forwarded: Table(RawForwarded) = NONE, Live,
            "Proxies whose `X-Forwarded-*` fields say who the client is; those of all other peers are \
             not believed.";
        external_scheme: Word(ExternalScheme::WORDS) as ExternalScheme = "auto", Live,
            "What clients speak to the outermost server. `\"auto\"`: what they speak to the gateway, \
             or what a PROXY header says; `\"https\"` where a load balancer ends TLS. \
             `X-Forwarded-Proto` of a trusted proxy wins.";
        redirect: Word(Redirect::WORDS) as Redirect = "off", Live,
            "`\"https\"`: requests that came without TLS are answered with 308 to the same address \
             with `https`, but for health checks.";
        defer_accept: Word(DeferAccept::WORDS) as DeferAccept = "off",
            RestartRequired(|a, b| same_each(&a.listeners, &b.listeners, |l| l.defer_accept)),
            "TCP_DEFER_ACCEPT: for its first second a silent connection stays in the kernel, and \
             its deadlines start later. `\"auto\"` enables it where that second and all deadlines \
             before authentication fit into 10 s.";
    }
    "listener.tls" RawCertificate {
        certificate: Text(PATH) = REQUIRED, Live,
            "PEM file with the certificate, then its intermediates.";
        key: Text(SECRET_FILE) = REQUIRED, Live,
            "PEM file with the certificate's private key (PKCS#8, SEC1 or PKCS#1, not encrypted).";
    }
    "listener.proxy_protocol" RawProxy {
        trusted: List("networks, as in `10.0.0.0/8`") = REQUIRED, Live,
            "Peers in these networks must send the header, and the gateway trusts it; others must \
             not send it.";
    }
    "listener.forwarded" RawForwarded {
        trusted: List("networks, as in `10.0.0.0/8`") = REQUIRED, Live,
            "The proxies' networks.";
        header: Text("header name") as &str = "x-forwarded-for", Live,
            "The field with the client's address. `x-forwarded-for` is a list, which is read from the \
             right; any other, as `cf-connecting-ip`, holds one address.";
    }
    "auth" RawAuth {
        name: Text("name") = REQUIRED, Live,
            "Name for routes to refer to; unique.";
        kind: Word(&["jwt", "phoenix", "plug-session", "compact", "backend", "http", "upstream"])
            = REQUIRED, Live,
            "Who decides about a token, and which format it has. `upstream`: the application behind \
             the gateway (`[[backend]] kind = \"websocket\"`) judges its clients itself.";
        carriers: List(CARRIERS) = NONE,
            Live required for ["jwt", "phoenix", "plug-session", "compact", "backend", "http"],
            "Required by all kinds but `upstream`: where a client may put its token; the first place that holds one counts. `backend` \
             and `http` get all of them.";
        keys: Tables(RawKey) = NONE, Live required for ["jwt", "compact"],
            "`jwt`, `compact`: keys that sign tokens, required. During a rotation list the old \
             one beside the new one.";
        issuer: Text("text") = NONE, Live for ["jwt"],
            "`jwt`: what `iss` must be; if absent, not checked.";
        audience: Text("text") = NONE, Live for ["jwt"],
            "`jwt`: what `aud` must be or contain. Without it, tokens with an `aud` are refused: \
             they are for another service.";
        leeway: Time(0, 5 * MINUTE) as Duration = "10s", Live for ["jwt", "compact"],
            "`jwt`, `compact`: how far clocks may differ when the gateway checks a token's times. \
             It does not lengthen a connection, which ends at `exp` plus `expiry_grace`; only a \
             connection accepted after `exp` ends with the leeway.";
        lifetime_max: Time(MINUTE, 87_600 * HOUR) as Duration = "87600h",
            Live for ["jwt", "compact"],
            "`jwt`, `compact`: how far ahead a token's expiry may be; tokens that expire later \
             are refused.";
        secret_key_base_file: TextOrList(SECRET_FILE) = NONE, Live for ["phoenix", "plug-session"],
            "`phoenix`, `plug-session`: Phoenix's `secret_key_base`. During a rotation list the \
             old one after the new one; at most 16. One newline at the end is removed.";
        secret_key_base: TextOrList("text") = NONE, Live for ["phoenix", "plug-session"],
            "The values themselves, instead of `secret_key_base_file`. For development only.";
        salt: Text("text") = NONE, Live required for ["phoenix"],
            "`phoenix`: the salt that tokens are signed with, as in `Phoenix.Token.sign(endpoint, \
             \"user auth\", id)`; required.";
        signing_salt: Text("text") = NONE, Live required for ["plug-session"],
            "`plug-session`: `signing_salt` of the endpoint's `@session_options`; required.";
        max_age: TimeOrOff(SECOND, 87_600 * HOUR) = NONE, Live for ["phoenix", "plug-session"],
            "`phoenix`: maximum age of a token, in place of its own; `\"off\"`: no limit; absent: \
             its own, usually a day. `plug-session`: how long a connection may live, since the \
             cookie carries no time; absent or `\"off\"`: no limit.";
        subject: Path("name") = NONE, Live for ["jwt", "phoenix"] required for ["plug-session"],
            "`jwt`: the claim that names the subject, `sub` if absent: one member's name (dots \
             belong to it), or a path, as in `[\"user\", \"id\"]`; a token without it is refused \
             as `token_forbidden`. `phoenix`: where the subject is in signed data that is not an integer or text: the \
             name of a member of a map or keyword list, or a path, as in `[\"user\", \"id\"]` or \
             `[1]`; numbers count the elements of tuples and lists from 0. `plug-session`: the \
             same in the session, required; a session without it falls through to the route's \
             next `[[auth]]`.";
        csrf: Flag() as bool = "true", Live for ["plug-session"],
            "`plug-session`: whether the query must carry the session's masked `_csrf_token`, as \
             LiveView's client sends it.";
        iterations: Count(1, 10_000_000) as u32 = "1000", Live for ["phoenix", "plug-session"],
            "`phoenix`, `plug-session`: `key_iterations` of the key's derivation (PBKDF2).";
        length: Count(32, 1024) as usize = "32", Live for ["phoenix", "plug-session"],
            "`phoenix`, `plug-session`: `key_length` of the derived key, in bytes.";
        digest: Word(&["sha256", "sha384", "sha512"]) as &str = "sha256",
            Live for ["phoenix", "plug-session"],
            "`phoenix`, `plug-session`: `key_digest` of the key's derivation.";
        endpoint: Text("`http://` or `https://` URL") = NONE, Live required for ["http"],
            "`kind = \"http\"`, and required there: the URL that the gateway requests by GET.";
        timeout: Time(10, MINUTE) as Duration = "2s", Live for ["backend", "http"],
            "`kind = \"backend\"` or `\"http\"`: how long an auth decision may take before the \
             client is refused as `backend_unavailable`. The client's own deadline, \
             `deadlines.authenticate`, applies as well.";
        in_flight_max: Count(1, 100_000) as u32 = "256", Live for ["http"],
            "`kind = \"http\"`: concurrent requests at the endpoint, of all workers together. The \
             gateway keeps as many idle connections.";
        queue_max: Count(0, 1_000_000) as u32 = "1024", Live for ["http"],
            "`kind = \"http\"`: requests that may wait for a place among those in flight; beyond \
             that clients are refused immediately.";
        response_max: Size(8 * KIB, MIB) as u32 = "16KiB", Live for ["http"],
            "`kind = \"http\"`: most bytes of a response's head, and of its body. A larger \
             response is a failure.";
        headers: List("header names") = NONE, Live for ["http"],
            "`kind = \"http\"`: further fields of the client's request that the endpoint gets.";
        identity: Table(RawIdentityHeaders) = NONE, Live for ["http"],
            "`kind = \"http\"`: response fields that say who the client is.";
        ca_file: Text(PATH) = NONE, Live for ["http"],
            "`kind = \"http\"`: PEM file with the root certificates for an `https://` endpoint; \
             absent: those of the system.";
        circuit_failures: Count(1, 1_000) as u32 = "5", Live for ["http"],
            "`kind = \"http\"`: failures in a row after which the gateway stops asking the \
             endpoint and refuses its clients immediately.";
        circuit_open_min: Time(100, 10 * MINUTE) as Duration = "1s", Live for ["http"],
            "`kind = \"http\"`: wait before one request tries the endpoint again. It doubles \
             while that fails; half of it is random.";
        circuit_open_max: Time(100, HOUR) as Duration = "30s", Live for ["http"],
            "`kind = \"http\"`: longest such wait.";
        accepted_by: Word(&["handshake", "message"]) as &str = "handshake", Live for ["upstream"],
            "`upstream`: what lets a client in. `\"handshake\"`: the application's 101. \
             `\"message\"`: a text message of the application, for those whose 101 accepts \
             every client.";
        preset: Word(Preset::NAMES) = NONE, Live for ["upstream"],
            "`accepted_by = \"message\"`: the protocol whose messages accept and refuse.";
        accepted_when: Tables(RawMessagePattern) = NONE, Live for ["upstream"],
            "`accepted_by = \"message\"`: the messages that accept, in place of a preset's; any of \
             them does.";
        refused_when: Tables(RawMessagePattern) = NONE, Live for ["upstream"],
            "`accepted_by = \"message\"`: the messages that refuse, beside a preset's.";
        accepted_topics: List("topics, as in `room:*`, or `*`") = NONE, Live for ["upstream"],
            "`preset = \"phoenix\"`, `\"actioncable\"`, `\"pusher\"`: the topics (channels) whose \
             join lets a client in, since a join of a public one proves nothing; required for the \
             first two.";
    }
    "auth.keys" RawKey {
        id: Text("text") = NONE, Live,
            "`jwt`: the `kid` in tokens that the key signed; a key without one verifies only \
             tokens without one. `compact`: the key's number in tokens, 0 to 255, required. \
             Unique.";
        algorithm: Word(&["HS256", "HS384", "HS512"]) as &str = "HS256", Live,
            "The only algorithm of this key, whatever the token says. `compact` has HS256 only.";
        secret_file: Text(SECRET_FILE) = NONE, Live,
            "The key: at least 32 bytes, read as `secret_encoding` says. One newline at the end is \
             removed.";
        secret: Text("text") = NONE, Live,
            "The key itself, instead of `secret_file`. For development only.";
        secret_encoding: Word(SecretEncoding::WORDS) as SecretEncoding = "utf-8", Live,
            "How the secret is written: `\"utf-8\"`, its bytes are the key; or as its issuer decodes \
             it, with or without padding and white space.";
    }
    "auth.identity" RawIdentityHeaders {
        subject: Text("header name") as &str = "X-Auth-Subject", Live,
            "The client's subject. A 2xx without it is no auth decision.";
        token_id: Text("header name") as &str = "X-Auth-Token-Id", Live,
            "The token's own id, for revocation.";
        expires: Text("header name") as &str = "X-Auth-Expires", Live,
            "When the connection must end, in seconds since 1970.";
        issued_at: Text("header name") as &str = "X-Auth-Issued-At", Live,
            "When the token was issued, in seconds since 1970.";
        claims: Text("header name") as &str = "X-Auth-Claims", Live,
            "Further claims: UTF-8, at most 8 KiB; the backend gets them unchanged.";
        reason: Text("header name") as &str = "X-Auth-Reason", Live,
            "With 401 and 403: the label of a cause, as in `token_expired`.";
    }
    "auth.accepted_when" RawMessagePattern {
        json: Text("member names and indexes with dots between them") = NONE, Live,
            "Where the value is in a message that is JSON, as in `4.status`.";
        equals: Text("text") = NONE, Live,
            "What the value there must be; numbers, `true`, `false` and `null` as they are written \
             in JSON. Absent: any value.";
        prefix: Text("text") = NONE, Live,
            "How the message begins, instead of `json`.";
    }
    "route" RawRoute {
        path: Text("path, or prefix ending in `/*`") = REQUIRED, Live,
            "Path of the request. The first route in the file that matches handles it.";
        name: Text("name") = NONE, Live,
            "Name for backends (OPEN), metrics and the log; unique. Absent: the `path` as written \
             here.";
        hosts: List("hosts, as in `app.example.com` or `*.example.com`") = "[]", Live,
            "Hosts of the request (`Host`, or `X-Forwarded-Host` of a trusted proxy), with any port; \
             `[]` is every host.";
        origins: ListOrWord("origins", "any") = REQUIRED, Live,
            "Pages that may connect: scheme, host and port exactly, as in \
             `https://app.example.com`, or `https://*.example.com` for all hosts below one. \
             `same-host` is the page's own host, and needs `hosts`; `null` and `file://` are sandboxed \
             pages, files and apps, and impossible with cookies. `[]` refuses every page.";
        origin_absent: Word(&["allow", "refuse"]) as &str = "refuse", Live,
            "What happens to requests without `Origin`. Browsers always send one.";
        auth: TextOrList("name of an `[[auth]]`, `\"none\"`") = REQUIRED, Live,
            "How clients authenticate. Several blocks are asked in this order: a block that finds \
             no token, or one that its keys did not sign, falls through to the next. `\"none\"` \
             must be written out, alone. `\"anonymous\"`, last, lets clients without a credential \
             in as [visitors](authentication.md#visitors).";
        backend: Text("name of a `[[backend]]`") = REQUIRED, Live,
            "Where the sessions go.";
        dialect: Word(DIALECTS) as &str = "auto",
            Live,
            "How the gateway refuses and closes (`closing.md`). `\"auto\"` detects the dialect by \
             the subprotocol and by the URLs of phoenix.js and pusher-js; `\"centrifuge\"` must \
             be written out.";
        closes: TablesByName(RawClose, "reasons of `closing.md`", Cause::LABELS) = NONE, Live,
            "Overrides the dialect's table: for each reason, what differs.";
        refuse: Word(Refuse::WORDS) as Refuse = "explain", Live,
            "Answer to a refused token: after 101 with an explanation and a close code, or with \
             401 or 403, or (`\"auto\"`) the first for browsers and the second for all other \
             clients.";
        subprotocols: List("subprotocol names") = "[]", Live,
            "Subprotocols that the gateway may select, the preferred first.";
        messages: Word(MessageTypes::WORDS) as MessageTypes = "any", Live,
            "Permitted messages; after any other the gateway closes with 1003.";
        forward_headers: List("header names") = "[]", Live,
            "Request headers that the backend gets. Headers that carry credentials are an error. A \
             backend of `kind = \"websocket\"` gets all headers without this.";
        strip_prefix: Text("path") = NONE, Live,
            "`kind = \"websocket\"`: what the application's paths do not have of the request's: \
             `\"/app\"` makes `/ws` of `/app/ws`.";
        cookies: Word(&["pass", "strip"]) as &str = "pass", Live,
            "`kind = \"websocket\"`: whether the application gets cookies. With them, `origins` \
             must be a closed list.";
        message_max: Size(125, 256 * MIB) = NONE, Live,
            "Largest message of a client; 1009 above it. Absent: `limits.message_max`, and `16MiB` \
             where the backend is of `kind = \"websocket\"`.";
        health: Flag() as bool = "false", Live,
            "Answer a GET or HEAD that asks for no WebSocket with 200, for load balancers, \
             instead of 426 or 405; HTTP/1.0 without `Host` too.";
        reauthenticate: Table(RawReauthenticate) = NONE, Live,
            "How an open connection presents a fresh token, see `authentication.md`; without this \
             key it cannot.";
    }
    "route.closes" RawClose {
        code: Count(1000, 4999) = NONE, Live,
            "The close code: 1000 to 1003, 1007 to 1014 or 3000 to 4999.";
        reason: Text("text of at most 123 bytes") = NONE, Live,
            "The reason.";
        reconnect: Flag() = NONE, Live,
            "Whether the client should reconnect. `true` if `retry_after` is given.";
        retry_after: Time(0, 3_600_000) = NONE, Live,
            "How long the client should wait.";
        pace: Time(0, 8_000) = NONE, Live,
            "Close delay: minimum wait between the message and the close frame, for clients that \
             would reconnect immediately; the gateway adds up to half of it at random. `\"0s\"` \
             is none.";
        message: Flag() = NONE, Live,
            "Whether the gateway sends the dialect's message before the close frame.";
    }
    "route.reauthenticate" RawReauthenticate {
        prefix: Text("1 to 64 bytes of text, from `{` on") = REQUIRED, Live,
            "The gateway takes every text message that begins exactly so, and the backend never \
             gets it. As in `'{\"type\":\"authenticate\",'`.";
        token: Text("member names with dots between them") = REQUIRED, Live,
            "Where the token is in that message, which must be a JSON object.";
    }
    "backend" RawBackend {
        name: Text("name") = REQUIRED,
            Live,
            "Name for routes to refer to; unique. A reload knows a backend by it.";
        kind: Word(&["link", "websocket"]) as &str = "link", Live,
            "Protocol of the backend: `link`, the framed link of `link-protocol.md`, or `websocket`, \
             ordinary WebSocket servers that know nothing of the gateway.";
        endpoints: List("`IP:PORT`, `NAME:PORT` or `unix:/PATH`; `websocket`: `ws://IP:PORT/PATH`, `ws://NAME:PORT/PATH`, `wss://…` or `unix:/PATH`")
            = REQUIRED, Live,
            "Its servers, which are interchangeable; every address of a name is one, see \
             `operating.md`. The path of their URLs, which goes in front of the request's, is the \
             same for all. `wss://` is TLS, and their certificates are always verified. A reload \
             that removes one closes its clients over `deadlines.drain`.";
        balance: WordOrNamed(
            &["least-sessions", "round-robin", "hash-subject", "hash-address"],
            &["hash-cookie", "hash-query"]
        ) as &str = "least-sessions", Live,
            "How the gateway chooses an endpoint for a new session. `websocket`: with `hash-…` all \
             clients with the same subject, address, cookie or query parameter get the same \
             endpoint while it is there; without that value the one with the fewest sessions.";
        revoke: Word(RevokeScope::WORDS) as RevokeScope = "none", Live for ["link"],
            "Where the backend may revoke tokens by REVOKE: nowhere, on the routes that go to it, \
             or on all. Needs `secret_file`: a link that proved no key revokes nothing.";
        secret_file: Text(SECRET_FILE) = NONE, Live for ["link"],
            "Key of the link's mutual authentication, at least 32 bytes. One newline at the end \
             is removed.";
        secret: Text("text") = NONE, Live for ["link"],
            "The key itself, instead of `secret_file`. For development only.";
        ca_file: Text(PATH) = NONE, Live for ["websocket"],
            "`wss://`: PEM file with the root certificates of the endpoints; absent: those of the \
             system.";
        server_name: Text("host name or IP address") = NONE, Live for ["websocket"],
            "`wss://`: the name that the endpoints' certificates must have, and SNI; absent: each \
             endpoint's name or address. With `preserve_host = false` it is the `Host`, too.";
        credentials: Word(&["pass", "strip"]) as &str = "pass", Live for ["websocket"],
            "Whether the application gets the credentials that the gateway's carriers took. \
             `\"pass\"` suits applications that verify again, as Phoenix does.";
        preserve_host: Flag() as bool = "true", Live for ["websocket"],
            "Whether the application gets the `Host` that the client sent; many compare it with \
             `Origin`. `false`: `server_name`, or the endpoint's name or \
             address.";
        identity_headers: WordOrTextByName(
            &["none", "forwarded", "remote"], "claim", "header names"
        ) = "none", Live for ["websocket"],
            "Request headers that say who the client is, as the gateway verified it: \
             `\"forwarded\"` sets `X-Forwarded-User`, `-Email`, `-Groups` and \
             `-Preferred-Username`, `\"remote\"` `Remote-User`, `-Groups`, `-Name` and `-Email`, and \
             a table names the header of each claim, as in `{ sub = \"X-User\" }`.";
        request_headers: TextByName("header name", "values") = NONE, Live for ["websocket"],
            "Request headers with a fixed value, in place of the client's.";
        request_header_files: TextByName("header name", "file names") = NONE,
            Live for ["websocket"],
            "The same, with values from files (or `env:NAME`), as an `Authorization` that the \
             application asks of its proxy. One newline at the end is removed.";
        handshakes_max: Count(1, 1_000_000) as u32 = "256", Live for ["websocket"],
            "Handshakes of one worker with one endpoint that may await its answer concurrently; \
             further clients are refused as `over_capacity`.";
        sessions_max: Count(1, 100_000_000) = NONE, Live for ["websocket"],
            "Connections of one worker to one endpoint; further clients are refused as \
             `over_capacity`. Absent: no bound of its own.";
        upstream_message_max: Size(125, GIB) = NONE, Live for ["websocket"],
            "Largest message of the application to a client; above it the gateway closes both \
             connections. Absent: no bound, since messages pass in pieces.";
        circuit_failures: Count(1, 1_000) as u32 = "3",
            Live for ["websocket"],
            "Failures of an endpoint in a row (no connection, no proper answer; an HTTP status is no \
             failure) after which it gets no clients for a while.";
        circuit_open_min: Time(100, 10 * MINUTE) as Duration = "1s",
            Live for ["websocket"],
            "Wait before one client tries the endpoint again. It doubles while that fails; half of \
             it is random.";
        circuit_open_max: Time(100, HOUR) as Duration = "30s",
            Live for ["websocket"],
            "Longest such wait.";
    }
}
