//! A small gateway that dials a backend over real sockets, and misbehaves on demand.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::echo::Echo;
use super::*;
use crate::base::random::Random;
use crate::base::time::UnixTime;
use crate::protocol::link::{
    Challenge, Close, Closer, Credit, FrameHeader, Hello, Kind, LinkError, LinkReader, Open,
    OpenHeaders, Ping, Pong, Proof, Refused, SendCredit, data_cost, data_flags, encode_data,
    features,
};

#[path = "crowd_tests.rs"]
mod crowd;
#[path = "life_tests.rs"]
mod life;

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

type Owned = (FrameHeader, Vec<u8>);

struct Gateway {
    wire: Box<dyn Wire>,
    reader: LinkReader,
    frames: VecDeque<Owned>,
    theirs: Limits,
}

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: u64::MAX,
        instance: [1; 16],
        epoch: 10,
        worker: 0,
        link: 0,
        authenticated: false,
        nonce: [2; 32],
        limits: Limits::default(),
    }
}

fn key(byte: u8) -> Secret {
    Secret::new(vec![byte; 32])
}

async fn dial(address: &str) -> Box<dyn Wire> {
    match address.strip_prefix("unix:") {
        Some(path) => Box::new(UnixStream::connect(path).await.unwrap()),
        None => {
            let stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            Box::new(stream)
        }
    }
}

impl Gateway {
    async fn raw(address: &str) -> Gateway {
        Gateway {
            wire: dial(address).await,
            reader: LinkReader::new(1 << 20),
            frames: VecDeque::new(),
            theirs: Limits::default(),
        }
    }

    async fn connect(address: &str, hello: Hello, key: Option<Secret>) -> Result<Gateway, u16> {
        let mut gateway = Gateway::raw(address).await;
        let (mut frame, mut hello_bytes) = (Vec::new(), Vec::new());
        hello.encode(&mut frame);
        hello.encode_payload(&mut hello_bytes);
        gateway.write(&frame).await;
        let (header, payload) = gateway.frame().await.expect("an answer");
        if header.kind == Kind::Refused {
            return Err(Refused::decode(&payload).unwrap().code.code());
        }
        assert_eq!(header.kind, Kind::Challenge);
        let challenge = Challenge::decode(&payload).unwrap();
        assert_eq!(challenge.features, hello.features & features::REAUTHENTICATION);
        gateway.theirs = challenge.limits;
        let proof = match &key {
            Some(key) => {
                if !challenge.proof.verify_backend(Some(key), &hello_bytes, &payload) {
                    return Err(2);
                }
                Proof::of_gateway(key, &hello_bytes, &payload)
            }
            None => Proof::Absent,
        };
        gateway.finish(proof).await
    }

    async fn finish(mut self, proof: Proof) -> Result<Gateway, u16> {
        let mut frame = Vec::new();
        proof.encode(&mut frame);
        self.write(&frame).await;
        let (header, payload) = self.frame().await.expect("READY or REFUSED");
        match header.kind {
            Kind::Ready => Ok(self),
            _ => Err(Refused::decode(&payload).unwrap().code.code()),
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).await.unwrap();
    }

    /// The next frame; `None` when the backend closed the connection.
    async fn frame(&mut self) -> Option<Owned> {
        while self.frames.is_empty() {
            let mut buffer = vec![0; 64 * 1024];
            let read = timeout(Duration::from_secs(5), self.wire.read(&mut buffer));
            let read = read.await.expect("the backend answers in time").unwrap_or(0);
            if read == 0 {
                return None;
            }
            let mut bytes = &buffer[..read];
            while let Some(frame) = self.reader.next(&mut bytes).unwrap() {
                self.frames.push_back((frame.header, frame.payload.to_vec()));
            }
        }
        self.frames.pop_front()
    }

    /// The next frame that is not a CREDIT.
    async fn answer(&mut self) -> Option<Owned> {
        loop {
            match self.frame().await {
                Some((header, _)) if header.kind == Kind::Credit => {}
                other => return other,
            }
        }
    }

    async fn open(&mut self, id: SessionId, path: &str) {
        let mut out = Vec::new();
        assert!(Open::new(path).encode(id, 1 << 16, &mut out));
        self.write(&out).await;
    }

    async fn data(&mut self, id: SessionId, flags: u8, payload: &[u8]) {
        let mut out = Vec::new();
        encode_data(id, flags, payload, &mut out);
        self.write(&out).await;
    }

    async fn close(&mut self, id: SessionId, code: u16) {
        let mut out = Vec::new();
        Close { by: Closer::Client, label: "client_closed", code, reason: "bye" }
            .encode(id, &mut out);
        self.write(&out).await;
    }

    async fn credit(&mut self, id: SessionId, bytes: u32) {
        let mut out = Vec::new();
        Credit { bytes }.encode(id, &mut out);
        self.write(&out).await;
    }

    async fn is_dropped(&mut self) -> bool {
        while let Some((header, _)) = self.frame().await {
            assert_ne!(header.kind, Kind::Ready);
        }
        true
    }
}

const A: SessionId = SessionId::new(0, 0);
const B: SessionId = SessionId::new(1, 5);
const WHOLE: u8 = data_flags::WHOLE;
const TEXT: u8 = data_flags::TEXT;

async fn echo_task(mut backend: Backend) {
    while let Some(mut session) = backend.accept().await {
        tokio::spawn(async move {
            while let Some(message) = session.next().await {
                if session.send(message).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// A backend that echoes by sessions (`true`) or by handler, and its address.
async fn echo_backend(builder: Builder, address: &str, by_sessions: bool) -> (String, Stopper) {
    let backend = builder.bind(address).await.unwrap();
    let (address, stopper) = (backend.address().to_owned(), backend.stopper());
    if by_sessions {
        tokio::spawn(echo_task(backend));
    } else {
        tokio::spawn(backend.serve(|| Echo));
    }
    (address, stopper)
}

#[tokio::test]
async fn echoes_over_tcp_and_unix_in_both_styles() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("unix:{}/link.sock", folder.path().display());
    for (address, by_sessions) in
        [("127.0.0.1:0", true), ("127.0.0.1:0", false), (&path, true), (&path, false)]
    {
        let (address, stopper) = echo_backend(Backend::builder(), address, by_sessions).await;
        let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
        gateway.open(A, "/a").await;
        for (flags, payload) in
            [(WHOLE | TEXT, &b"gr\xc3\xbc\xc3\x9fe"[..]), (WHOLE, b"\xff\0"), (WHOLE | TEXT, b"")]
        {
            gateway.data(A, flags, payload).await;
            let (header, back) = gateway.answer().await.unwrap();
            assert_eq!((header.kind, header.session, header.flags), (Kind::Data, A, flags));
            assert_eq!(back, payload);
        }
        let mut ping = Vec::new();
        Ping { opaque: 77 }.encode(&mut ping);
        gateway.write(&ping).await;
        let (header, payload) = gateway.answer().await.unwrap();
        assert_eq!(header.kind, Kind::Pong);
        assert_eq!(Pong::decode(&payload), Ok(Pong { opaque: 77 }));
        gateway.close(A, 4001).await;
        let (header, payload) = gateway.answer().await.unwrap();
        assert_eq!((header.kind, header.session), (Kind::Close, A));
        assert_eq!(Close::decode(&payload).unwrap().by, Closer::Backend);
        // The slot's next use.
        gateway.open(SessionId::new(0, 1), "/a").await;
        gateway.data(SessionId::new(0, 1), WHOLE, b"again").await;
        assert_eq!(gateway.answer().await.unwrap().1, b"again");
        stopper.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn the_author_sees_identity_messages_and_end() {
    let mut backend = Backend::bind("127.0.0.1:0").await.unwrap();
    backend.start();
    let address = backend.address().to_owned();
    let client = tokio::spawn(async move {
        let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
        let headers: [(&str, &[u8]); 2] = [("user-agent", b"x"), ("x-bin", b"\xff")];
        let open = Open {
            subject: Some("ada"),
            token_id: Some("t1"),
            expires: Some(UnixTime::from_seconds(99)),
            claims: b"{\"sub\":\"ada\"}",
            route: 3,
            connection: Some(0xab),
            route_name: "/ws/*",
            remote: Some("[::1]:9".parse().unwrap()),
            subprotocol: Some("chat"),
            origin: Some("https://a.example"),
            headers: OpenHeaders::Pairs(&headers),
            ..Open::new("/ws/1?x=2")
        };
        let mut out = Vec::new();
        assert!(open.encode(A, 65536, &mut out));
        encode_data(A, data_flags::FIRST | TEXT, b"on", &mut out);
        encode_data(A, TEXT, b"", &mut out);
        encode_data(A, data_flags::FIN | TEXT, b"e", &mut out);
        gateway.write(&out).await;
        gateway.close(A, 4000).await;
        gateway.answer().await
    });
    let mut session = backend.accept().await.unwrap();
    let identity = session.identity().clone();
    assert_eq!(identity.subject.as_deref(), Some("ada"));
    assert_eq!(identity.token_id.as_deref(), Some("t1"));
    assert_eq!(identity.expires, Some(UnixTime::from_seconds(99)));
    assert_eq!(&identity.claims[..], b"{\"sub\":\"ada\"}");
    assert_eq!((identity.path.as_str(), identity.route), ("/ws/1?x=2", 3));
    assert_eq!(identity.route_name, "/ws/*");
    assert_eq!(identity.connection, "00000000000000ab");
    assert_eq!(identity.remote, Some("[::1]:9".parse().unwrap()));
    assert_eq!(identity.subprotocol.as_deref(), Some("chat"));
    assert_eq!(identity.origin.as_deref(), Some("https://a.example"));
    assert_eq!((identity.header("user-agent"), identity.header("x-bin")), (Some("x"), None));
    assert_eq!(session.next().await, Some(Message::text("one")));
    assert_eq!(session.next().await, None);
    let end = session.ended().unwrap();
    assert_eq!((end.by, end.cause.as_str(), end.code), (EndedBy::Client, "client_closed", 4000));
    assert_eq!(end.reason, "bye");
    assert_eq!(session.send("late").await, Err(SendError::Closed));
    assert_eq!(client.await.unwrap().unwrap().0.kind, Kind::Close);
}

/// Sends messages of seeded sizes on several sessions, keeping to the backend's credit and
/// giving back its own late, and checks that every one comes back whole and in order.
async fn storm(address: &str, seed: u64, hello: Hello, messages: usize, size_max: u64) {
    let mut random = Random::from_number(seed);
    let mut gateway = Gateway::connect(address, hello.clone(), None).await.ok().unwrap();
    let ids: Vec<SessionId> = (0..5).map(|slot| SessionId::new(slot, 9)).collect();
    let mut link_credit = SendCredit::new(gateway.theirs.link_window);
    let mut credits = HashMap::new();
    let mut unsent: HashMap<SessionId, VecDeque<(Vec<u8>, usize)>> = HashMap::new();
    let mut expected: HashMap<SessionId, VecDeque<Vec<u8>>> = HashMap::new();
    for id in &ids {
        gateway.open(*id, "/").await;
        credits.insert(*id, SendCredit::new(gateway.theirs.session_window));
    }
    for _ in 0..messages {
        let id = ids[random.below(5) as usize];
        let size = if random.chance(1, 3) { random.below(40) } else { random.below(size_max) };
        let mut message = vec![0; size as usize];
        random.fill(&mut message);
        unsent.entry(id).or_default().push_back((message.clone(), 0));
        expected.entry(id).or_default().push_back(message);
    }
    let mut partial: HashMap<SessionId, Vec<u8>> = HashMap::new();
    let mut owed: HashMap<SessionId, u32> = HashMap::new();
    let mut left = messages;
    while left > 0 {
        let mut out = Vec::new();
        for id in &ids {
            let credit = credits.get_mut(id).unwrap();
            let queue = unsent.entry(*id).or_default();
            while let Some((message, sent)) = queue.front_mut() {
                let rest = message.len() - *sent;
                let most = credit.payload_max().min(link_credit.payload_max());
                let Some(most) = most.filter(|most| *most > 0 || rest == 0) else { break };
                let length = rest.min(most).min(1 + random.below(20_000) as usize);
                let first = if *sent == 0 { data_flags::FIRST } else { 0 };
                let fin = if length == rest { data_flags::FIN } else { 0 };
                encode_data(*id, first | fin, &message[*sent..*sent + length], &mut out);
                credit.spend(data_cost(length));
                link_credit.spend(data_cost(length));
                *sent += length;
                if fin != 0 {
                    queue.pop_front();
                }
            }
        }
        gateway.write(&out).await;
        let (header, payload) = gateway.frame().await.expect("the link lives");
        let id = header.session;
        match header.kind {
            Kind::Credit => {
                let bytes = Credit::decode(&payload).unwrap().bytes;
                let credit = credits.get_mut(&id).unwrap_or(&mut link_credit);
                credit.grant(bytes).unwrap();
            }
            Kind::Data => {
                assert!(payload.len() <= hello.limits.frame_max as usize);
                let owed = owed.entry(id).or_default();
                *owed += data_cost(payload.len());
                assert!(*owed <= hello.limits.session_window, "backend overspent");
                if *owed > hello.limits.session_window / 2 {
                    gateway.credit(id, *owed).await;
                    *owed = 0;
                }
                gateway.credit(SessionId::LINK, data_cost(payload.len())).await;
                let whole = partial.entry(id).or_default();
                assert_eq!(header.flags & data_flags::FIRST != 0, whole.is_empty());
                whole.extend_from_slice(&payload);
                if header.flags & data_flags::FIN != 0 {
                    let wanted = expected.get_mut(&id).unwrap().pop_front();
                    assert!(Some(std::mem::take(whole)) == wanted, "seed {seed}: wrong echo");
                    left -= 1;
                }
            }
            kind => panic!("unexpected {kind:?}"),
        }
    }
}

#[tokio::test]
async fn messages_larger_than_every_window_come_back_whole_and_in_order() {
    let limits = Limits {
        frame_max: 16 * 1024,
        message_max: 300_000,
        session_window: 4096,
        link_window: 64 * 1024,
        sessions_max: 5,
    };
    for by_sessions in [true, false] {
        let builder = Backend::builder().limits(limits).queue_max(10_000);
        let (address, _stopper) = echo_backend(builder, "127.0.0.1:0", by_sessions).await;
        for seed in 0..4 {
            let hello = Hello { limits, link: seed as u16, ..hello() };
            storm(&address, seed, hello, 60, 120_000).await;
        }
        storm(&address, 9, Hello { link: 9, ..hello() }, 3000, 300).await;
    }
}

#[tokio::test]
async fn a_slow_author_stops_only_its_own_client() {
    let limits = Limits { session_window: 4096, ..Limits::default() };
    let mut backend = Backend::builder().limits(limits).bind("127.0.0.1:0").await.unwrap();
    backend.start();
    let address = backend.address().to_owned();
    let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
    gateway.open(A, "/slow").await;
    gateway.open(B, "/fast").await;
    let mut slow = backend.accept().await.unwrap();
    let mut fast = backend.accept().await.unwrap();
    gateway.data(A, WHOLE, &[1; 2036]).await;
    gateway.data(A, WHOLE, &[2; 2036]).await;
    for _ in 0..10 {
        gateway.data(B, WHOLE, &[3; 3000]).await;
        assert_eq!(fast.next().await, Some(Message::binary(vec![3; 3000])));
        let (header, _) = gateway.frame().await.unwrap();
        assert_eq!((header.kind, header.session), (Kind::Credit, B), "no credit for A");
    }
    assert_eq!(slow.next().await, Some(Message::binary(vec![1; 2036])));
    let (header, payload) = gateway.frame().await.unwrap();
    assert_eq!((header.kind, header.session), (Kind::Credit, A));
    assert_eq!(Credit::decode(&payload), Ok(Credit { bytes: 2048 }));
    // One byte more than the credit ends the link.
    gateway.data(A, WHOLE, &[4; 2037]).await;
    assert!(gateway.is_dropped().await);
    assert_eq!(slow.next().await, Some(Message::binary(vec![2; 2036])));
    assert_eq!(slow.next().await, None);
    let end = slow.ended().unwrap();
    assert_eq!((end.by, end.cause.as_str()), (EndedBy::Link, "link_lost"));
    assert!(end.reason.contains(&LinkError::CreditExceeded.to_string()), "{}", end.reason);
}

#[tokio::test]
async fn a_slow_client_stops_only_its_own_sender() {
    let mut backend = Backend::bind("127.0.0.1:0").await.unwrap();
    backend.start();
    let address = backend.address().to_owned();
    let limits = Limits { session_window: 4096, ..Limits::default() };
    let hello = Hello { limits, ..hello() };
    let mut gateway = Gateway::connect(&address, hello, None).await.ok().unwrap();
    gateway.open(A, "/slow").await;
    gateway.open(B, "/fast").await;
    let slow = backend.accept().await.unwrap();
    let fast = backend.accept().await.unwrap();
    slow.send(Message::binary(vec![7; 10_000])).await.unwrap();
    assert_eq!(slow.sender().try_send(&"x".into()), Err(SendError::Full));
    let waiting = timeout(Duration::from_millis(30), slow.send("x"));
    assert!(waiting.await.is_err(), "send waits for credit");
    fast.send("hello").await.unwrap();
    let (header, first) = gateway.frame().await.unwrap();
    assert_eq!((header.session, header.flags, first.len()), (A, data_flags::FIRST, 4084));
    assert_eq!(gateway.frame().await.unwrap().1, b"hello");
    slow.close(4002, "enough");
    gateway.credit(A, 4096).await;
    let (header, piece) = gateway.frame().await.unwrap();
    assert_eq!((header.flags, piece.len()), (0, 4084));
    gateway.credit(A, 4096).await;
    let (header, piece) = gateway.frame().await.unwrap();
    assert_eq!((header.flags, piece.len()), (data_flags::FIN, 10_000 - 2 * 4084));
    let (header, payload) = gateway.frame().await.unwrap();
    assert_eq!((header.kind, header.session), (Kind::Close, A));
    let close = Close::decode(&payload).unwrap();
    assert_eq!((close.code, close.reason), (4002, "enough"));
    // No message is too large to be refused by name.
    let large = Message::binary(vec![0; 1024 * 1024 + 1]);
    let error = SendError::TooLarge { bytes: 1024 * 1024 + 1, limit: 1024 * 1024 };
    assert_eq!(fast.send(large).await, Err(error));
}

#[tokio::test]
async fn handshakes_that_must_fail_are_told_why() {
    let (open, _s1) = echo_backend(Backend::builder(), "127.0.0.1:0", true).await;
    let builder = Backend::builder().secret(key(1)).links_max(2);
    let (locked, _s2) = echo_backend(builder, "127.0.0.1:0", true).await;
    let with_key = Hello { authenticated: true, ..hello() };
    let future = Hello { version_min: 2, version_max: 3, ..hello() };
    let cases: [(&str, Hello, Option<Secret>, u16); 5] = [
        (&locked, with_key.clone(), Some(key(2)), 2),
        (&locked, hello(), None, 3),
        (&open, with_key.clone(), Some(key(1)), 4),
        (&open, future, None, 1),
        (&open, Hello { limits: Limits { frame_max: 9, ..Limits::default() }, ..hello() }, None, 7),
    ];
    for (address, hello, key, code) in cases {
        assert_eq!(Gateway::connect(address, hello, key).await.err(), Some(code));
    }
    // A gateway that skips the check of the backend's proof gains nothing by it.
    let mut gateway = Gateway::raw(&locked).await;
    let mut out = Vec::new();
    with_key.encode(&mut out);
    gateway.write(&out).await;
    gateway.frame().await.unwrap();
    assert_eq!(gateway.finish(Proof::Hmac([3; 32])).await.err(), Some(2));

    let connect = async |link, epoch| {
        let hello = Hello { link, epoch, ..with_key.clone() };
        Gateway::connect(&locked, hello, Some(key(1))).await
    };
    let mut first = connect(0, 10).await.ok().unwrap();
    let _second = connect(1, 10).await.ok().unwrap();
    assert_eq!(connect(2, 10).await.err(), Some(5), "links_max");
    assert_eq!(connect(0, 9).await.err(), Some(6), "stale epoch");
    let _newer = connect(0, 11).await.ok().unwrap();
    assert!(first.is_dropped().await, "replaced");
}

#[tokio::test]
async fn what_is_no_handshake_ends_soon_and_harms_nobody() {
    let builder = Backend::builder().handshake_timeout(Duration::from_millis(200));
    let (address, _stopper) = echo_backend(builder, "127.0.0.1:0", false).await;
    let mut out = Vec::new();
    hello().encode(&mut out);
    let early = [&out[..], &out[..]].concat();
    let cases: [(&[u8], Option<u16>); 4] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Some(7)),
        (&early, Some(7)),
        (b"", Some(9)),
        (&out[..50], Some(9)),
    ];
    for (bytes, code) in cases {
        let mut gateway = Gateway::raw(&address).await;
        gateway.write(bytes).await;
        let refusal = gateway.frame().await;
        let found = refusal.map(|(_, p)| Refused::decode(&p).unwrap().code.code());
        assert_eq!(found, code, "{bytes:?}");
        assert!(gateway.frame().await.is_none());
    }
    Gateway::connect(&address, hello(), None).await.ok().unwrap();
}

#[tokio::test]
async fn violations_end_the_link_and_no_other() {
    let frame = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    let stray = frame(&|out| {
        for _ in 0..17 {
            encode_data(SessionId::new(9, 9), WHOLE, b"x", out);
        }
    });
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("unknown kind", vec![0, 0, 0, 0x99, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("reserved kind", vec![0, 0, 0, 0x40, 0, 0, 0, 0, 255, 255, 255, 255]),
        ("a second OPEN", frame(&|out| assert!(Open::new("/").encode(A, 65536, out)))),
        ("HELLO again", frame(&|out| hello().encode(out))),
        ("frame too large", frame(&|out| encode_data(A, WHOLE, &[0; 65537], out))),
        ("continuation of nothing", frame(&|out| encode_data(A, 0, b"x", out))),
        ("credit of 0", frame(&|out| Credit { bytes: 0 }.encode(A, out))),
        ("credit overflow", frame(&|out| Credit { bytes: 0x7fff_ffff }.encode(A, out))),
        ("link credit overflow", {
            frame(&|out| Credit { bytes: 0x7fff_ffff }.encode(SessionId::LINK, out))
        }),
        ("frames for nobody", stray),
        ("OPEN without path", vec![0, 0, 4, 0x20, 0, 0, 0, 0, 0, 0, 0, 7, 1, 0, 1, b'a']),
    ];
    for by_sessions in [true, false] {
        let (address, _stop) = echo_backend(Backend::builder(), "127.0.0.1:0", by_sessions).await;
        let honest = Hello { link: 1, ..hello() };
        let mut honest = Gateway::connect(&address, honest, None).await.ok().unwrap();
        honest.open(A, "/").await;
        for (name, bytes) in &cases {
            let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
            gateway.open(A, "/").await;
            gateway.write(bytes).await;
            assert!(gateway.is_dropped().await, "{name}");
            honest.data(A, WHOLE, name.as_bytes()).await;
            assert_eq!(honest.answer().await.unwrap().1, name.as_bytes());
        }
        let mut random = Random::from_number(5);
        for _ in 0..100 {
            let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
            let mut bytes = vec![0; 600];
            random.fill(&mut bytes);
            for start in (0..600).step_by(60) {
                let kind = Kind::ALL[random.below(Kind::ALL.len() as u64) as usize] as u8;
                let slot = random.below(3) as u8;
                let flags = random.below(8) as u8;
                bytes[start..start + 12]
                    .copy_from_slice(&[0, 0, 48, kind, flags, 0, 0, 0, 0, 0, 0, slot]);
            }
            gateway.open(A, "/").await;
            let _ = gateway.wire.write_all(&bytes).await;
        }
        honest.data(A, WHOLE, b"still here").await;
        assert_eq!(honest.answer().await.unwrap().1, b"still here");
    }
}

#[tokio::test]
async fn bad_text_and_too_many_sessions_cost_the_session_only() {
    let limits = Limits { sessions_max: 1, ..Limits::default() };
    let builder = Backend::builder().limits(limits);
    let (address, _stopper) = echo_backend(builder, "127.0.0.1:0", true).await;
    let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
    gateway.open(A, "/").await;
    gateway.open(B, "/").await;
    let (header, payload) = gateway.answer().await.unwrap();
    assert_eq!((header.kind, header.session), (Kind::Close, B));
    let close = Close::decode(&payload).unwrap();
    assert_eq!((close.label, close.code), ("over_capacity", 1013));
    gateway.close(B, 1000).await;
    gateway.data(A, WHOLE | TEXT, b"\xff").await;
    let (header, payload) = gateway.answer().await.unwrap();
    assert_eq!((header.kind, header.session), (Kind::Close, A));
    let close = Close::decode(&payload).unwrap();
    assert_eq!((close.label, close.code), ("invalid_utf8", 1007));
    // Until the gateway's CLOSE, what was under way is dropped and costs nothing.
    gateway.data(A, WHOLE, b"late").await;
    gateway.close(A, 1000).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    gateway.open(SessionId::new(0, 1), "/").await;
    gateway.data(SessionId::new(0, 1), WHOLE, b"new").await;
    assert_eq!(gateway.answer().await.unwrap().1, b"new");
}

#[tokio::test]
async fn shutdown_says_goaway_waits_and_closes() {
    let mut backend = Backend::bind("127.0.0.1:0").await.unwrap();
    backend.start();
    let (address, stopper) = (backend.address().to_owned(), backend.stopper());
    let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
    gateway.open(A, "/").await;
    let mut session = backend.accept().await.unwrap();
    let stopping = tokio::spawn(async move {
        stopper.shutdown(Duration::from_millis(100)).await;
    });
    assert_eq!(gateway.frame().await.unwrap().0.kind, Kind::GoAway);
    gateway.open(B, "/").await;
    let (header, payload) = gateway.frame().await.unwrap();
    assert_eq!((header.kind, header.session), (Kind::Close, B));
    assert_eq!(Close::decode(&payload).unwrap().code, 1012);
    let (header, payload) = gateway.frame().await.unwrap();
    assert_eq!((header.kind, header.session), (Kind::Close, A));
    assert_eq!(Close::decode(&payload).unwrap().code, 1012);
    gateway.close(A, 1012).await;
    gateway.close(B, 1012).await;
    assert_eq!(session.next().await, None);
    assert_eq!(session.ended().unwrap().by, EndedBy::Backend);
    stopping.await.unwrap();
    assert!(gateway.is_dropped().await);
    assert!(backend.accept().await.is_none());
    assert!(TcpStream::connect(&address).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_bound_says_what_to_do() {
    let weak = Backend::builder().secret(Secret::new(vec![1; 31])).bind("127.0.0.1:0").await;
    assert!(matches!(weak, Err(BindError::WeakSecret { bytes: 31 })));
    let limits = Limits { link_window: 1, ..Limits::default() };
    let limit = Backend::builder().limits(limits).bind("127.0.0.1:0").await;
    assert!(matches!(limit, Err(BindError::Limit { name: "link_window" })));
    assert!(matches!(Backend::bind("localhost").await, Err(BindError::Address { .. })));
    let held = Backend::bind("127.0.0.1:0").await.unwrap();
    assert!(matches!(Backend::bind(held.address()).await, Err(BindError::Listen { .. })));
    let folder = tempfile::tempdir().unwrap();
    let path = format!("unix:{}/s", folder.path().display());
    drop(std::os::unix::net::UnixListener::bind(path.trim_start_matches("unix:")).unwrap());
    let _stale_is_replaced = Backend::bind(&path).await.unwrap();
    assert!(matches!(Backend::bind(&path).await, Err(BindError::Listen { .. })));
}
