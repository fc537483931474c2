//! A backend played by hand over the link's frames, which can break its rules.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use portcullis::base::secret::Secret;
use portcullis::protocol::link::{
    Challenge, Close, Closer, Credit, FrameHeader, HEADER_BYTES, Hello, Kind, Limits, Ping, Pong,
    Proof, Ready, SessionId, VERSION, data_flags, encode_data,
};

use super::PATIENCE;

/// A listener that gateways dial.
pub struct RawBackend {
    listener: TcpListener,
    pub limits: Limits,
    pub features: u64,
}

/// One link, past its handshake.
pub struct RawLink {
    stream: TcpStream,
}

impl RawBackend {
    pub fn listen() -> RawBackend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        RawBackend { listener, limits: Limits::default(), features: 0 }
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().expect("bound").to_string()
    }

    /// The next connection, with nothing said yet.
    pub fn accept_silent(&self) -> RawLink {
        let (stream, _) = self.listener.accept().expect("a gateway connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_nodelay(true).expect("set");
        RawLink { stream }
    }

    /// The next connection, taken through the handshake without a secret.
    pub fn accept(&self) -> RawLink {
        let mut link = self.accept_silent();
        let (header, hello) = link.read().expect("HELLO");
        assert_eq!(header.kind, Kind::Hello);
        let hello = Hello::decode(&hello).expect("a good HELLO");
        assert!(!hello.authenticated);
        link.challenge_with(self.limits, self.features, None);
        let (header, proof) = link.read().expect("PROOF");
        assert_eq!(header.kind, Kind::Proof);
        assert!(matches!(Proof::decode(&proof), Ok(Proof::Absent)));
        let mut out = Vec::new();
        Ready.encode(&mut out);
        Ping { opaque: 1 }.encode(&mut out);
        link.write(&out);
        // Who answers a ping has seen READY: clients may come.
        assert_eq!(link.read().expect("PONG").0.kind, Kind::Pong);
        link
    }
}

impl RawLink {
    /// Sends CHALLENGE. With a key, its proof is computed over an empty HELLO: always wrong.
    pub fn challenge(&mut self, limits: Limits, wrong: Option<&Secret>) {
        self.challenge_with(limits, 0, wrong);
    }

    /// The same with features.
    pub fn challenge_with(&mut self, limits: Limits, features: u64, wrong: Option<&Secret>) {
        let mut challenge = Challenge {
            version: VERSION,
            features,
            instance: [7; 16],
            nonce: [9; 32],
            limits,
            proof: Proof::Absent,
        };
        if let Some(key) = wrong {
            challenge.proof = Proof::of_backend(key, b"", b"");
        }
        let mut out = Vec::new();
        challenge.encode(&mut out);
        self.write(&out);
    }

    /// Writes bytes as they are; the gateway may be gone.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next frame, whatever it is.
    pub fn read(&mut self) -> io::Result<(FrameHeader, Vec<u8>)> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header)?;
        let header = FrameHeader::parse(&header).expect("the gateway's frames are good");
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((header, payload))
    }

    /// The next frame but pings, which are answered, and pongs.
    pub fn next(&mut self) -> io::Result<(FrameHeader, Vec<u8>)> {
        loop {
            let (header, payload) = self.read()?;
            match header.kind {
                Kind::Ping => {
                    let opaque = Ping::decode(&payload).expect("a good PING").opaque;
                    let mut out = Vec::new();
                    Pong { opaque }.encode(&mut out);
                    self.write(&out);
                }
                Kind::Pong => {}
                _ => return Ok((header, payload)),
            }
        }
    }

    /// The next frame, which must be of this kind.
    pub fn expect(&mut self, kind: Kind) -> (SessionId, Vec<u8>) {
        let (header, payload) = self.next().expect("a frame");
        assert_eq!(header.kind, kind);
        (header.session, payload)
    }

    /// Whether the gateway ends the link, whatever it sends before.
    pub fn is_dropped(&mut self) -> bool {
        loop {
            match self.read() {
                Ok(_) => {}
                Err(error) => {
                    let slow = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
                    return !slow.contains(&error.kind());
                }
            }
        }
    }

    pub fn text(&mut self, session: SessionId, text: &str) {
        self.data(session, data_flags::WHOLE | data_flags::TEXT, text.as_bytes());
    }

    pub fn data(&mut self, session: SessionId, flags: u8, payload: &[u8]) {
        let mut out = Vec::new();
        encode_data(session, flags, payload, &mut out);
        self.write(&out);
    }

    pub fn credit(&mut self, session: SessionId, bytes: u32) {
        let mut out = Vec::new();
        Credit { bytes }.encode(session, &mut out);
        self.write(&out);
    }

    pub fn close(&mut self, session: SessionId, code: u16, reason: &str) {
        let mut out = Vec::new();
        Close { by: Closer::Backend, label: "", code, reason }.encode(session, &mut out);
        self.write(&out);
    }
}
