//! What WebSocket servers behind the gateway answer to its handshake, and the messages by which their
//! applications let clients in.

use portcullis::connection::upstream::websocket::handshake::{AnswerReader, Answered, Expected};
use portcullis::protocol::acceptance::{Acceptance, Judgement, Preset, TopicPattern};
use portcullis::protocol::http_upgrade::accept_key;
use portcullis::protocol::websocket::DataKind;

use super::{pieces, with_cuts};

const KEY: &[u8; 24] = b"AAECAwQFBgcICQoLDA0ODw==";
const HEAD_MAX: usize = 2048;

/// The third byte chooses what stands before the rest. Pieces come to what the whole comes to, only
/// a 101 with the right key accepts, and what follows its head is left.
pub fn answer(data: &[u8]) {
    let (random, data) = with_cuts(data);
    let Some((choice, rest)) = data.split_first() else { return };
    let offered = ["a".to_owned(), "base64url.bearer.phx.dG9r".to_owned()];
    let accept = String::from_utf8(accept_key(KEY).to_vec()).expect("base64");
    let start = match choice % 4 {
        0 => String::new(),
        1 => "HTTP/1.1 ".to_owned(),
        2 => format!(
            "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \
             {accept}\r\n"
        ),
        _ => "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 ".to_owned(),
    };
    let bytes = [start.as_bytes(), rest].concat();
    let expected = Expected { key: KEY, offered: &offered, head_max: HEAD_MAX };
    let (used, whole) = AnswerReader::default().receive(&bytes, expected);
    let mut reader = AnswerReader::default();
    let (mut seen, mut answered) = (0, Answered::NeedMore);
    for piece in pieces(random, &bytes) {
        let (taken, came) = reader.receive(piece, expected);
        seen += taken;
        answered = came;
        if answered != Answered::NeedMore {
            break;
        }
        assert_eq!(taken, piece.len());
    }
    assert_eq!(answered, whole);
    match whole {
        Answered::Accepted(accepted) => {
            assert_eq!(seen, used);
            let head = &bytes[..used];
            assert!(used <= HEAD_MAX && head.ends_with(b"\r\n\r\n"));
            assert!(head.windows(accept.len()).any(|part| part == accept.as_bytes()));
            assert!([None, Some("a")].contains(&accepted.subprotocol()));
            for cookie in accepted.cookies() {
                assert!(!cookie.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
            }
        }
        Answered::Refused(refused) => {
            assert_eq!(seen, used);
            assert!(refused.status.is_some_and(|status| (200..600).contains(&status)));
        }
        Answered::NeedMore => assert!(bytes.len() <= HEAD_MAX),
        Answered::Broken(_) => {}
    }
}

/// Each preset judges the message. None lets a client in by a message without its own word for that,
/// and Phoenix's none of another topic than those listed.
pub fn acceptance(message: &[u8]) {
    const WORDS: [&str; 9] = [
        "phx_reply",
        "",
        "connection_ack",
        "connection_ack",
        "pusher",
        "40",
        "",
        "auth_ok",
        "CONNECTED",
    ];
    let contains = |part: &str| {
        part.is_empty() || message.windows(part.len()).any(|found| found == part.as_bytes())
    };
    // JSON may spell any letter as an escape.
    let is_plain = !message.contains(&b'\\');
    for (name, word) in Preset::NAMES.iter().zip(WORDS) {
        let preset = Preset::from_name(name).expect("a preset");
        let rules = Acceptance {
            preset: Some(preset),
            accepted: Vec::new(),
            refused: Vec::new(),
            topics: vec![TopicPattern::parse("room:*")],
        };
        let judged = rules.judge(message);
        assert_eq!(judged, rules.judge(message), "{name}");
        rules.permits(DataKind::Text, message);
        if judged == Judgement::Accepts && is_plain {
            assert!(contains(word), "{name}");
            assert!(preset != Preset::Phoenix || contains("\"room:"), "{name}");
        }
    }
}
