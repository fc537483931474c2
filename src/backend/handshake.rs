//! A link's first frames: both sides prove the key, and the link is entered among the others.

use std::io;
use std::sync::Arc;

use rand::TryRngCore;
use tokio::io::Interest;

use super::link::Link;
use super::shared::{LinkName, Shared};
use super::stream::Stream;
use crate::protocol::link::handshake::expect;
use crate::protocol::link::{
    Challenge, HANDSHAKE_FRAME_MAX, Hello, Kind, LinkError, LinkReader, Proof, Ready, RefusalCode,
    Refused, VERSION,
};

/// Bytes read and not yet cut into frames.
pub(super) struct Input {
    pub(super) buffer: Vec<u8>,
    pub(super) reader: LinkReader,
}

impl Input {
    pub(super) fn new() -> Self {
        Input { buffer: vec![0; 4096], reader: LinkReader::new(HANDSHAKE_FRAME_MAX) }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("the handshake took too long")]
    TimedOut,
    #[error("a newer connection took its place: more than handshakes_max are in their handshake")]
    Evicted,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] LinkError),
    #[error("this side refused: {}", .0.hint())]
    Refused(RefusalCode),
    #[error("the gateway refused (code {code}): {reason}")]
    ByGateway { code: u16, reason: String },
}

pub(super) async fn handshake(
    stream: &Stream,
    shared: &Shared,
    input: &mut Input,
) -> Result<(LinkName, Arc<Link>), HandshakeError> {
    let result = agree(stream, shared, input).await;
    match &result {
        Err(HandshakeError::Refused(code)) => refuse(stream, *code),
        Err(HandshakeError::Protocol(LinkError::NoCommonVersion { .. })) => {
            refuse(stream, RefusalCode::Version);
        }
        Err(HandshakeError::Protocol(_)) => refuse(stream, RefusalCode::Malformed),
        _ => {}
    }
    result
}

async fn agree(
    stream: &Stream,
    shared: &Shared,
    input: &mut Input,
) -> Result<(LinkName, Arc<Link>), HandshakeError> {
    let settings = &shared.settings;
    let hello_bytes = read_handshake(stream, input, Kind::Hello).await?;
    let hello = Hello::decode(&hello_bytes)?;
    let key = settings.secret.as_ref();
    match (key, hello.authenticated) {
        (Some(_), false) => return refused(RefusalCode::AuthenticationRequired),
        (None, true) => return refused(RefusalCode::AuthenticationNotConfigured),
        _ => {}
    }
    let mut challenge = Challenge {
        version: VERSION,
        features: hello.features & settings.features(),
        instance: shared.instance,
        nonce: random(),
        limits: settings.limits,
        proof: Proof::Absent,
    };
    let mut challenge_bytes = Vec::with_capacity(128);
    challenge.encode_payload(&mut challenge_bytes);
    if let Some(key) = key {
        // The flags, which the proof covers, already say that there is one.
        challenge.proof = Proof::Hmac([0; 32]);
        challenge_bytes.clear();
        challenge.encode_payload(&mut challenge_bytes);
        challenge.proof = Proof::of_backend(key, &hello_bytes, &challenge_bytes);
        challenge_bytes.clear();
        challenge.encode_payload(&mut challenge_bytes);
    }
    let mut out = Vec::with_capacity(128);
    challenge.encode(&mut out);
    write_all(stream, &out).await?;

    let proof = Proof::decode(&read_handshake(stream, input, Kind::Proof).await?)?;
    if !proof.verify_gateway(key, &hello_bytes, &challenge_bytes) {
        return refused(RefusalCode::WrongKey);
    }
    let link = register(shared, &hello)?;
    out.clear();
    Ready.encode(&mut out);
    write_all(stream, &out).await?;
    input.reader.set_frame_max(settings.limits.frame_max);
    Ok(((hello.instance, hello.worker, hello.link), link))
}

fn refused<T>(code: RefusalCode) -> Result<T, HandshakeError> {
    Err(HandshakeError::Refused(code))
}

/// Enters the link among those that are up. It replaces an older one of the same name: the
/// gateway has given that one up, even if this side has not noticed yet.
fn register(shared: &Shared, hello: &Hello) -> Result<Arc<Link>, HandshakeError> {
    let features = hello.features & shared.settings.features();
    let link = Arc::new(Link::new(&shared.settings, hello.limits, features));
    let name = (hello.instance, hello.worker, hello.link);
    let mut registry = shared.registry();
    // Under the registry's lock: a shutdown sees either this link or this refusal.
    if shared.is_stopping() {
        return refused(RefusalCode::ShuttingDown);
    }
    let is_stale = |(known, (epoch, _)): (&LinkName, &(u64, Arc<Link>))| {
        known.0 == hello.instance && *epoch > hello.epoch
    };
    if registry.iter().any(is_stale) {
        return refused(RefusalCode::StaleEpoch);
    }
    if registry.len() >= shared.settings.links_max && !registry.contains_key(&name) {
        return refused(RefusalCode::TooManyLinks);
    }
    if let Some((_, older)) = registry.insert(name, (hello.epoch, link.clone())) {
        older.with(|state| state.lost = Some("replaced by a newer link".to_owned()));
    }
    Ok(link)
}

/// Reads until the frame of the handshake is whole; nothing may come behind it.
async fn read_handshake(
    stream: &Stream,
    input: &mut Input,
    kind: Kind,
) -> Result<Vec<u8>, HandshakeError> {
    loop {
        stream.ready(Interest::READABLE).await?;
        let read = match stream.try_read(&mut input.buffer) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        let mut bytes = &input.buffer[..read];
        let Some(frame) = input.reader.next(&mut bytes)? else { continue };
        if frame.header.kind == Kind::Refused {
            let Refused { code, reason } = Refused::decode(frame.payload)?;
            let reason = reason.escape_debug().to_string();
            return Err(HandshakeError::ByGateway { code: code.code(), reason });
        }
        let payload = expect(&frame, kind)?.to_vec();
        if !bytes.is_empty() {
            return Err(LinkError::Unexpected { kind }.into());
        }
        return Ok(payload);
    }
}

async fn write_all(stream: &Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.ready(Interest::WRITABLE).await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says no if there is room for it; a peer that does not read does not get told.
pub(super) fn refuse(stream: &Stream, code: RefusalCode) {
    let mut out = Vec::with_capacity(256);
    Refused::new(code).encode(&mut out);
    let _ = stream.try_write(&out);
}

pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the system gives random bytes");
    bytes
}
