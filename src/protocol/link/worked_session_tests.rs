//! One whole session in bytes, as docs/link-protocol.md shows it.

use std::fmt::Write as _;

use super::*;
use crate::base::secret::Secret;

const KEY: &str = "00112233445566778899aabbccddeeff";

/// Writes one frame under its heading: the header on a line of its own, then the payload.
fn show(text: &mut String, heading: &str, frame: &[u8]) {
    writeln!(text, "{heading}").unwrap();
    let (header, payload) = frame.split_at(HEADER_BYTES);
    for line in std::iter::once(header).chain(payload.chunks(16)) {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "    {}", hex.join(" ")).unwrap();
    }
}

fn frame(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

fn handshake(text: &mut String) {
    let key = Secret::new(KEY.as_bytes().to_vec());
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        instance: [0x11; 16],
        epoch: 1,
        worker: 0,
        link: 0,
        authenticated: true,
        nonce: [0x22; 32],
        limits: Limits::default(),
    };
    let (mut hello_bytes, mut challenge_bytes) = (Vec::new(), Vec::new());
    hello.encode_payload(&mut hello_bytes);
    let mut challenge = Challenge {
        version: VERSION,
        features: 0,
        instance: [0x33; 16],
        nonce: [0x44; 32],
        limits: Limits::default(),
        proof: Proof::Hmac([0; 32]),
    };
    challenge.encode_payload(&mut challenge_bytes);
    challenge.proof = Proof::of_backend(&key, &hello_bytes, &challenge_bytes);
    challenge_bytes.clear();
    challenge.encode_payload(&mut challenge_bytes);
    let proof = Proof::of_gateway(&key, &hello_bytes, &challenge_bytes);
    assert!(challenge.proof.verify_backend(Some(&key), &hello_bytes, &challenge_bytes));
    assert!(proof.verify_gateway(Some(&key), &hello_bytes, &challenge_bytes));
    show(text, "gateway: HELLO, version 1, with a key", &frame(|out| hello.encode(out)));
    show(text, "backend: CHALLENGE and the backend's proof", &frame(|out| challenge.encode(out)));
    show(text, "gateway: PROOF", &frame(|out| proof.encode(out)));
    show(text, "backend: READY", &frame(|out| Ready.encode(out)));
}

fn session(text: &mut String) {
    let id = SessionId::new(7, 1);
    let open = Open {
        subject: Some("ada"),
        route_name: "chat",
        connection: Some(0x0123_4567_89ab_cdef),
        remote: Some("192.0.2.1:50000".parse().unwrap()),
        ..Open::new("/chat")
    };
    let data = |flags, payload: &[u8]| frame(|out| encode_data(id, flags, payload, out));
    let text_flag = data_flags::TEXT;
    let close =
        |by, label, code, reason| frame(|out| Close { by, label, code, reason }.encode(id, out));
    let opened = frame(|out| assert!(open.encode(id, 1 << 16, out)));
    show(
        text,
        "gateway: OPEN of session 7/1: subject ada, path /chat, route 0 \"chat\", 192.0.2.1:50000, connection",
        &opened,
    );
    show(
        text,
        "gateway: DATA, text \"hello\" in one frame; costs 17 bytes of credit",
        &data(data_flags::WHOLE | text_flag, b"hello"),
    );
    show(
        text,
        "backend: DATA, text \"hi\", first piece",
        &data(data_flags::FIRST | text_flag, b"hi"),
    );
    show(
        text,
        "backend: DATA, text \" ada\", last piece",
        &data(data_flags::FIN | text_flag, b" ada"),
    );
    show(
        text,
        "backend: CREDIT of 17 bytes for the session; allowed before half the window is owed",
        &frame(|out| Credit { bytes: 17 }.encode(id, out)),
    );
    show(
        text,
        "backend: CREDIT of 17 bytes for the link",
        &frame(|out| Credit { bytes: 17 }.encode(SessionId::LINK, out)),
    );
    show(text, "gateway: PING", &frame(|out| Ping { opaque: 5 }.encode(out)));
    show(text, "backend: PONG with the same bytes", &frame(|out| Pong { opaque: 5 }.encode(out)));
    show(
        text,
        "gateway: CLOSE, the client closed with 1000",
        &close(Closer::Client, "client_closed", 1000, "bye"),
    );
    show(
        text,
        "backend: CLOSE in answer; the session has ended",
        &close(Closer::Backend, "", 1000, ""),
    );
}

#[test]
fn the_documented_session_is_what_the_codec_writes() {
    let mut text = String::new();
    handshake(&mut text);
    session(&mut text);
    let section = format!("```text\n{text}```\n");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/link-protocol.md");
    let page = std::fs::read_to_string(page).expect("the page");
    assert!(page.contains(KEY), "the page names the key");
    assert!(page.contains(&section), "docs/link-protocol.md should have:\n{section}");
}
