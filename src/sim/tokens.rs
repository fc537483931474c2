//! Tokens as the fake clients present them. They are minted here from RFC 7519 alone, not with
//! the gateway's own code.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::messages::Author;
use crate::base::random::Random;
use crate::base::time::UnixTime;

/// What is right or wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Nothing: it must be accepted.
    Good,
    /// Nothing, but it runs out within seconds.
    Brief,
    /// Its time is over.
    Expired,
    /// Its time has not begun.
    NotYet,
    /// Signed with another key.
    Forged,
    /// Says that it needs no signature.
    Unsigned,
    /// Not a token.
    Malformed,
    /// There is none.
    Missing,
}

impl TokenKind {
    /// Every kind that must be refused.
    pub const BAD: &'static [TokenKind] = &[
        TokenKind::Expired,
        TokenKind::NotYet,
        TokenKind::Forged,
        TokenKind::Unsigned,
        TokenKind::Malformed,
        TokenKind::Missing,
    ];

    /// Close codes that a refusal may have in the plain dialect.
    pub fn codes(self) -> &'static [u16] {
        match self {
            TokenKind::Good | TokenKind::Brief => &[],
            _ => &[4401, 4403],
        }
    }
}

/// How a client carries its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriage {
    /// `Authorization: Bearer`.
    Authorization,
    /// A cookie named `session`.
    Cookie,
    /// A header named `X-Token`.
    Header,
    /// A query parameter named `token`.
    Query,
    /// A subprotocol.
    Subprotocol,
    /// The first message.
    FirstMessage,
}

impl Carriage {
    /// Every way.
    pub const ALL: &'static [Carriage] = &[
        Carriage::Authorization,
        Carriage::Cookie,
        Carriage::Header,
        Carriage::Query,
        Carriage::Subprotocol,
        Carriage::FirstMessage,
    ];

    /// A request head. An empty token is left out.
    pub fn head(self, key: &str, token: &str) -> String {
        let (mut path, mut fields) = ("/ws".to_owned(), String::new());
        if self == Carriage::FirstMessage {
            path = "/first".into();
        } else if !token.is_empty() {
            match self {
                Carriage::Authorization => fields = format!("Authorization: Bearer {token}\r\n"),
                Carriage::Cookie => {
                    fields = format!("Cookie: a=b; session={token}; c=d\r\nOrigin: {ORIGIN}\r\n");
                }
                Carriage::Header => fields = format!("X-Token: {token}\r\n"),
                Carriage::Query => path = format!("/ws?a=b&token={token}"),
                Carriage::Subprotocol => {
                    let wrapped = URL_SAFE_NO_PAD.encode(token);
                    fields = format!(
                        "Sec-WebSocket-Protocol: chat, base64url.bearer.authorization.{wrapped}\r\n\
                         Origin: {ORIGIN}\r\n"
                    );
                }
                Carriage::FirstMessage => {}
            }
        }
        format!(
            "GET {path} HTTP/1.1\r\nHost: gateway.example.com\r\nUpgrade: websocket\r\n\
             Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {key}\r\n{fields}\r\n"
        )
    }
}

/// What a token says, signed or not.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// `sub`.
    pub subject: String,
    /// `jti`.
    pub token_id: Option<String>,
    /// `iat`.
    pub issued_at: Option<UnixTime>,
    /// `exp`.
    pub expires: Option<UnixTime>,
}

/// The claims of a token, unverified.
pub fn unverified_claims(token: &[u8]) -> Option<Claims> {
    let claims = URL_SAFE_NO_PAD.decode(token.split(|b| *b == b'.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let time = |name: &str| claims[name].as_u64().map(UnixTime::from_seconds);
    Some(Claims {
        subject: claims["sub"].as_str()?.to_owned(),
        token_id: claims["jti"].as_str().map(str::to_owned),
        issued_at: time("iat"),
        expires: time("exp"),
    })
}

/// How messages begin that bring a fresh token.
pub const REAUTHENTICATE: &str = r#"{"type":"authenticate","#;

/// The origin that the settings of a simulation allow.
pub const ORIGIN: &str = "https://app.example.com";

/// The keys of one run.
#[derive(Debug)]
pub struct Tokens {
    key: [u8; 32],
    other: [u8; 32],
}

impl Tokens {
    /// Draws the keys.
    pub fn new(random: &mut Random) -> Self {
        let (mut key, mut other) = ([0; 32], [0; 32]);
        random.fill(&mut key);
        random.fill(&mut other);
        Tokens { key, other }
    }

    /// The key that the gateway knows.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// A token for one connection of a client, at `now` milliseconds since 1970, and when it
    /// runs out.
    pub fn mint(&self, kind: TokenKind, author: Author, now: u64) -> (String, Option<u64>) {
        let now = now / 1000;
        let (start, end) = match kind {
            TokenKind::Expired => (now - 10_000, now - 5_000),
            TokenKind::NotYet => (now + 5_000, now + 10_000),
            TokenKind::Brief => (now - 5_000, now + 2 + u64::from(author.life % 3)),
            TokenKind::Malformed => return ("e30.e30".into(), None),
            TokenKind::Missing => return (String::new(), None),
            _ => (now - 5_000, now + 36_000),
        };
        let algorithm = if kind == TokenKind::Unsigned { "none" } else { "HS256" };
        let header = format!(r#"{{"alg":"{algorithm}","typ":"JWT"}}"#);
        let subject = author.subject();
        let claims = format!(
            r#"{{"sub":"{subject}","jti":"t-{subject}","iat":{start},"nbf":{start},"exp":{end}}}"#
        );
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let key = if kind == TokenKind::Forged { &self.other } else { &self.key };
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key)
            .expect("HMAC takes a key of any length")
            .chain_update(&signed)
            .finalize();
        let token = match kind {
            TokenKind::Unsigned => format!("{signed}."),
            _ => format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.into_bytes())),
        };
        (token, Some(end * 1000))
    }
}
