//! The gateway's end of a link against a backend played by hand.

use std::time::Duration;

use super::*;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::counters::{Counters, Metric};
use crate::protocol::link::{
    Accept, Challenge, Closer, Expire, FrameHeader, HEADER_BYTES, Kind, Limits as LinkLimits,
    LinkError, LinkReader, Ping, Pong, Proof, Ready, RefusalCode, Refused, Reject,
    UNKNOWN_SESSION_FRAMES_MAX,
};
use crate::protocol::revocation::Revocation;
use crate::settings::load::test_settings;

const CLIENT: Key = Key { slot: 4, generation: 2 };

struct Pair {
    link: Link,
    reader: LinkReader,
    now: Instant,
    deadlines: Deadlines,
    counters: Counters,
    secret: Option<Secret>,
}

impl Pair {
    /// A link whose HELLO is sent.
    fn connecting(secret: Option<&str>) -> Pair {
        let settings = test_settings();
        let now = Instant::from_nanos(1_000_000_000);
        let identity = Identity { instance: [1; 16], epoch: 5, worker: 0, link: 0 };
        let mut link = Link::new(identity, 24, &settings.limits, now);
        assert_eq!(link.handle_deadline(now, &settings.deadlines), Due::Connect);
        link.connected([7; 32], secret.is_some(), &settings.limits);
        Pair {
            link,
            reader: LinkReader::new(link::HANDSHAKE_FRAME_MAX),
            now,
            deadlines: settings.deadlines,
            counters: Counters::default(),
            secret: secret.map(|secret| Secret::new(secret.into())),
        }
    }

    /// A link over which sessions flow; the backend grants the given windows.
    fn ready(session_window: u32, link_window: u32) -> Pair {
        let mut pair = Pair::connecting(None);
        pair.take_output();
        let limits = LinkLimits { session_window, link_window, ..LinkLimits::default() };
        assert_eq!(pair.say(|out| challenge(Proof::Absent, limits).encode(out)), ["Routine"]);
        assert_eq!(pair.say(|out| Ready.encode(out)), ["Ready"]);
        pair.take_output();
        pair
    }

    /// Feeds what `write` writes, as one stream, and names the events.
    fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Vec<String> {
        self.try_say(write).unwrap()
    }

    fn try_say(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<String>, Failure> {
        let mut bytes = Vec::new();
        write(&mut bytes);
        let mut input = bytes.as_slice();
        let mut events = Vec::new();
        let Pair { link, reader, now, counters, secret, .. } = self;
        loop {
            match link.receive(reader, &mut input, *now, secret.as_ref(), counters)? {
                None => return Ok(events),
                Some(Event::Ready) => {
                    events.push("Ready".into());
                    reader.set_frame_max(link.frame_max());
                }
                Some(event) => events.push(format!("{event:?}")),
            }
        }
    }

    fn take_output(&mut self) -> Vec<(Kind, SessionId, Vec<u8>)> {
        let mut bytes = vec![0; self.link.unsent()];
        assert_eq!(self.link.copy_output(&mut bytes), bytes.len());
        let mut input = bytes.as_slice();
        let mut reader = LinkReader::new(1 << 20);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next(&mut input).unwrap() {
            frames.push((frame.header.kind, frame.header.session, frame.payload.to_vec()));
        }
        frames
    }

    fn open(&mut self) -> SessionId {
        let id = self.link.open(CLIENT, &request("/ws", b"{}")).unwrap();
        let frames = self.take_output();
        assert_eq!((frames[0].0, frames[0].1), (Kind::Open, id));
        id
    }
}

/// What a client wants whose identity has these claims.
fn request(path: &str, claims: &[u8]) -> SessionRequest {
    let mut frame = Vec::new();
    let accept = Accept { subject: "ann", token_id: None, issued_at: None, expires: None, claims };
    assert!(accept.encode(SessionId::new(0, 0), &mut frame));
    let mut request = asked_for(path);
    request.set_identity(&Accept::decode(&frame[HEADER_BYTES..]).expect("a good ACCEPT"));
    request
}

fn asked_for(path: &str) -> SessionRequest {
    let mut request = SessionRequest::default();
    request.begin(0, None, |bytes| bytes.extend_from_slice(path.as_bytes()));
    request
}

fn challenge(proof: Proof, limits: LinkLimits) -> Challenge {
    Challenge { version: 1, features: 0, instance: [2; 16], nonce: [3; 32], limits, proof }
}

fn close(by: Closer, code: u16, reason: &'static str) -> Close<'static> {
    Close { by, label: "", code, reason }
}

#[test]
fn mutual_authentication() {
    let key = "a link secret that is long enough";
    let mut pair = Pair::connecting(Some(key));
    let hello = pair.take_output();
    let secret = Secret::new(key.into());
    let mut bare = challenge(Proof::Hmac([0; 32]), LinkLimits::default());
    let mut payload = Vec::new();
    bare.encode_payload(&mut payload);
    bare.proof = Proof::of_backend(&secret, &hello[0].2, &payload);
    payload.clear();
    bare.encode_payload(&mut payload);
    assert_eq!(pair.say(|out| bare.encode(out)), ["Routine"]);
    let proof = pair.take_output();
    assert_eq!(proof[0].0, Kind::Proof);
    let proof = Proof::decode(&proof[0].2).unwrap();
    assert!(proof.verify_gateway(Some(&secret), &hello[0].2, &payload));
    assert!(!pair.link.takes_sessions(), "not before READY");
    pair.say(|out| Ready.encode(out));
    assert!(pair.link.takes_sessions());
}

#[test]
fn a_handshake_that_cannot_succeed_is_refused_with_the_reason() {
    let key = Some("a link secret that is long enough");
    let wrong = challenge(Proof::Hmac([9; 32]), LinkLimits::default());
    let none = challenge(Proof::Absent, LinkLimits::default());
    let later = Challenge { version: 2, ..none.clone() };
    let unknown = Challenge { features: 1 << 63, ..none.clone() };
    for (secret, answer, code) in [
        (key, &wrong, RefusalCode::WrongKey),
        (key, &none, RefusalCode::AuthenticationRequired),
        (None, &wrong, RefusalCode::AuthenticationNotConfigured),
        (None, &later, RefusalCode::Version),
        (None, &unknown, RefusalCode::Malformed),
    ] {
        let mut pair = Pair::connecting(secret);
        pair.take_output();
        assert_eq!(pair.say(|out| answer.encode(out)), ["Routine"], "{code:?}");
        let said = pair.take_output();
        assert_eq!((said.len(), said[0].0), (1, Kind::Refused), "no proof of ours: {code:?}");
        assert_eq!(Refused::decode(&said[0].2), Ok(Refused::new(code)));
        // Whatever comes now is not looked at, and the end of the connection is not the reason.
        assert_eq!(pair.say(|out| Ready.encode(out)), [""; 0]);
        assert!(!pair.link.takes_sessions() && !pair.link.proved_key());
        let cause = pair.link.cause_of(&Failure::Disconnected);
        assert!(matches!(cause, Failure::WrongProof(_) | Failure::Protocol(_)), "{cause}");
        // A backend that does not close is left soon.
        let deadlines = test_settings().deadlines;
        assert_eq!(pair.link.next_deadline(&deadlines), pair.now + REFUSAL_LINGER);
        let due = pair.link.handle_deadline(pair.now + REFUSAL_LINGER, &deadlines);
        assert!(matches!(due, Due::Fail(_)), "{due:?}");
        pair.link.lost(pair.now, &deadlines, 0);
        assert_eq!(pair.link.cause_of(&Failure::Disconnected), Failure::Disconnected);
    }
}

#[test]
fn bytes_that_are_no_handshake_are_refused() {
    let mut pair = Pair::connecting(None);
    pair.take_output();
    assert_eq!(pair.say(|out| out.extend_from_slice(b"HTTP/1.1 400 Bad Request\r\n")), ["Routine"]);
    let said = pair.take_output();
    assert_eq!(Refused::decode(&said[0].2), Ok(Refused::new(RefusalCode::Malformed)));
}

#[test]
fn a_refusal_is_told_apart() {
    let mut pair = Pair::connecting(None);
    let refused = Refused::new(link::RefusalCode::TooManyLinks);
    let failure = pair.try_say(|out| refused.encode(out)).unwrap_err();
    assert!(matches!(failure, Failure::Refused { code: 5, .. }), "{failure}");
}

#[test]
fn data_spends_both_credits_and_waits_for_either() {
    let mut pair = Pair::ready(4096, 65536);
    let id = pair.open();
    let most = 4096 - HEADER_BYTES;
    assert_eq!(pair.link.allowance(id, pair.now), Some(most));
    let text = vec![b'x'; most];
    let fragment = Fragment { kind: DataKind::Text, first: true, last: true, bytes: &text };
    pair.link.data(id, &fragment);
    assert_eq!(pair.link.allowance(id, pair.now), None);
    assert_eq!(
        pair.say(|out| Credit { bytes: 100 }.encode(id, out)),
        [format!("SessionCredit {{ client: {CLIENT:?} }}")]
    );
    assert_eq!(pair.link.allowance(id, pair.now), Some(88));
}

#[test]
fn a_session_that_waits_for_the_link_is_woken_once() {
    let mut pair = Pair::ready(1 << 20, 65536);
    let id = pair.open();
    let bytes = &vec![0; 65536 - 2 * HEADER_BYTES];
    pair.link.data(id, &Fragment { kind: DataKind::Binary, first: true, last: false, bytes });
    for _ in 0..3 {
        assert_eq!(pair.link.allowance(id, pair.now), None);
    }
    assert_eq!(pair.say(|out| Credit { bytes: 500 }.encode(SessionId::LINK, out)), ["LinkCredit"]);
    let mut woken = Vec::new();
    pair.link.take_waiting(&mut woken);
    assert_eq!(woken, [CLIENT]);
    assert_eq!(pair.link.allowance(id, pair.now), Some(500));
}

#[test]
fn credit_goes_back_as_the_client_takes_its_bytes() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let id = pair.open();
    let half = test_settings().limits.session_window as usize / 2;
    let piece = vec![0; half / 4];
    for _ in 0..4 {
        let events = pair.say(|out| encode_data(id, data_flags::WHOLE, &piece, out));
        assert!(events[0].starts_with("Data"), "{events:?}");
    }
    let of_session = |frames: &[(Kind, SessionId, Vec<u8>)]| {
        frames.iter().any(|frame| frame.0 == Kind::Credit && frame.1 == id)
    };
    assert!(!of_session(&pair.take_output()), "the client has nothing yet");
    pair.link.delivered(id, 4 * data_cost(piece.len()));
    assert!(of_session(&pair.take_output()));
}

#[test]
fn more_data_than_credit_ends_the_link() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let id = pair.open();
    let window = test_settings().limits.session_window as usize;
    let piece = vec![0; 60_000];
    let failure = pair.try_say(|out| {
        for _ in 0..=window / piece.len() {
            encode_data(id, data_flags::WHOLE, &piece, out);
        }
    });
    assert_eq!(failure, Err(LinkError::CreditExceeded.into()));
}

#[test]
fn a_session_is_over_when_both_have_closed() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let id = pair.open();
    pair.link.close(id, &close(Closer::Client, 1000, "done"));
    assert_eq!(pair.link.open_sessions(), 0);
    pair.take_output();
    let events = pair.say(|out| encode_data(id, data_flags::WHOLE, b"late", out));
    assert_eq!(events, ["Routine"], "what was under way is dropped, and is no violation");
    let other = pair.open();
    assert_ne!(other.slot, id.slot, "the slot is not free yet");
    assert_eq!(pair.say(|out| close(Closer::Backend, 0, "").encode(id, out)), ["Routine"]);
    let events = pair.say(|out| encode_data(id, data_flags::WHOLE, b"later", out));
    assert_eq!(events, ["Routine"]);
    assert_eq!(pair.counters.value(Metric::LinkStaleFrames), 1);
    pair.take_output();
    let reused = pair.open();
    assert_eq!(reused.slot, id.slot);
    assert_ne!(reused.generation, id.generation);
}

#[test]
fn a_backends_close_is_answered() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let id = pair.open();
    let events = pair.say(|out| close(Closer::Backend, 4001, "bye").encode(id, out));
    assert_eq!(events, [format!("Closed {{ client: {CLIENT:?}, code: 4001, reason: \"bye\" }}")]);
    let frames = pair.take_output();
    assert_eq!((frames[0].0, frames[0].1), (Kind::Close, id));
    assert_eq!(pair.link.open_sessions(), 0);
}

#[test]
fn strays_are_forgiven_a_few_times() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let nobody = SessionId::new(99, 0);
    for _ in 0..UNKNOWN_SESSION_FRAMES_MAX {
        pair.say(|out| encode_data(nobody, data_flags::WHOLE, b"", out));
    }
    let last = pair.try_say(|out| encode_data(nobody, data_flags::WHOLE, b"", out));
    assert_eq!(last, Err(LinkError::TooManyStrays.into()));
}

#[test]
fn pieces_out_of_order_and_kinds_not_agreed_on_end_the_link() {
    for (flags, error) in [
        (data_flags::FIN, LinkError::PieceOutOfOrder),
        (data_flags::TEXT, LinkError::PieceOutOfOrder),
    ] {
        let mut pair = Pair::ready(1 << 20, 1 << 20);
        let id = pair.open();
        assert_eq!(pair.try_say(|out| encode_data(id, flags, b"x", out)), Err(error.into()));
    }
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let header =
        FrameHeader { length: 0, kind: Kind::Multicast, flags: 0, session: SessionId::LINK };
    let failure = pair.try_say(|out| out.extend_from_slice(&header.format()));
    assert_eq!(failure, Err(LinkError::Unexpected { kind: Kind::Multicast }.into()));
}

#[test]
fn a_silent_backend_is_pinged_and_then_given_up() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let ping_at = pair.link.next_deadline(&pair.deadlines);
    assert_eq!(pair.link.handle_deadline(ping_at, &pair.deadlines), Due::Nothing);
    let frames = pair.take_output();
    assert_eq!(frames[0].0, Kind::Ping);
    let warned_at = pair.link.next_deadline(&pair.deadlines);
    assert_eq!(warned_at, pair.now + pair.deadlines.link_ping * 2);
    let warned = pair.link.handle_deadline(warned_at, &pair.deadlines);
    assert_eq!(warned, Due::Warn(Warning::PingUnanswered));
    assert_eq!(pair.link.handle_deadline(warned_at, &pair.deadlines), Due::Nothing, "once");
    let dead_at = pair.link.next_deadline(&pair.deadlines);
    assert_eq!(dead_at, pair.now + pair.deadlines.link_ping * 3);
    assert_eq!(pair.link.handle_deadline(dead_at, &pair.deadlines), Due::Fail(Failure::Silent));
}

/// Each PING that goes unanswered for an interval is warned of, also after one that was answered.
#[test]
fn a_backend_that_answers_too_late_is_warned_of_each_time() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    for _ in 0..2 {
        let begun = pair.now;
        let mut warnings = 0;
        for _ in 0..2 {
            pair.now = pair.link.next_deadline(&pair.deadlines);
            let due = pair.link.handle_deadline(pair.now, &pair.deadlines);
            warnings += u32::from(due == Due::Warn(Warning::PingUnanswered));
        }
        assert_eq!((pair.now.since(begun), warnings), (pair.deadlines.link_ping * 2, 1));
        pair.say(|out| Pong { opaque: 1 }.encode(out));
        let again = pair.link.next_deadline(&pair.deadlines);
        assert_eq!(again, pair.now + pair.deadlines.link_ping, "the next PING");
    }
}

/// No standstill: a client with nothing to send, one that waits too short a time, credit for another
/// session, a client that leaves.
#[test]
fn a_backend_that_gives_no_credit_is_warned_of_once_per_standstill() {
    let mut pair = Pair::ready(4096, 1 << 20);
    // No PING comes between.
    pair.deadlines.link_ping = Duration::from_secs(600);
    let stall = pair.deadlines.link_stall;
    let (id, other) = (pair.open(), pair.open());
    let bytes = &vec![0; 4096 - HEADER_BYTES];
    pair.link.data(id, &Fragment { kind: DataKind::Binary, first: true, last: false, bytes });
    let due = |pair: &mut Pair, after: Duration| {
        pair.now = pair.now + after;
        pair.link.handle_deadline(pair.now, &pair.deadlines)
    };
    let warning = |sessions| Due::Warn(Warning::NoCredit { sessions });
    assert_eq!(due(&mut pair, stall * 2), Due::Nothing, "its client has nothing to send");
    assert_eq!(pair.link.allowance(id, pair.now), None);
    assert_eq!(pair.link.next_deadline(&pair.deadlines), pair.now + stall);
    assert_eq!(due(&mut pair, stall / 2), Due::Nothing);
    assert_eq!(pair.link.allowance(id, pair.now), None, "it waits since then all the same");
    pair.say(|out| Credit { bytes: 100 }.encode(other, out));
    assert_eq!(due(&mut pair, stall * 3 / 4), Due::Nothing, "another session goes on");
    assert_eq!(due(&mut pair, stall / 4), warning(1));
    assert_eq!(due(&mut pair, stall * 5), Due::Nothing, "said once");
    assert!(pair.link.next_deadline(&pair.deadlines) > pair.now + stall);
    pair.say(|out| Credit { bytes: HEADER_BYTES as u32 }.encode(id, out));
    assert_eq!(pair.link.allowance(id, pair.now), None, "not enough for a byte");
    assert_eq!(due(&mut pair, stall), warning(1), "another standstill");
    pair.link.close(id, &close(Closer::Client, 1000, ""));
    assert_eq!(due(&mut pair, stall * 2), Due::Nothing, "it has left");
    pair.link.wait(other, pair.now);
    pair.say(|out| close(Closer::Backend, 1000, "").encode(other, out));
    assert_eq!(due(&mut pair, stall * 2), Due::Nothing, "the backend has closed it");
}

/// What a backend sends proves nothing: it may never read. What it reads does, and a PONG.
#[test]
fn a_link_lives_by_what_the_backend_reads() {
    let ping = Duration::from_secs(5);
    for (reads, floods) in [(false, false), (false, true), (true, false)] {
        let mut pair = Pair::ready(1 << 20, 1 << 20);
        pair.deadlines.link_ping = ping;
        pair.link.output.frames().resize(1 << 20, 0);
        let mut failed = None;
        let begun = pair.now;
        for _ in 0..40 {
            pair.now = pair.now + Duration::from_secs(1);
            if floods {
                pair.say(|out| Ping { opaque: 1 }.encode(out));
            }
            if reads {
                pair.link.copy_output(&mut [0; 4096]);
                pair.link.send_progressed(pair.now);
            }
            if let Due::Fail(failure) = pair.link.handle_deadline(pair.now, &pair.deadlines) {
                failed = Some((failure, pair.now.since(begun)));
                break;
            }
        }
        let expected = (!reads).then_some((Failure::Silent, ping * 3));
        assert_eq!(failed, expected, "reads {reads}, floods {floods}");
    }
}

/// Attack: a backend stands still while clients come and go. All that waits for it is bounded,
/// what belongs to those that left takes no memory, and there is room again for others.
#[test]
fn a_backend_that_stands_still_costs_bounded_memory() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let request = request("/ws", &[b'x'; 7000]);
    let bound = test_settings().limits.link_output_max as usize;
    for _ in 0..100_000 {
        let id = pair.link.open(CLIENT, &request).expect("all before have left");
        pair.link.close(id, &close(Closer::Client, 1000, ""));
    }
    assert_eq!((pair.link.unsent(), pair.link.sessions.len()), (0, 0));
    assert!(pair.link.output_memory() <= 2 << 20, "{}", pair.link.output_memory());
    let mut open = Vec::new();
    let refused = loop {
        match pair.link.open(CLIENT, &request) {
            Ok(id) => open.push(id),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, OpenError::NotReading);
    assert!(pair.link.unsent() < bound + 8000 && open.len() > 100);
    for id in open {
        pair.link.close(id, &close(Closer::Client, 1000, ""));
    }
    assert!(pair.link.open(CLIENT, &request).is_ok());
    for opaque in 0..1_000_000 {
        pair.say(|out| Ping { opaque }.encode(out));
    }
    assert!(pair.link.unsent() < 16_000 && pair.link.output_memory() <= 4 << 20);
}

/// A client that left is taken back only if its OPEN is all that was written for it.
#[test]
fn what_follows_an_open_is_never_left_without_it() {
    let request = request("/ws", b"{}");
    for (reauth, data) in [(false, true), (true, false), (false, false)] {
        let mut pair = with_features(features::REAUTHENTICATION);
        let id = pair.link.open(CLIENT, &request).expect("there is room");
        if data {
            let bytes = b"x";
            let fragment = Fragment { kind: DataKind::Binary, first: true, last: true, bytes };
            pair.link.data(id, &fragment);
        }
        if reauth {
            assert!(pair.link.reauthenticated(id, &request));
        }
        pair.link.close(id, &close(Closer::Client, 1000, ""));
        let kinds: Vec<Kind> = pair.take_output().into_iter().map(|frame| frame.0).collect();
        let expected: &[Kind] = match (reauth, data) {
            (false, true) => &[Kind::Open, Kind::Data, Kind::Close],
            (true, false) => &[Kind::Open, Kind::Reauth, Kind::Close],
            _ => &[],
        };
        assert_eq!(kinds, expected);
    }
}

#[test]
fn credit_beyond_measure_does_not_fill_memory() {
    let mut pair = Pair::ready(0x7fff_ffff, 0x7fff_ffff);
    let id = pair.open();
    let bound = test_settings().limits.link_output_max as usize;
    let bytes = &[0; 4096];
    let mut first = true;
    while pair.link.allowance(id, pair.now).is_some_and(|allowance| allowance >= bytes.len()) {
        pair.link.data(id, &Fragment { kind: DataKind::Binary, first, last: false, bytes });
        first = false;
    }
    assert!(pair.link.unsent() <= bound, "{}", pair.link.unsent());
    assert!(pair.link.allowance(id, pair.now).is_none_or(|allowance| allowance < bytes.len()));
    assert!(!pair.link.may_wake());
    pair.link.wait(id, pair.now);
    pair.take_output();
    assert!(pair.link.may_wake(), "it goes on once the backend reads");
}

#[test]
fn an_open_over_the_backends_frame_max_is_refused_for_good() {
    let mut pair = Pair::connecting(None);
    pair.take_output();
    let limits = LinkLimits { frame_max: 16 * 1024, ..LinkLimits::default() };
    pair.say(|out| challenge(Proof::Absent, limits).encode(out));
    pair.say(|out| Ready.encode(out));
    pair.take_output();
    let path = format!("/{}", "x".repeat(17 * 1024));
    assert_eq!(pair.link.open(CLIENT, &request(&path, b"")), Err(OpenError::TooLarge));
    assert_eq!((pair.link.unsent(), pair.link.open_sessions()), (0, 0));
    assert!(pair.link.open(CLIENT, &request("/", b"")).is_ok());
}

#[test]
fn sessions_whose_close_is_not_answered_count_and_end_with_the_link() {
    let mut pair = Pair::connecting(None);
    pair.take_output();
    let limits = LinkLimits { sessions_max: 3, ..LinkLimits::default() };
    pair.say(|out| challenge(Proof::Absent, limits).encode(out));
    pair.say(|out| Ready.encode(out));
    pair.take_output();
    for _ in 0..3 {
        assert!(pair.link.takes_sessions());
        let id = pair.open();
        pair.link.close(id, &close(Closer::Client, 1000, ""));
        pair.take_output();
    }
    assert!(!pair.link.takes_sessions() && pair.link.open_sessions() == 0);
    let end = pair.now + pair.deadlines.link_ping * CLOSE_ANSWER_PINGS;
    while pair.now < end {
        pair.now = pair.link.next_deadline(&pair.deadlines);
        match pair.link.handle_deadline(pair.now, &pair.deadlines) {
            Due::Nothing => {}
            due => {
                assert_eq!(due, Due::Fail(Failure::CloseUnanswered));
                assert!(pair.now >= end);
                return;
            }
        }
        let now = pair.now.as_nanos();
        pair.say(|out| Pong { opaque: now }.encode(out));
    }
    panic!("it goes on forever");
}

#[test]
fn back_off_doubles_to_its_limit_and_begins_again_after_success() {
    let mut pair = Pair::connecting(None);
    let mut waits = Vec::new();
    for _ in 0..12 {
        pair.link.lost(pair.now, &pair.deadlines, u32::MAX);
        let at = pair.link.next_deadline(&pair.deadlines);
        waits.push(at.since(pair.now));
        assert_eq!(pair.link.handle_deadline(at, &pair.deadlines), Due::Connect);
    }
    assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]), "{waits:?}");
    assert!(*waits.last().unwrap() <= pair.deadlines.link_retry_max);
    assert!(waits[0] <= pair.deadlines.link_retry_min * 2);
    pair.link.lost(pair.now, &pair.deadlines, 0);
    let half = pair.link.next_deadline(&pair.deadlines).since(pair.now);
    assert_eq!(half, pair.deadlines.link_retry_max / 2, "jitter takes at most half");
}

#[test]
fn a_backend_that_goes_away_gets_no_new_sessions_and_keeps_the_old() {
    let mut pair = Pair::ready(1 << 20, 1 << 20);
    let id = pair.open();
    pair.say(|out| GoAway { reason: "deploy" }.encode(out));
    assert!(!pair.link.takes_sessions());
    assert!(!pair.link.has_gone_away());
    assert!(pair.say(|out| encode_data(id, data_flags::WHOLE, b"x", out))[0].starts_with("Data"));
    pair.say(|out| close(Closer::Backend, 1001, "").encode(id, out));
    assert!(pair.link.has_gone_away());
}

/// A link whose backend speaks of the life of identities, or does not.
fn with_features(features: u64) -> Pair {
    let mut pair = Pair::connecting(None);
    pair.take_output();
    let challenge = Challenge { features, ..challenge(Proof::Absent, LinkLimits::default()) };
    assert_eq!(pair.say(|out| challenge.encode(out)), ["Routine"]);
    assert_eq!(pair.say(|out| Ready.encode(out)), ["Ready"]);
    pair.take_output();
    pair
}

fn reauth(claims: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let reauth = link::Reauth { subject: Some("ann"), token_id: None, expires: None, claims };
    assert!(reauth.encode(SessionId::new(0, 0), 1 << 20, &mut out));
    out
}

#[test]
fn expiries_and_revocations_come_in() {
    let mut pair = with_features(features::REAUTHENTICATION);
    let id = pair.open();
    let expires = UnixTime::from_seconds(9);
    let told = pair.say(|out| Expire { expires }.encode(id, out));
    assert_eq!(told, [format!("{:?}", Event::Expire { client: CLIENT, expires })]);
    let target = crate::protocol::revocation::Target::TokenId("t".into());
    let revocation = Revocation { target, lapses: expires };
    let told = pair.say(|out| revocation.encode(out));
    assert_eq!(told, [format!("{:?}", Event::Revoke(revocation.clone()))]);
    // For a session that we closed already it comes too late; for one that never was it is
    // counted, and ends the link when repeated.
    pair.link.close(id, &close(Closer::Gateway, 1000, ""));
    assert_eq!(pair.say(|out| Expire { expires }.encode(id, out)), ["Routine"]);
    let stray = SessionId::new(99, 1);
    for _ in 0..UNKNOWN_SESSION_FRAMES_MAX {
        assert_eq!(pair.say(|out| Expire { expires }.encode(stray, out)), ["Routine"]);
    }
    let last = pair.try_say(|out| Expire { expires }.encode(stray, out));
    assert_eq!(last, Err(Failure::Protocol(LinkError::TooManyStrays)));
    // Without the feature both are errors.
    let mut pair = with_features(0);
    let id = pair.open();
    let told = pair.try_say(|out| Expire { expires }.encode(id, out));
    assert_eq!(told, Err(LinkError::Unexpected { kind: Kind::Expire }.into()));
    let told = with_features(0).try_say(|out| revocation.encode(out));
    assert_eq!(told, Err(LinkError::Unexpected { kind: Kind::Revoke }.into()));
    // REAUTH is ours to send, never theirs.
    let mut pair = with_features(features::REAUTHENTICATION);
    let told = pair.try_say(|out| out.extend_from_slice(&reauth(b"{}")));
    assert_eq!(told, Err(LinkError::Unexpected { kind: Kind::Reauth }.into()));
}

#[test]
fn a_backend_is_told_of_fresh_tokens_within_bounds() {
    let mut pair = with_features(features::REAUTHENTICATION);
    let id = pair.open();
    assert!(pair.link.reauthenticated(id, &request("", b"{}")));
    let frames = pair.take_output();
    assert_eq!((frames[0].0, frames[0].1), (Kind::Reauth, id));
    // It does not read: nothing piles up forever.
    let fresh = request("", &[b'x'; 4000]);
    let told = (0..10_000).filter(|_| pair.link.reauthenticated(id, &fresh)).count();
    let bound = test_settings().limits.link_output_max as usize + 5000;
    assert!(told > 100 && pair.link.unsent() <= bound, "{told}");
    assert!(!pair.link.reauthenticated(id, &fresh));
    // One that does not know of such things is not told, and that is no failure.
    let mut pair = with_features(0);
    let id = pair.open();
    assert!(pair.link.reauthenticated(id, &request("", b"{}")));
    assert_eq!(pair.link.unsent(), 0);
}

/// A link over which questions may be asked.
fn asking_pair() -> Pair {
    with_features(features::VERDICTS)
}

impl Pair {
    fn ask(&mut self) -> SessionId {
        let mut request = asked_for("/ws");
        let carrier = link::CredentialCarrier::Authorization;
        assert!(request.push_credential(&link::Credential { carrier, name: "", token: b"t" }));
        let id = self.link.ask(CLIENT, &request).unwrap();
        assert_eq!(self.take_output().pop().map(|frame| frame.0), Some(Kind::Auth));
        id
    }
}

fn accept(id: SessionId, out: &mut Vec<u8>) {
    let accept =
        Accept { subject: "ada", token_id: None, issued_at: None, expires: None, claims: &[] };
    assert!(accept.encode(id, out));
}

fn reject(id: SessionId, out: &mut Vec<u8>) {
    assert!(Reject::new(crate::protocol::cause::Cause::TokenExpired).encode(id, out));
}

#[test]
fn verdicts_open_or_end_what_was_asked() {
    let mut pair = asking_pair();
    assert!(pair.link.takes_questions());
    let id = pair.ask();
    assert_eq!(pair.link.open_sessions(), 1, "a question counts as a session");
    let events = pair.say(|out| {
        accept(id, out);
        encode_data(id, data_flags::WHOLE | data_flags::TEXT, b"hi", out);
    });
    assert!(events[0].starts_with("Accepted") && events[1].starts_with("Data"), "{events:?}");
    let id = pair.ask();
    let events = pair.say(|out| reject(id, out));
    assert!(events[0].starts_with("Rejected"), "{events:?}");
    assert_eq!(pair.take_output()[0].0, Kind::Close, "both have closed");
    let id = pair.ask();
    let events = pair.say(|out| close(Closer::Backend, 0, "").encode(id, out));
    assert!(events[0].starts_with("Declined"), "{events:?}");
    assert_eq!(pair.link.open_sessions(), 1);
}

#[test]
fn a_backend_that_did_not_offer_verdicts_is_not_asked() {
    let mut pair = Pair::ready(4096, 65_536);
    assert!(pair.link.takes_sessions() && !pair.link.takes_questions());
    let id = pair.open();
    let error = pair.try_say(|out| accept(id, out)).unwrap_err();
    assert_eq!(error, Failure::Protocol(LinkError::Unexpected { kind: Kind::Accept }));
}

#[test]
fn verdicts_for_nobody_or_twice_open_nothing() {
    type Say = fn(SessionId, &mut Vec<u8>);
    let broken = |kind| Err(Failure::Protocol(LinkError::WrongState { kind }));
    let table: [(&str, Say, Result<&str, Failure>); 7] = [
        ("another slot", |id, out| accept(SessionId::new(id.slot + 1, 0), out), Ok("Routine")),
        (
            "another generation",
            |id, out| {
                reject(SessionId::new(id.slot, id.generation + 1), out);
            },
            Ok("Routine"),
        ),
        (
            "twice",
            |id, out| {
                accept(id, out);
                accept(id, out);
            },
            broken(Kind::Accept),
        ),
        (
            "yes, no",
            |id, out| {
                accept(id, out);
                reject(id, out);
            },
            broken(Kind::Reject),
        ),
        (
            "no, yes",
            |id, out| {
                reject(id, out);
                accept(id, out);
            },
            Ok("Rejected, Routine"),
        ),
        ("data first", |id, out| encode_data(id, data_flags::WHOLE, b"x", out), broken(Kind::Data)),
        ("credit first", |id, out| Credit { bytes: 1 }.encode(id, out), broken(Kind::Credit)),
    ];
    for (name, say, expected) in table {
        let mut pair = asking_pair();
        let id = pair.ask();
        let found = pair.try_say(|out| say(id, out)).map(|events| {
            let first = |event: &String| event.split([' ', '{']).next().unwrap_or("").to_owned();
            events.iter().map(first).collect::<Vec<_>>().join(", ")
        });
        assert_eq!(found, expected.map(str::to_owned), "{name}");
    }
}

#[test]
fn a_verdict_that_crosses_our_close_changes_nothing() {
    let mut pair = asking_pair();
    let id = pair.ask();
    pair.link.close(id, &close(Closer::Gateway, 0, ""));
    assert_eq!(pair.say(|out| accept(id, out)), ["Routine"]);
    assert_eq!(pair.say(|out| close(Closer::Backend, 0, "").encode(id, out)), ["Routine"]);
    assert_eq!(pair.counters.value(Metric::LinkStaleFrames), 0);
    let id = pair.ask();
    pair.link.close(id, &close(Closer::Gateway, 0, ""));
    assert_eq!(pair.say(|out| reject(id, out)), ["Routine"], "REJECT is the backend's CLOSE");
    let error = {
        let id = pair.ask();
        pair.link.close(id, &close(Closer::Gateway, 0, ""));
        pair.try_say(|out| {
            accept(id, out);
            accept(id, out);
        })
        .unwrap_err()
    };
    assert_eq!(error, Failure::Protocol(LinkError::WrongState { kind: Kind::Accept }));
}

/// Between the loss of a connection and the moment when its clients know, they may go on: nothing
/// of that is kept for the next connection, whose sessions have the same names.
#[test]
fn the_sessions_of_a_lost_connection_take_nothing() {
    let mut pair = asking_pair();
    let (left, stays) = (pair.open(), pair.open());
    assert!(pair.link.allowance(stays, pair.now).is_some());
    pair.link.lost(pair.now, &pair.deadlines, 0);
    assert_eq!(pair.link.allowance(stays, pair.now), None);
    pair.link.wait(stays, pair.now);
    pair.link.delivered(stays, u32::MAX);
    assert!(!pair.link.reauthenticated(stays, &SessionRequest::default()));
    pair.link.close(left, &close(Closer::Client, 0, ""));
    assert_eq!(pair.link.open_sessions(), 1);
    assert_eq!(pair.link.unsent(), 0);
    pair.link.forget_sessions();
    assert_eq!(pair.link.open_sessions(), 0);
    let mut waiting = Vec::new();
    pair.link.take_waiting(&mut waiting);
    assert_eq!(waiting, []);
}
