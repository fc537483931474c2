//! `docs/closing.md`: the text around the table, and the client code that the tests run.

use super::*;

const HEAD: &str = "\
# Closing and reconnecting

<!-- Generated from src/protocol/dialect/ and tests/clients/snippets/. After a change there:
     UPDATE_DOCS=1 cargo test --lib closing_page -->

A browser cannot see the HTTP status of a refused upgrade. It sees code 1006, and a client library
retries forever. So the gateway accepts the upgrade, sends a message that explains the close, and
closes with a code that makes the client's library do the right thing.

## Which dialect should a route use?

No single code works for every library. So there is a *dialect* for each family of clients. A route's
`dialect` names one, or is `\"auto\"`:

| dialect | clients | with `\"auto\"` |
|---|---|---|
| `plain` | a raw WebSocket | all requests that match no other row |
| `phoenix` | phoenix.js, LiveView (serializer 2) | subprotocol `phoenix`; or a path that ends in `/websocket`, with `vsn=2.…` in the query |
| `graphql-transport-ws` | graphql-ws and other clients of that protocol | subprotocol `graphql-transport-ws` |
| `pusher` | pusher-js and others | `/app/` in the path, `protocol=` and `client=` in the query |
| `centrifuge` | centrifuge-js, JSON | never: its requests have nothing to recognize them by |

For programs an HTTP status may be better: set `refuse = \"http\"`. With `refuse = \"auto\"` browsers
(requests with `Origin`) get explanations, and all other clients get statuses.

An answer over HTTP has `Retry-After` where a client should try again: what `closes` or the column `plain`
says of the reason, in whole seconds, rounded up. A 401 `token_not_yet_valid` names the time until the
token is valid, if that is a minute or less; without `Retry-After` the token is of no use.

## Every reason in every dialect

Each cell has the code, then how long the client should wait, or *stop*. **m**: the gateway sends a
message before the close frame. **p**: the gateway delays the close frame (the *close delay*; the
setting is `pace`).

";

const SILENT: &str = "
The gateway checks the `Origin` before it looks at any token or cookie, so a hijacking page that reads
`forbidden_origin` learns nothing but that its origin is not listed. Where a route does not explain
(`refuse`), the answer is 403.

`token_not_yet_valid` is for a token whose time begins within a minute: the client should come back then,
and `retry_after_ms` says when. One of later is closed like `token_bad_signature`, under its own reason.

When the backend or the client closes with a code of its own, the gateway passes that code on; the
table shows the code for a close without one. After a broken frame the gateway sends the code of the
WebSocket protocol in every dialect. The following causes end a connection without a close frame,
before the 101 or because the client is gone. They appear in metrics and logs only: ";

const OVERRIDES: &str = r#"
## Overriding closes for a route

```toml
[[route]]
path = "/ws"
# …
[route.closes]
token_expired = { code = 4001, reason = "sign in again" }
over_capacity = { retry_after = "30s" }
internal = { reconnect = false, message = false }
backend_unavailable = { pace = "3s" }
```

Every key is optional. Keys that you leave out keep the value of the client's dialect in the table.
`retry_after` implies `reconnect = true`, unless you write `reconnect = false`. After a reload the
new values apply to all connections, also to those that were open before.

"#;

const PLAIN: &str = r#"
## A raw WebSocket

```json
{"type":"close","code":4401,"reason":"token_expired","reconnect":false}
{"type":"close","code":1012,"reason":"lifetime","reconnect":true,"retry_after_ms":1000}
```

`reconnect` says whether the same request may succeed later. `retry_after_ms` is the minimum time to
wait; the client should add a random part. The close frame carries the same `reason`. This is a
complete client, which [front-end.md](front-end.md) explains:

"#;

const PHOENIX: &str = r#"
## phoenix.js

```json
[null,null,"phoenix","phx_error",{"reason":"token_expired","code":1000,"reconnect":false}]
[null,null,"phoenix","phx_error",{"reason":"over_capacity","code":1013,"reconnect":true,"retry_after_ms":5000}]
```

phoenix.js resets its back-off whenever a connection opens, and reconnects 10 ms after a close. If the
gateway accepted, explained and closed immediately, the client would spin. So the gateway sends the
message immediately and the close frame after the *close delay*: 5 s, plus up to half of that at
random. During the delay an open session has already ended, and the gateway does not hold a client
that closes first. An unauthenticated client must be gone within the sum of its stage deadlines, so
the gateway shortens the delay for it.

phoenix.js up to 1.8.15 does not reconnect after code 1000; refusals use that code for this reason.
Versions from 1.8.16 on reconnect after every close, once per close delay, until the application stops
them:

"#;

const PHOENIX_FOOT: &str = "
`onStop` may get a fresh token and open another socket. Heartbeats (topic `phoenix`, event
`heartbeat`) of an open client are ordinary messages: the backend answers them. While a close frame
waits, the gateway answers them, so that `longPollFallbackMs` does not send the client to long
polling. It also answers WebSocket pings then, and the pings of the other dialects' libraries: each
answer counts against `limits.controls_per_second`. All else is dropped, and the wait stays as long:
a client that sends more than its limits is not read until it is over.
";

const LIVE_VIEW: &str = r#"
### LiveView

```js
const liveSocket = new LiveSocket("/live", Socket, { params: { _csrf_token: csrfToken } });
stopOnRefusal(liveSocket, (reason) => location.assign("/log_in"));
liveSocket.connect();
```

LiveView's own client reloads the page every 10 to 15 s after a refusal. This function stops it:

"#;

const GRAPHQL: &str = r#"
## graphql-ws

```toml
[[auth]]
carriers = ["first-message:payload.token"]   # of connection_init
```

The gateway answers `connection_init` with `connection_ack` once the session with the backend is
open. The backend gets neither: its first message is a `subscribe`. Before that, the gateway closes
with 4400 after a message that is not of the protocol, with 4401 after a message of any other type,
and with 4408 after silence. If the token comes with the request (in a cookie, for instance), the
backend does the handshake itself.

The protocol has no message for a close, so the reason of the close frame is the whole explanation.
graphql-ws treats most codes as final. After 4403, 4408 and 101x it retries after 1 s, 2 s, 4 s, … and
calls `connectionParams` again. So the gateway closes with 4403 when a token expires:

"#;

const PUSHER: &str = r#"
## pusher-js

```json
{"event":"pusher:error","data":{"code":4009,"message":"token_expired"}}
```

The close frame has the same code. pusher-js stops after 4001 to 4099, reconnects after one second for
4100 to 4199, and immediately for 4200 to 4299. The backend sends `pusher:connection_established` to
a new session, answers `pusher:ping`, and handles everything that follows. pusher-js cannot send a
token when it connects: use a cookie.

"#;

const CENTRIFUGE: &str = r#"
## centrifuge-js

```toml
[[auth]]
carriers = ["first-message:connect.token"]

[[route]]
dialect = "centrifuge"
reauthenticate = { prefix = '{"refresh":', token = "refresh.token" }
```

The gateway answers the `connect` command itself, once the session with the backend is open. The
answer has a client id, a ping interval (`deadlines.ping_interval`; the gateway sends its pings as
`{}`), and, if the token expires, a `ttl`, so that the client fetches another token in time. Other
commands in the same frame go to the backend, as do all later ones. The gateway reads JSON only, not
the protobuf variant.

An expired token gets the error 109, after which centrifuge-js fetches another one. Every other
refusal is a close code; 3500 to 3999 are final. With `reauthenticate` the gateway takes and answers
`refresh` commands that come alone in their frame, as centrifuge-js sends them. Without it they go to
the backend, and the gateway closes the connection with 3005 when its token expires. If the token
comes with the request, the backend answers `connect`.

"#;

/// The client that docs/front-end.md shows.
fn plain_client() -> &'static str {
    let page = include_str!("../../../docs/front-end.md");
    let start = page.find("const RETRY").expect("the documented client");
    let code = &page[start..];
    &code[..code.find("```").expect("the end of the block")]
}

fn block(code: &str) -> String {
    format!("```js\n{}\n```\n", code.trim_end())
}

fn table() -> String {
    let columns = Dialect::ALL.iter().map(|dialect| format!("`{}`", dialect.name()));
    let columns: Vec<_> = columns.collect();
    let mut table = format!("| reason | {} |\n", columns.join(" | "));
    table += &format!("|---|{}\n", "---|".repeat(columns.len()));
    for &cause in Cause::ALL.iter().filter(|&&cause| !is_silent(cause)) {
        let cells: Vec<_> =
            Dialect::ALL.iter().map(|dialect| cell(dialect.answer(cause))).collect();
        table += &format!("| `{}` | {} |\n", cause.label(), cells.join(" | "));
    }
    table
}

fn cell(answer: Answer<'_>) -> String {
    let wait = match answer.retry_after {
        None => "stop".to_owned(),
        Some(Duration::ZERO) => "immediately".to_owned(),
        Some(wait) => format!("{wait:?}"),
    };
    let message = if answer.explain { " **m**" } else { "" };
    let pace = if answer.pace.is_zero() { "" } else { " **p**" };
    format!("{} {wait}{message}{pace}", answer.code)
}

fn page() -> String {
    let silent = Cause::ALL.iter().filter(|&&cause| is_silent(cause));
    let labels: Vec<_> = silent.map(|cause| format!("`{}`", cause.label())).collect();
    let snippet = |text: &str| block(text);
    [
        HEAD,
        &table(),
        SILENT,
        &labels.join(", "),
        ".\n",
        OVERRIDES.trim_end_matches('\n'),
        "\n",
        PLAIN,
        &block(plain_client()),
        PHOENIX,
        &snippet(include_str!("../../../tests/clients/snippets/phoenix.js")),
        PHOENIX_FOOT,
        LIVE_VIEW,
        &snippet(include_str!("../../../tests/clients/snippets/live_view.js")),
        GRAPHQL,
        &snippet(include_str!("../../../tests/clients/snippets/graphql-ws.js")),
        PUSHER,
        &snippet(include_str!("../../../tests/clients/snippets/pusher.js")),
        CENTRIFUGE,
        &snippet(include_str!("../../../tests/clients/snippets/centrifuge.js")),
    ]
    .concat()
}

#[test]
fn closing_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/closing.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let remedy = "run UPDATE_DOCS=1 cargo test --lib closing_page";
    assert!(std::fs::read_to_string(path).unwrap_or_default() == page(), "{remedy}");
}

/// The page must show the bytes that the gateway sends.
#[test]
fn closing_page_shows_real_messages() {
    let shown: Vec<&str> = [PLAIN, PHOENIX, PUSHER]
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.starts_with(r#"{""#) || line.starts_with("[null"))
        .collect();
    let sent = |dialect: Dialect, cause| {
        let mut out = Vec::new();
        dialect.write_explanation(&dialect.answer(cause), None, &mut out);
        String::from_utf8(out).unwrap()
    };
    let expected = [
        sent(Dialect::Plain, Cause::TokenExpired),
        sent(Dialect::Plain, Cause::Lifetime),
        sent(Dialect::Phoenix, Cause::TokenExpired),
        sent(Dialect::Phoenix, Cause::OverCapacity),
        sent(Dialect::Pusher, Cause::TokenExpired),
    ];
    assert_eq!(shown, expected);
}
