//! Frames: every broken one gets its exact close code, every good one arrives.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use tungstenite::Error;

use crate::support::{
    Backend, Choices, Client, Config, End, Gateway, Opcode, PATIENCE, masked, request,
};

/// A whole frame of one byte of payload with this first byte.
fn frame(first: u8) -> Vec<u8> {
    masked(first, b"x")
}

/// The header of a masked frame with the length in this form, and no payload yet.
fn header(first: u8, length: &[u8]) -> Vec<u8> {
    [&[first][..], length, &[1, 2, 3, 4]].concat()
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    masked(0x88, &[&code.to_be_bytes()[..], reason].concat())
}

/// What is sent on `/any`, and the code that answers it.
fn protocol_errors() -> Vec<(&'static str, Vec<u8>, u16)> {
    let mut rows = vec![
        ("unmasked", vec![0x81, 1, b'x'], 1002),
        ("unmasked close", vec![0x88, 0], 1002),
        ("rsv1", frame(0xc1), 1002),
        ("rsv2", frame(0xa1), 1002),
        ("rsv3", frame(0x91), 1002),
        ("rsv1 of a ping", frame(0xc9), 1002),
        ("fragmented ping", frame(0x09), 1002),
        ("fragmented close", frame(0x08), 1002),
        ("ping of 126", masked(0x89, &[0; 126]), 1002),
        ("close of 126", masked(0x88, &[0; 126]), 1002),
        ("stray continuation", frame(0x80), 1002),
        ("stray unfinished continuation", frame(0x00), 1002),
        ("text in a text", [frame(0x01), frame(0x81)].concat(), 1002),
        ("binary in a text", [frame(0x01), frame(0x82)].concat(), 1002),
        ("continuation after the end", [frame(0x81), frame(0x80)].concat(), 1002),
        ("125 in 16 bits", header(0x81, &[0x80 | 126, 0, 125]), 1002),
        ("0 in 16 bits", header(0x81, &[0x80 | 126, 0, 0]), 1002),
        ("65535 in 64 bits", header(0x81, &[0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff]), 1002),
        ("top bit", header(0x81, &[0x80 | 127, 0x80, 0, 0, 0, 0, 1, 0, 0]), 1002),
        ("half a close code", masked(0x88, &[3]), 1002),
        ("close reason", close(1000, b"\xff"), 1007),
        ("close reason cut off", close(1000, b"a\xe2\x82"), 1007),
        ("text", masked(0x81, b"a\xc0\xafb"), 1007),
        ("surrogate", masked(0x81, b"\xed\xa0\x80"), 1007),
        ("beyond unicode", masked(0x81, b"\xf4\x90\x80\x80"), 1007),
        ("text cut off", masked(0x81, b"a\xe2\x82"), 1007),
        ("text across fragments", [masked(0x01, b"a\xe2\x82"), masked(0x80, b"a")].concat(), 1007),
        ("text cut off in the last", [masked(0x01, b"a"), masked(0x80, b"\xe2")].concat(), 1007),
        // Found before the message ends, and before its frame does.
        ("early", masked(0x01, b"\xff"), 1007),
        ("too large, header alone", header(0x82, &[0x80 | 126, 0x80, 1]), 1009),
        (
            "too large, 64 bits",
            header(0x82, &[0x80 | 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            1009,
        ),
        (
            "too large by fragments",
            [masked(0x02, &[0; 0x7000]), header(0x80, &[0x80 | 126, 0x10, 1])].concat(),
            1009,
        ),
        ("too many fragments", [vec![frame(0x02)], vec![frame(0x00); 8]].concat().concat(), 1009),
    ];
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        rows.push(("reserved opcode", frame(0x80 | opcode), 1002));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999, 5000, 65535] {
        rows.push(("close code", close(code, b""), 1002));
    }
    rows
}

#[test]
fn every_broken_frame_gets_its_code_and_the_connection_ends() {
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .route("/any", "auth = \"none\"")
        .limits("message_max = \"32KiB\"\nfragments_max = 8");
    let gateway = Gateway::start(&config);
    for (what, sent, code) in protocol_errors() {
        let mut client = Client::open(gateway.address(), "/any", "");
        client.write(&sent);
        let reason = match code {
            1002 => "protocol_error",
            1007 => "invalid_utf8",
            _ => "too_large",
        };
        eprintln!("{what}: {}", sent[..sent.len().min(20)].escape_ascii());
        // What came whole before the broken frame may have been echoed.
        let mut frame = client.frame().expect("a frame");
        if frame.opcode == Opcode::Text {
            frame = client.frame().expect("a frame");
        }
        let expected = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
        assert_eq!((frame.opcode, frame.payload), (Opcode::Close, expected), "{what}");
        assert_eq!(client.end(), End::Fin, "{what}");
    }
}

#[test]
fn good_closes_are_answered_in_kind() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    for code in [1000, 1001, 1003, 1007, 1011, 1012, 1014, 3000, 4999] {
        let mut client = Client::open(gateway.address(), "/ws", "");
        client.echo("hello");
        client.close(code, "good bye \u{263a}");
        assert_eq!(client.close_frame(), (Some(code), String::new()));
        assert_eq!(client.end(), End::Fin);
        let ended = backend.ended();
        let told = (ended.cause.as_str(), ended.code, ended.reason.as_str());
        assert_eq!(told, ("client_closed", code, "good bye \u{263a}"));
    }
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.echo("hello");
    client.send(true, Opcode::Close, b"");
    assert_eq!(client.close_frame(), (None, String::new()));
    assert_eq!(client.end(), End::Fin);
    assert_eq!(backend.ended().code, 0);
    // Frames after the close do not count.
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.write(&[close(1000, b""), masked(0x81, b"late")].concat());
    assert_eq!(client.close_frame(), (Some(1000), String::new()));
    assert_eq!(client.end(), End::Fin);
    backend.ended();
    assert!(backend.seen().is_empty());
    gateway.wait_closes("client_closed", 11);
}

#[test]
fn messages_arrive_whole_however_they_are_cut() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let mut client = Client::open(gateway.address(), "/ws", "");
    let text = "h\u{e9}llo \u{20ac} \u{1f600} wor\u{142}d".to_owned();
    for cut in [1, 2, 3, 5] {
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let opcode = if index == 0 { Opcode::Text } else { Opcode::Continuation };
            client.send(index + 1 == pieces.len(), opcode, piece);
            if index % 4 == 1 {
                client.send(true, Opcode::Ping, b"");
                client.expect(Opcode::Pong, b"");
            }
        }
        assert_eq!(client.message(), (Opcode::Text, text.clone().into_bytes()));
    }
    // Dripped byte by byte, header and payload.
    let bytes = [masked(0x81, text.as_bytes()), masked(0x82, &[7; 300])].concat();
    bytes.chunks(1).for_each(|byte| client.write(byte));
    assert_eq!(client.message(), (Opcode::Text, text.into_bytes()));
    assert_eq!(client.message(), (Opcode::Binary, vec![7; 300]));
    // Empty messages are messages.
    client.text("");
    client.send(false, Opcode::Binary, b"");
    client.send(true, Opcode::Continuation, b"");
    assert_eq!(client.message(), (Opcode::Text, Vec::new()));
    assert_eq!(client.message(), (Opcode::Binary, Vec::new()));
    // Every length around the forms of the header.
    for length in [0, 1, 124, 125, 126, 127, 4095, 4096, 4097, 65_535, 65_536, 65_537] {
        let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
        client.send(true, Opcode::Binary, &payload);
        assert!(client.message() == (Opcode::Binary, payload), "{length}");
    }
}

#[test]
fn pings_are_answered_and_pongs_coalesce() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let mut client = Client::open(gateway.address(), "/ws", "");
    for payload in [&b""[..], b"x", &[0xff; 125]] {
        client.send(true, Opcode::Ping, payload);
        client.expect(Opcode::Pong, payload);
    }
    client.send(true, Opcode::Pong, b"unasked");
    let burst: Vec<u8> = (0..50_u8).flat_map(|n| masked(0x89, &[n])).collect();
    client.write(&burst);
    client.expect(Opcode::Pong, &[0]);
    client.expect(Opcode::Pong, &[49]);
    client.echo("in good health");
}

#[test]
fn types_are_taken_as_the_route_says() {
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .route("/text", "auth = \"none\"\nmessages = \"text\"")
        .route("/binary", "auth = \"none\"\nmessages = \"binary\"");
    let gateway = Gateway::start(&config);
    for (path, opcode, taken) in [
        ("/text", Opcode::Text, true),
        ("/text", Opcode::Binary, false),
        ("/binary", Opcode::Binary, true),
        ("/binary", Opcode::Text, false),
    ] {
        let mut client = Client::open(gateway.address(), path, "");
        client.send(true, opcode, b"x");
        if taken {
            client.expect(opcode, b"x");
        } else {
            assert_eq!(client.close_frame(), (Some(1003), "unsupported_type".into()), "{path}");
            assert_eq!(client.end(), End::Fin);
        }
    }
}

#[test]
fn floods_of_frames_and_controls_are_closed() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).limits(
        "frames_per_second = 1\nframes_burst = 20\ncontrols_per_second = 1\ncontrols_burst = 10",
    );
    let gateway = Gateway::start(&config);
    let explanation = concat!(
        r#"{"type":"close","code":4429,"reason":"rate_limited","#,
        r#""reconnect":true,"retry_after_ms":5000}"#,
    );
    for first in [0x82, 0x89, 0x8a] {
        let mut client = Client::open(gateway.address(), "/ws", "");
        let flood: Vec<u8> = (0..40).flat_map(|_| masked(first, b"x")).collect();
        client.write(&flood);
        let frame = loop {
            let frame = client.frame().expect("an explanation");
            if frame.opcode == Opcode::Text {
                break frame;
            }
        };
        assert_eq!(String::from_utf8(frame.payload).expect("text"), explanation);
        assert_eq!(client.close_frame(), (Some(4429), "rate_limited".into()));
        client.close(4429, "");
        assert_eq!(client.end(), End::Fin);
    }
    gateway.wait_closes("rate_limited", 3);
}

#[test]
fn large_messages_pass_windows_smaller_than_themselves() {
    let limits = portcullis::backend::Limits {
        session_window: 32 * 1024,
        link_window: 64 * 1024,
        ..Default::default()
    };
    let choices = Choices { limits: Some(limits), ..Choices::default() };
    let backend = Backend::start_at("127.0.0.1:0", choices);
    let config = Config::to(backend.address())
        .limits("session_window = \"48KiB\"\nlink_window = \"64KiB\"\nmessage_max = \"1MiB\"");
    let gateway = Gateway::start(&config);
    let mut client = Client::open(gateway.address(), "/ws", "");
    let payload: Vec<u8> =
        (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for _ in 0..2 {
        client.send(true, Opcode::Binary, &payload);
        let (opcode, back) = client.message();
        assert_eq!(opcode, Opcode::Binary);
        assert!(back == payload, "{} bytes came back changed", back.len());
    }
    // In fragments, as text.
    let text = "\u{20ac}".repeat(300_000);
    for (index, piece) in text.as_bytes().chunks(10_000).enumerate() {
        let opcode = if index == 0 { Opcode::Text } else { Opcode::Continuation };
        client.send(index == 89, opcode, piece);
    }
    let (opcode, back) = client.message();
    assert_eq!(opcode, Opcode::Text);
    assert!(back == text.as_bytes());
    // One byte more than may be.
    client.write(&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0]);
    assert_eq!(client.close_frame(), (Some(1009), "too_large".into()));
}

#[test]
fn ten_thousand_messages_keep_their_order_both_ways() {
    let backend = Backend::start();
    let config = Config::to(backend.address())
        .limits("frames_per_second = 1_000_000_000\nframes_burst = 1_000_000_000");
    let gateway = Gateway::start(&config);
    let stream = TcpStream::connect(gateway.address()).expect("connected");
    stream.set_nodelay(true).expect("set");
    let writer = stream.try_clone().expect("cloned");
    let url = format!("ws://{}/ws", gateway.address());
    let (mut socket, _) = tungstenite::client(url, stream).expect("upgraded");
    let sending = std::thread::spawn(move || {
        let mut writer = Client::over_tcp(writer);
        for number in 0..10_000_u32 {
            let length = (number as usize * 7) % 300;
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(4 + length, number as u8);
            writer.send(true, Opcode::Binary, &payload);
        }
    });
    for number in 0..10_000_u32 {
        let message = loop {
            match socket.read() {
                // As in `Client`: a ring that was taken down.
                Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
                outcome => break outcome.expect("a message").into_data(),
            }
        };
        assert_eq!(message[..4], number.to_be_bytes());
        assert_eq!(message.len(), 4 + (number as usize * 7) % 300);
        assert!(message[4..].iter().all(|byte| *byte == number as u8));
    }
    sending.join().expect("all sent");
    socket.close(None).expect("closing");
    while socket.read().is_ok() {}
    let ended = backend.ended();
    assert_eq!((ended.cause.as_str(), ended.code), ("client_closed", 0));
    gateway.wait_metric("portcullis_messages_total{direction=\"to_client\"}", |n| n == 10_000);
    assert_eq!(gateway.metric("portcullis_messages_total{direction=\"from_client\"}"), 10_000);
}

#[test]
fn five_hundred_clients_at_once_get_their_own_answers() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).workers(2);
    let gateway = Gateway::start(&config);
    let mut clients: Vec<Client> = (0..500).map(|_| Client::connect(gateway.address())).collect();
    for client in &mut clients {
        client.write(request("/ws", "").as_bytes());
    }
    for client in &mut clients {
        assert!(client.head().starts_with("HTTP/1.1 101 "));
    }
    for round in 0..3 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.text(&format!("{round} of {number}"));
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.expect(Opcode::Text, format!("{round} of {number}").as_bytes());
        }
    }
    gateway.wait_metric("portcullis_connections{stage=\"open\"}", |open| open == 500);
    assert_eq!(gateway.metric("portcullis_sessions_opened_total"), 500);
    drop(clients);
    gateway.wait_closes("client_gone", 500);
    gateway.wait_metric("portcullis_connections{stage=\"open\"}", |open| open == 0);
}

#[test]
fn a_slow_reader_stops_nobody_else() {
    let backend = Backend::start();
    let config = Config::to(backend.address())
        .limits("session_window = \"64KiB\"\nlink_window = \"128KiB\"");
    let gateway = Gateway::start(&config);
    let mut slow = Client::open(gateway.address(), "/ws", "");
    let mut quick = Client::open(gateway.address(), "/ws", "");
    slow.text("flood 400 65536");
    std::thread::sleep(Duration::from_millis(200));
    for number in 0..50 {
        quick.echo(&format!("message {number}"));
    }
    // Nothing was lost for the slow one, either.
    slow.tcp().set_read_timeout(Some(PATIENCE)).expect("set");
    for _ in 0..400 {
        assert!(slow.message() == (Opcode::Binary, vec![b'f'; 65_536]));
    }
    slow.echo("done");
}
