//! `docs/closing.md`: the words around the table, and the clients' code as the tests run it.

use super::*;

const HEAD: &str = "\
# Closing and reconnecting

<!-- Made from src/protocol/dialect/ and tests/clients/snippets/. After a change there:
     UPDATE_DOCS=1 cargo test --lib closing_page -->

A browser cannot see the HTTP status of a refused upgrade: it gets code 1006, and a client library
tries again for ever. So the gateway accepts the upgrade, says in a message why it will close, and
closes with a code that makes the client's library do the right thing.

No code does that for every library. So there is a *dialect* for each family of clients; a route's
`dialect` names it, or is `\"auto\"`:

| dialect | clients | with `\"auto\"` |
|---|---|---|
| `plain` | a raw WebSocket | whatever is none of the others |
| `phoenix` | phoenix.js, LiveView (serializer 2) | subprotocol `phoenix`; or a path that ends in `/websocket`, with `vsn=2.…` in the query |
| `graphql-transport-ws` | graphql-ws and others of that protocol | subprotocol `graphql-transport-ws` |
| `pusher` | pusher-js and others | `/app/` in the path, `protocol=` and `client=` in the query |
| `centrifuge` | centrifuge-js, JSON | never: it offers nothing to tell it by |

Machine clients may be better off with an HTTP status: `refuse = \"http\"`, or `\"auto\"` for
explanations to browsers (requests with `Origin`) and statuses to the rest.

## Every reason in every dialect

Code; then how long the client is asked to wait, or *stop*. **m**: a message goes before the close
frame. **p**: the close frame waits for the pace.

";

const SILENT: &str = "
A forbidden origin normally gets 403 before the 101: a hijacking page is owed no explanation.
When the backend or the client closes with a code of its own, that code is passed on; the table's
stands for none. After a broken frame the protocol's own code is used, whatever the library makes
of it. These end without a close frame, before the 101 or because the client is gone, and show up
in metrics and logs only: ";

const OVERRIDES: &str = r#"
## What a route says else

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

Every key is optional; what is left out stays as in the table, for whichever dialect the client
speaks. `retry_after` makes it a close to come back from, unless `reconnect = false` is written.
A reload changes what is said from then on, to clients that are there as well.

"#;

const PLAIN: &str = r#"
## A raw WebSocket

```json
{"type":"close","code":4401,"reason":"token_expired","reconnect":false}
{"type":"close","code":1012,"reason":"lifetime","reconnect":true,"retry_after_ms":1000}
```

`reconnect` says whether the same request may succeed later; `retry_after_ms` is the least time to
wait before it, to which the client should add some at random. The reason of the close frame is the
same `reason`. [front-end.md](front-end.md) explains the client, which is, in full:

"#;

const PHOENIX: &str = r#"
## phoenix.js

```json
[null,null,"phoenix","phx_error",{"reason":"token_expired","code":1000,"reconnect":false}]
[null,null,"phoenix","phx_error",{"reason":"over_capacity","code":1013,"reconnect":true,"retry_after_ms":5000}]
```

phoenix.js resets its back-off whenever a connection opens, and reconnects 10 ms after a close. To
accept, explain and close would make it spin. So the message comes at once and the close frame only
after the *pace*: 5 s, and up to half as much again at random. Nothing else happens in between: an
open session ends at once, and a client that closes first is not kept. Where the client is not
authenticated, the pace is cut so that nobody stays longer than all deadlines before that together.

Up to 1.8.15 phoenix.js does not come back after code 1000, which is why refusals use it. From
1.8.16 on it comes back after every close, at the gateway's pace, until the application stops it:

"#;

const PHOENIX_FOOT: &str = "
`onStop` may get a fresh token and open another socket. Heartbeats (topic `phoenix`, event
`heartbeat`) are messages like all others: the backend answers them.
";

const GRAPHQL: &str = r#"
## graphql-ws

```toml
[[auth]]
carriers = ["first-message:payload.token"]   # of connection_init
```

The gateway answers `connection_init` with `connection_ack` once the session with the backend is
open, so that the backend gets neither: its first message is a `subscribe`. Before that, what is no
message of the protocol is closed with 4400, any other type with 4401, and silence with 4408. Where
the token comes with the request, in a cookie for instance, the handshake is the backend's.

The protocol has no message for a close, so the reason of the close frame says it all. graphql-ws
takes most codes for final; after 4403, 4408 and 101x it tries again, waiting 1 s, 2 s, 4 s, … and
asking for `connectionParams` anew. So a token that expires is 4403:

"#;

const PUSHER: &str = r#"
## pusher-js

```json
{"event":"pusher:error","data":{"code":4009,"message":"token_expired"}}
```

Then the same code in the close frame. pusher-js stops at 4001 to 4099, comes back after a second
at 4100 to 4199, and at once at 4200 to 4299. The backend sends `pusher:connection_established` to
a session that was opened, answers `pusher:ping`, and does all that follows. pusher-js has no place
for a token of its own when it connects: use a cookie.

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

The gateway answers the `connect` command itself, once the session with the backend is open: with a
client id, a ping interval (`deadlines.ping_interval`, and it keeps it, by `{}`), and, where the
token expires, `ttl`, so that the client asks for another in good time. Other commands in the same
frame go to the backend, as do all that follow. JSON only: the protobuf variant cannot be read here.

A token that is over when it is shown gets the error 109, for which centrifuge-js fetches another;
every other refusal is a close code, final from 3500 to 3999. With `reauthenticate` the gateway
takes and answers `refresh` commands that come alone in their frame, as centrifuge-js sends them;
without it they go to the backend, and the connection is closed with 3005 when its token runs out.
Where the token comes with the request, `connect` is the backend's to answer.

"#;

/// The code that docs/front-end.md gives to authors.
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
        Some(Duration::ZERO) => "at once".to_owned(),
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

/// What is printed must be what is sent.
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
