//! Fresh tokens on open connections, in any pieces; and when identities end.

use super::*;
use crate::protocol::link::Reauth;
use crate::protocol::revocation::{Revocation, Target};

const LIVE: &str = r#"
    [[route]]
    path = "/live"
    origins = ["https://app.example.com"]
    origin_absent = "allow"
    auth = ["app", "late"]
    backend = "main"
    reauthenticate = { prefix = '{"type":"authenticate",', token = "token" }
"#;

fn mint(secret: &str, claims: &str) -> String {
    let id = Some("k".into());
    let secret = Secret::new(secret.into());
    jwt::mint(&JwtKey { id, algorithm: Algorithm::HS256, secret }, claims.as_bytes())
}

fn message(token: &str) -> Vec<u8> {
    format!(r#"{{"type":"authenticate","token":"{token}"}}"#).into_bytes()
}

/// A client on `/live` whose token ends after a minute.
fn live() -> World {
    let mut world = World::with(settings(LIVE), false, 0);
    world.feed(&head("/live", &bearer(&token(APP, 60))));
    assert!(world.client.is_open());
    world.told.clear();
    world
}

fn revoke(world: &mut World, target: Target) {
    let revocation = Revocation { target, lapses: UnixTime::from_seconds(UNIX + 1000) };
    world.revocations.insert(revocation, 10, world.now.unix).unwrap();
    world.revoked = world.revocations.snapshot();
}

/// When the identity is over, from the start, in seconds.
fn end(world: &World) -> u64 {
    let Phase::Open(open) = &world.client.phase else { panic!("closed") };
    open.expires.instant().since(START).as_secs()
}

#[test]
fn a_fresh_token_is_judged_like_any_other() {
    let ann = |left: i64| token(APP, left);
    let bob = mint(APP, &format!(r#"{{"sub":"bob","exp":{}}}"#, UNIX + 900));
    let nobody = mint(APP, &format!(r#"{{"exp":{}}}"#, UNIX + 900));
    // The message -> what the gateway answers, and when the identity is over then.
    let table: Vec<(Vec<u8>, &[&str], u64)> = vec![
        (message(&ann(900)), &["text authenticated"], 900),
        // Of the route's second block, which signs with another key; and an earlier end.
        (message(&token(LATE, 30)), &["text authenticated"], 30),
        (message(&ann(-11)), &["text token_expired", "close 4401 token_expired"], 60),
        (message(&bob), &["text token_forbidden", "close 4403 token_forbidden"], 60),
        (message(&nobody), &["text token_forbidden", "close 4403 token_forbidden"], 60),
        (
            message(&token("a key that is not one of theirs.", 900)),
            &["text token_bad_signature", "close 4401 token_bad_signature"],
            60,
        ),
        (message("x"), &["text token_malformed", "close 4401 token_malformed"], 60),
        (message(""), &["text token_missing", "close 4401 token_missing"], 60),
        (
            br#"{"type":"authenticate","t":1}"#.to_vec(),
            &["text token_missing", "close 4401 token_missing"],
            60,
        ),
        (
            br#"{"type":"authenticate",nonsense"#.to_vec(),
            &["text token_malformed", "close 4401 token_malformed"],
            60,
        ),
    ];
    for (message, told, expected) in table {
        let mut world = live();
        world.feed(&frame(TEXT, &message));
        let text = message.escape_ascii();
        assert_eq!(world.told, told, "{text}");
        let accepted = told.len() == 1;
        // A client that was closed has no identity any more.
        assert_eq!(world.client.is_open(), accepted, "{text}");
        if accepted {
            assert_eq!(end(&world), expected, "{text}");
        }
        assert!(world.data.is_empty(), "the backend saw {text}");
        assert_eq!(world.renewed.len(), usize::from(accepted));
        assert_eq!(world.counters.value(Metric::ReauthAccepted), u64::from(accepted));
        assert_eq!(world.counters.value(Metric::ReauthRefused), u64::from(!accepted));
    }
}

#[test]
fn the_backend_is_told_whom_it_serves_now() {
    let mut world = live();
    let claims = format!(r#"{{"sub":"ann","jti":"t2","role":"x","exp":{}}}"#, UNIX + 900);
    world.feed(&frame(TEXT, &message(&mint(APP, &claims))));
    let reauth = Reauth::decode(&world.renewed[0][link::HEADER_BYTES..]).unwrap();
    assert_eq!((reauth.subject, reauth.token_id), (Some("ann"), Some("t2")));
    assert_eq!(reauth.expires, Some(UnixTime::from_seconds(UNIX + 900)));
    assert_eq!(reauth.claims, claims.as_bytes());
    // From now on it is this token that can be revoked.
    revoke(&mut world, Target::TokenId("t2".into()));
    assert!(world.revoked.holds(world.client.mark(), "main", world.now.unix));
}

#[test]
fn the_revoked_cannot_renew_and_not_come_in() {
    let mut world = live();
    revoke(&mut world, Target::Subject { subject: "ann".into(), issued_before: None });
    world.feed(&frame(TEXT, &message(&token(APP, 900))));
    assert_eq!(world.told, ["text token_revoked", "close 4401 token_revoked"]);
    for (path, extra) in [("/ws", bearer(&token(APP, 900))), ("/first", String::new())] {
        let mut world = World::new(false);
        revoke(&mut world, Target::Subject { subject: "ann".into(), issued_before: None });
        world.feed(&head(path, &extra));
        if path == "/first" {
            world.feed(&frame(TEXT, token(LATE, 900).as_bytes()));
        }
        assert_eq!(world.told[1..], ["text token_revoked", "close 4401 token_revoked"], "{path}");
        assert_eq!(world.counters.value(Metric::RevokedRefused), 1);
        assert!(world.opened.is_empty());
    }
    // An anonymous client has no token that could be revoked.
    let mut world = World::new(false);
    revoke(&mut world, Target::IssuedBefore(UnixTime::from_seconds(UNIX + 1)));
    world.feed(&head("/binary", ""));
    assert!(world.client.is_open());
    assert!(!world.revoked.holds(world.client.mark(), "main", world.now.unix));
}

#[test]
fn messages_of_the_backend_pass_as_they_are_in_any_pieces() {
    let ours = message(&token(APP, 900));
    for (text, for_backend) in [
        (&ours[..], false),
        (br#"{"type":"authenticatf","token":"x"}"#, true),
        (br#"{"type":"authenticate""#, true),
        (br#"{"type":"#, true),
        (b"{", true),
        (b"", true),
        (br#" {"type":"authenticate","token":"x"}"#, true),
        (b"hello", true),
    ] {
        for cut in 0..=text.len() {
            // One frame whose bytes come in two parts; and two frames, a ping between them.
            let whole = frame(TEXT, text);
            let header = whole.len() - text.len();
            let (first, rest) = whole.split_at(header + cut);
            let fragments =
                [frame(0x01, &text[..cut]), frame(PING, b"p"), frame(0x80, &text[cut..])];
            for parts in [vec![first.to_vec(), rest.to_vec()], fragments.to_vec()] {
                let mut world = live();
                for part in parts {
                    world.feed(&part);
                }
                let context = format!("{} cut at {cut}", text.escape_ascii());
                let relayed: Vec<u8> =
                    world.data.iter().flat_map(|(_, _, _, bytes)| bytes.clone()).collect();
                assert_eq!(relayed, if for_backend { text } else { b"" }, "{context}");
                assert_eq!(world.renewed.len(), usize::from(!for_backend), "{context}");
                if for_backend {
                    assert!(world.data[0].1 && world.data.last().unwrap().2, "{context}");
                    let firsts = world.data.iter().filter(|(_, first, ..)| *first).count();
                    assert_eq!(firsts, 1, "{context}");
                }
            }
        }
    }
}

#[test]
fn what_was_held_needs_credit_when_it_goes_on() {
    let mut world = live();
    let whole = frame(TEXT, br#"{"type":"other"}"#);
    world.feed(&whole[..8]);
    let Phase::Open(open) = &world.client.phase else { panic!("closed") };
    let deadline = open.renewal.as_ref().unwrap().deadline(&world.settings.deadlines);
    assert!(world.data.is_empty() && deadline < Instant::NEVER);
    // Two bytes are held: an allowance of two leaves none for what follows.
    assert_eq!(world.feed_with(&whole[8..], 2), whole.len() - 8);
    assert_eq!(world.feed_with(&whole[8..], 18), 0);
    let relayed: Vec<u8> = world.data.iter().flat_map(|(_, _, _, b)| b.clone()).collect();
    assert_eq!(relayed, br#"{"type":"other"}"#);
}

#[test]
fn a_message_that_is_not_finished_or_too_long_ends_the_connection() {
    let mut world = live();
    let whole = frame(TEXT, &message(&token(APP, 900)));
    world.feed(&whole[..60]);
    let begun = world.now.instant.since(START);
    assert_eq!(world.next(), Some(begun + world.settings.deadlines.authenticate));
    world.pass(world.settings.deadlines.authenticate);
    world.handle_deadline();
    assert_eq!(
        world.told,
        ["text authentication_timed_out", "close 4408 authentication_timed_out"]
    );
    let mut world = live();
    world.feed(&frame(0x01, &message(&"x".repeat(9000))));
    world.feed(&frame(0x80, &[b'x'; 9000]));
    assert_eq!(world.told, ["text token_malformed", "close 4401 token_malformed"]);
}

#[test]
fn fresh_tokens_come_out_of_the_budget_of_control_frames() {
    let mut world = live();
    let burst = world.settings.limits.controls_burst;
    let fresh = frame(TEXT, &message(&token(APP, 900)));
    for _ in 0..burst / 10 {
        world.feed(&fresh);
    }
    assert_eq!(world.renewed.len() as u32, burst / 10);
    world.told.clear();
    world.feed(&fresh);
    assert_eq!(world.told, ["text rate_limited", "close 4429 rate_limited"]);
    // A budget below the price of one allows one in a while all the same.
    let mut world = live();
    world.settings.limits.controls_burst = 1;
    world.feed(&fresh);
    assert_eq!(world.told, ["text authenticated"]);
}

#[test]
fn the_answer_waits_for_the_end_of_a_message() {
    let mut world = live();
    let piece = |world: &mut World, first, last| {
        world.call(|client, _, _| {
            assert!(client.data_header(DataKind::Text, first, last, 3).is_some());
        });
    };
    piece(&mut world, true, false);
    world.feed(&frame(TEXT, &message(&token(APP, 900))));
    assert_eq!((world.told.len(), world.renewed.len()), (0, 1));
    piece(&mut world, false, true);
    world.call(|client, ctx, output| client.output_sent(true, ctx, output));
    assert_eq!(world.told, ["text authenticated"]);
}

#[test]
fn blocks_that_a_reload_took_away_judge_nothing() {
    let mut world = live();
    world.settings.auths.retain(|auth| auth.name == "other");
    world.feed(&frame(TEXT, &message(&token(APP, 900))));
    assert_eq!(world.told, ["text going_away", "close 1001 going_away"]);
}

#[test]
fn an_identity_ends_by_the_monotonic_clock() {
    for jump in [-86_400_000i64, -1000, 1000, 86_400_000] {
        let mut world = live();
        let unix = world.now.unix.as_millis() as i64 + jump;
        world.now.unix = UnixTime::from_millis(unix as u64);
        assert_eq!(end(&world), 60, "a step of {jump} ms");
    }
}

#[test]
fn leeway_lets_in_and_keeps_for_as_long() {
    // Seconds that the token had left when it came -> when the connection ends.
    for (left, grace, expected) in [(1, 0, 1), (0, 0, 10), (-4, 0, 6), (-4, 5, 11), (1, 5, 6)] {
        let mut world = World::new(false);
        world.settings.deadlines.expiry_grace = Duration::from_secs(grace);
        world.feed(&head("/ws", &bearer(&token(APP, left))));
        assert!(world.client.is_open(), "{left}");
        assert_eq!(end(&world), expected, "{left} {grace}");
    }
}

#[test]
fn a_backend_sets_the_end() {
    let mut world = live();
    for (at, expected) in [(900, 900), (5, 5), (-5, 0)] {
        let expires = UnixTime::from_seconds((UNIX as i64 + at) as u64);
        world.call(|client, ctx, _| client.set_expiry(expires, ctx));
        assert_eq!(end(&world), expected);
    }
    world.handle_deadline();
    assert_eq!(world.told, ["text token_expired", "close 4401 token_expired"]);
}
