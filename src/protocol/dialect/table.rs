//! The table itself. What each client does with a code, from its source (versions in
//! `tests/clients/package.json`):
//!
//! - `plain`: nothing. 4401, 4403, 4408 and 4429 are the HTTP statuses that browsers cannot see;
//!   1012 and 1013 (IANA's registry) say "restarts" and "try again later".
//! - `phoenix`: until 1.8.15 any code but 1000 brings it back, from 1.8.16 on every code does;
//!   its wait starts at 10 ms again after each open. So a refusal is 1000, a client that would
//!   come straight back waits for the close frame, and the application has to read the message.
//! - `graphql-transport-ws`: 4004, 4005, 4400, 4401, 4406, 4409, 4429, 4500 and 1xxx are fatal,
//!   but for 1000 (back immediately while operations run), 1001, 1005, 1006, 1012, 1013 and 1014.
//!   All else it tries again after 1 s, 2 s, 4 s …, asking for its parameters again.
//! - `pusher`: 4000 TLS only, up to 4099 never again, up to 4199 after 1 s, up to 4299
//!   immediately, from 4300 never; below 4000 after 1 s. The message counts as the code does,
//!   when it arrives.
//! - `centrifuge`: 3500 to 3999, 4500 to 4999 and 1009 are terminal; after all else it tries
//!   again, backing off from 0.5 s to 20 s until a connect command succeeds.

use std::time::Duration;

use super::{Answer, Dialect};
use crate::protocol::cause::Cause;

/// The wait where a route says "reconnect" without a time.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long phoenix.js waits for its close frame where it would come straight back.
const PACE_MS: u32 = 5_000;

/// How long centrifuge-js has to act on an error reply, before the close could overtake it.
const REPLY_PACE_MS: u32 = 1_000;

/// One cause in one dialect.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    code: u16,
    retry_after_ms: Option<u32>,
    explain: bool,
    pace_ms: u32,
}

/// A terminal close, explained.
const fn no(code: u16) -> Cell {
    Cell { code, retry_after_ms: None, explain: true, pace_ms: 0 }
}

/// A close after which the client should come back, explained.
const fn again(code: u16, retry_after_ms: u32) -> Cell {
    Cell { code, retry_after_ms: Some(retry_after_ms), explain: true, pace_ms: 0 }
}

impl Cell {
    /// Without a message.
    const fn mute(self) -> Cell {
        Cell { explain: false, ..self }
    }

    const fn paced(self, pace_ms: u32) -> Cell {
        Cell { pace_ms, ..self }
    }

    pub(super) const fn answer(self, cause: Cause) -> Answer<'static> {
        let retry_after = match self.retry_after_ms {
            Some(millis) => Some(Duration::from_millis(millis as u64)),
            None => None,
        };
        Answer {
            cause,
            code: self.code,
            reason: cause.label(),
            reconnect: retry_after.is_some(),
            retry_after,
            explain: self.explain,
            pace: Duration::from_millis(self.pace_ms as u64),
        }
    }
}

/// A refusal of phoenix.js, and a close that it would answer by coming straight back.
const PHX_NO: Cell = no(1000).paced(PACE_MS);
const fn phx_again(code: u16) -> Cell {
    again(code, PACE_MS).paced(PACE_MS)
}
/// A broken frame: nothing may follow but the close, and phoenix.js would come straight back.
const fn phx_broken(code: u16) -> Cell {
    no(code).mute().paced(PACE_MS)
}

type Row = (Cause, [Cell; Dialect::ALL.len()]);

/// Columns as in [`Dialect::ALL`], rows as in [`Cause::ALL`].
#[rustfmt::skip]
const TABLE: [Row; Cause::ALL.len()] = {
    use Cause::*;
    // Never on the wire; see `is_silent`.
    let unsent = [no(1000).mute(); Dialect::ALL.len()];
    [
    //                 plain                    phoenix          graphql                  pusher                   centrifuge
    (TokenMissing,     [no(4401),               PHX_NO,          no(4401).mute(),         no(4009),                no(3500).mute()]),
    (TokenMalformed,   [no(4401),               PHX_NO,          no(4400).mute(),         no(4009),                no(3500).mute()]),
    // Not 4401, at which pages log their user out: the next log-in sends both cookies again.
    (TokenRepeated,    [no(4400),               PHX_NO,          no(4400).mute(),         no(4009),                no(3501).mute()]),
    (BadSignature,     [no(4401),               PHX_NO,          no(4401).mute(),         no(4009),                no(3500).mute()]),
    // graphql-ws and centrifuge-js fetch a fresh token before they come back.
    (TokenExpired,     [no(4401),               PHX_NO,          again(4403, 1000).mute(), no(4009),               again(3005, 500).paced(REPLY_PACE_MS)]),
    (TokenRevoked,     [no(4401),               PHX_NO,          no(4401).mute(),         no(4009),                no(3500).mute()]),
    // Its time begins soon: one that is far off is closed as with `BadSignature`.
    (TokenNotYetValid, [again(4401, 1000),      phx_again(4401), again(4403, 1000).mute(), again(4100, 1000),      again(3013, 500).mute()]),
    (TokenForbidden,   [no(4403),               PHX_NO,          no(4401).mute(),         no(4009),                no(3507).mute()]),
    (CsrfMismatch,     [no(4403),               PHX_NO,          no(4401).mute(),         no(4009),                no(3507).mute()]),
    (ForbiddenOrigin,  [no(4403),               PHX_NO,          no(4401).mute(),         no(4009),                no(3507).mute()]),
    (ForbiddenRoute,   [no(4403),               PHX_NO,          no(4401).mute(),         no(4009),                no(3507).mute()]),
    (AuthenticationTimedOut,
                       [again(4408, 1000),      phx_again(4408), again(4408, 1000).mute(), again(4100, 1000),      no(3502).mute()]),
    (OverCapacity,     [again(1013, 5000),      phx_again(1013), again(1013, 1000).mute(), again(4100, 1000),      again(3013, 500).mute()]),
    // The protocols' own answers, where the handshake is the gateway's.
    (HandshakeRepeated, [no(4429),              PHX_NO,          no(4429).mute(),         no(4009),                no(3501).mute()]),
    (RateLimited,      [again(4429, 5000),      phx_again(4429), again(1013, 1000).mute(), again(4100, 1000),      again(3013, 500).mute()]),
    // It does not read: a message more would only wait with the others.
    (SlowConsumer,     [again(4429, 5000).mute(), again(4429, 5000).mute(), again(1013, 1000).mute(), again(4100, 1000).mute(), again(3008, 500).mute()]),
    // The client answers no pings: the close frame is a courtesy.
    (Idle,             [again(4408, 1000).mute(), again(4408, 1000).mute(), again(1001, 1000).mute(), again(4201, 0).mute(), again(3012, 500).mute()]),
    // Each connection is closed once for these two, spread over time already, and is welcome
    // immediately: a pace would only be time without service.
    (Lifetime,         [again(1012, 1000),      again(1012, 1000), again(1012, 1000).mute(), again(4200, 0),       again(3011, 500).mute()]),
    (GoingAway,        [again(1001, 1000),      again(1001, 1000), again(1001, 1000).mute(), again(4200, 0),       again(3001, 500).mute()]),
    (BackendUnavailable,
                       [again(1012, 2000),      phx_again(1012), again(1012, 1000).mute(), again(4100, 1000),      again(3004, 500).mute()]),
    // 1000 would bring graphql-ws back without any wait.
    (BackendClosed,    [no(1000).mute(),        no(1000).mute(), again(1001, 1000).mute(), no(1000).mute(),        no(1000).mute()]),
    (ProtocolError,    [no(1002).mute(),        phx_broken(1002), no(1002).mute(),        no(1002).mute(),         no(1002).mute()]),
    (InvalidUtf8,      [no(1007).mute(),        phx_broken(1007), no(1007).mute(),        no(1007).mute(),         no(1007).mute()]),
    (UnsupportedType,  [no(1003).mute(),        phx_broken(1003), no(1003).mute(),        no(1003).mute(),         no(1003).mute()]),
    (TooLarge,         [no(1009).mute(),        phx_broken(1009), no(1009).mute(),        no(1009).mute(),         no(1009).mute()]),
    (HealthCheck,      unsent),
    (Redirected,       unsent),
    (BadRequest,       unsent),
    (TlsFailed,        unsent),
    (HandshakeTimedOut, unsent),
    (ClientClosed,     [no(1000).mute(); Dialect::ALL.len()]),
    (ClientGone,       unsent),
    (Internal,         [again(1011, 5000),      phx_again(1011), again(1013, 1000).mute(), again(4100, 1000),      again(3004, 500).mute()]),
    ]
};

// A cell is found by position.
const _: () = {
    let mut index = 0;
    while index < TABLE.len() {
        assert!(TABLE[index].0 as usize == index, "rows follow the order of Cause");
        index += 1;
    }
};

pub(super) const fn cell(dialect: Dialect, cause: Cause) -> Cell {
    TABLE[cause as usize].1[dialect as usize]
}
