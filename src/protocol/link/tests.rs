//! The codec against the shared vectors, in both directions, and against chance.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::frame::Scope;
use super::*;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;
use crate::protocol::revocation::{Revocation, Target};

const VECTORS: &str = include_str!("../../../tests/vectors/link.json");

fn vectors() -> Value {
    serde_json::from_str(VECTORS).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("hex");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

fn limits_of(value: &Value) -> Limits {
    let limit = |name: &str| number(&value[name]) as u32;
    Limits {
        frame_max: limit("frame_max"),
        message_max: limit("message_max"),
        session_window: limit("session_window"),
        link_window: limit("link_window"),
        sessions_max: limit("sessions_max"),
    }
}

fn limits_json(limits: &Limits) -> Value {
    json!({
        "frame_max": limits.frame_max, "message_max": limits.message_max,
        "session_window": limits.session_window, "link_window": limits.link_window,
        "sessions_max": limits.sessions_max,
    })
}

fn proof_of(value: &Value) -> Proof {
    Proof::decode(&unhex(value)).unwrap()
}

fn proof_hex(proof: &Proof) -> String {
    let mut frame = Vec::new();
    proof.encode(&mut frame);
    hex(&frame[HEADER_BYTES..])
}

/// The bytes of the frame that a vector describes.
fn encode(vector: &Value) -> Vec<u8> {
    let fields = &vector["fields"];
    let session = &vector["session"];
    let id = SessionId::new(number(&session["slot"]) as u32, number(&session["generation"]) as u32);
    let text = |name: &str| fields[name].as_str();
    let mut out = Vec::new();
    match vector["kind"].as_str().unwrap() {
        "HELLO" => Hello {
            version_min: number(&fields["version_min"]) as u16,
            version_max: number(&fields["version_max"]) as u16,
            features: number(&fields["features"]),
            instance: unhex(&fields["instance"]).try_into().unwrap(),
            epoch: number(&fields["epoch"]),
            worker: number(&fields["worker"]) as u16,
            link: number(&fields["link"]) as u16,
            authenticated: fields["authenticated"].as_bool().unwrap(),
            nonce: unhex(&fields["nonce"]).try_into().unwrap(),
            limits: limits_of(&fields["limits"]),
        }
        .encode(&mut out),
        "CHALLENGE" => Challenge {
            version: number(&fields["version"]) as u16,
            features: number(&fields["features"]),
            instance: unhex(&fields["instance"]).try_into().unwrap(),
            nonce: unhex(&fields["nonce"]).try_into().unwrap(),
            limits: limits_of(&fields["limits"]),
            proof: proof_of(&fields["proof"]),
        }
        .encode(&mut out),
        "PROOF" => proof_of(&fields["proof"]).encode(&mut out),
        "READY" => Ready.encode(&mut out),
        "REFUSED" => {
            let code = RefusalCode::from_code(number(&fields["code"]) as u16);
            Refused { code, reason: text("reason").unwrap() }.encode(&mut out);
        }
        kind @ ("PING" | "PONG") => {
            let opaque = u64::from_be_bytes(unhex(&fields["opaque"]).try_into().unwrap());
            match kind {
                "PING" => Ping { opaque }.encode(&mut out),
                _ => Pong { opaque }.encode(&mut out),
            }
        }
        "GOAWAY" => GoAway { reason: text("reason").unwrap() }.encode(&mut out),
        "CREDIT" => Credit { bytes: number(&fields["bytes"]) as u32 }.encode(id, &mut out),
        "OPEN" => assert!(open_of(fields, |open| {
            let connection = connection_of(fields);
            Open { connection, ..open.clone() }.encode(id, 1 << 20, &mut out)
        })),
        "AUTH" => {
            assert!(open_of(fields, |open| Auth::encode(open, id, &mut out)));
            for credential in fields["credentials"].as_array().unwrap() {
                let code = number(&credential["carrier"]) as u8;
                let carrier =
                    *CredentialCarrier::ALL.iter().find(|known| **known as u8 == code).unwrap();
                let name = credential["name"].as_str().unwrap();
                let token = credential["token"].as_str().unwrap().as_bytes();
                assert!(Credential { carrier, name, token }.append_to(&mut out));
            }
            if let Some(connection) = connection_of(fields) {
                Auth::append_connection(connection, 0, &mut out);
            }
        }
        "ACCEPT" => {
            let accept = Accept {
                subject: text("subject").unwrap(),
                token_id: text("token_id"),
                issued_at: fields["issued_at_ms"].as_u64().map(UnixTime::from_millis),
                expires: fields["expires_ms"].as_u64().map(UnixTime::from_millis),
                claims: text("claims").unwrap_or_default().as_bytes(),
            };
            assert!(accept.encode(id, &mut out));
        }
        "REJECT" => {
            let label = text("cause").unwrap();
            let reject = Reject {
                cause: *Reject::CAUSES.iter().find(|cause| cause.label() == label).unwrap(),
                retry_after_ms: number(&fields["retry_after_ms"]) as u32,
                message: text("message").unwrap(),
            };
            assert!(reject.encode(id, &mut out));
        }
        "DATA" => {
            let flag = |name: &str, bit| if fields[name] == true { bit } else { 0 };
            let flags = flag("text", data_flags::TEXT)
                | flag("first", data_flags::FIRST)
                | flag("fin", data_flags::FIN);
            encode_data(id, flags, &unhex(&fields["payload"]), &mut out);
        }
        "CLOSE" => Close {
            by: match text("by").unwrap() {
                "client" => Closer::Client,
                "gateway" => Closer::Gateway,
                _ => Closer::Backend,
            },
            label: text("cause").unwrap(),
            code: number(&fields["code"]) as u16,
            reason: text("reason").unwrap(),
        }
        .encode(id, &mut out),
        "REAUTH" => {
            let claims = text("claims").unwrap_or_default().as_bytes();
            let expires = fields["expires_ms"].as_u64().map(UnixTime::from_millis);
            let (subject, token_id) = (text("subject"), text("token_id"));
            let reauth = Reauth { subject, token_id, expires, claims };
            assert!(reauth.encode(id, 1 << 20, &mut out));
        }
        "EXPIRE" => {
            let expires = UnixTime::from_millis(number(&fields["expires_ms"]));
            Expire { expires }.encode(id, &mut out);
        }
        "REVOKE" => {
            let before = fields["issued_before_ms"].as_u64().map(UnixTime::from_millis);
            let target = Target::new(text("subject"), text("token_id"), before).unwrap();
            let lapses = UnixTime::from_millis(number(&fields["lapses_ms"]));
            Revocation { target, lapses }.encode(&mut out);
        }
        kind => panic!("no encoder for {kind}"),
    }
    out
}

fn connection_of(fields: &Value) -> Option<u64> {
    let bytes = fields.get("connection").map(unhex)?;
    Some(u64::from_be_bytes(bytes.try_into().unwrap()))
}

/// What OPEN and AUTH have in common, as `encode` takes it.
fn open_of(fields: &Value, encode: impl FnOnce(&Open<'_>) -> bool) -> bool {
    let text = |name: &str| fields[name].as_str();
    let headers: Vec<(&str, &[u8])> = fields["headers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap().as_bytes()))
        .collect();
    let open = Open {
        subject: text("subject"),
        token_id: text("token_id"),
        expires: fields["expires_ms"].as_u64().map(UnixTime::from_millis),
        claims: text("claims").unwrap_or_default().as_bytes(),
        path: text("path").unwrap(),
        route: number(&fields["route"]) as u16,
        route_name: text("route_name").unwrap_or_default(),
        remote: text("remote").map(|remote| remote.parse().unwrap()),
        subprotocol: text("subprotocol"),
        origin: text("origin"),
        headers: OpenHeaders::Pairs(&headers),
        credit: fields["credit"].as_u64().map(|credit| credit as u32),
        connection: None,
    };
    encode(&open)
}

/// What a frame says, in the words of the vectors.
fn decode(frame: &Frame<'_>) -> Result<Value, LinkError> {
    let payload = frame.payload;
    Ok(match frame.header.kind {
        Kind::Hello => {
            let hello = Hello::decode(payload)?;
            json!({
                "version_min": hello.version_min, "version_max": hello.version_max,
                "features": hello.features, "instance": hex(&hello.instance),
                "epoch": hello.epoch, "worker": hello.worker, "link": hello.link,
                "authenticated": hello.authenticated, "nonce": hex(&hello.nonce),
                "limits": limits_json(&hello.limits),
            })
        }
        Kind::Challenge => {
            let challenge = Challenge::decode(payload)?;
            json!({
                "version": challenge.version, "features": challenge.features,
                "authenticated": challenge.proof != Proof::Absent,
                "instance": hex(&challenge.instance), "nonce": hex(&challenge.nonce),
                "limits": limits_json(&challenge.limits), "proof": proof_hex(&challenge.proof),
            })
        }
        Kind::Proof => json!({ "proof": proof_hex(&Proof::decode(payload)?) }),
        Kind::Ready => json!({}),
        Kind::Refused => {
            let refused = Refused::decode(payload)?;
            json!({ "code": refused.code.code(), "reason": refused.reason })
        }
        Kind::Ping => json!({ "opaque": hex(&Ping::decode(payload)?.opaque.to_be_bytes()) }),
        Kind::Pong => json!({ "opaque": hex(&Pong::decode(payload)?.opaque.to_be_bytes()) }),
        Kind::GoAway => json!({ "reason": GoAway::decode(payload)?.reason }),
        Kind::Credit => json!({ "bytes": Credit::decode(payload)?.bytes }),
        Kind::Open => decode_open(&Open::decode(payload)?),
        Kind::Data => json!({
            "payload": hex(payload), "text": frame.header.flags & data_flags::TEXT != 0,
            "first": frame.header.flags & data_flags::FIRST != 0,
            "fin": frame.header.flags & data_flags::FIN != 0,
        }),
        Kind::Close => {
            let close = Close::decode(payload)?;
            let by = format!("{:?}", close.by).to_lowercase();
            json!({ "by": by, "cause": close.label, "code": close.code, "reason": close.reason })
        }
        Kind::Auth => {
            let auth = Auth::decode(payload)?;
            let mut fields = decode_open(&auth.open);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let credentials = auth.credentials().map(
                |c| json!({ "carrier": c.carrier as u8, "name": c.name, "token": text(c.token) }),
            );
            fields["credentials"] = credentials.collect();
            fields
        }
        Kind::Accept => {
            let identity = Accept::decode(payload)?;
            let mut fields = json!({ "subject": identity.subject() });
            let mut set = |name: &str, value: Option<Value>| {
                if let Some(value) = value {
                    fields[name] = value;
                }
            };
            set("token_id", identity.token_id().map(Value::from));
            set("expires_ms", identity.expires().map(|at| at.as_millis().into()));
            set("issued_at_ms", identity.issued_at().map(|at| at.as_millis().into()));
            let claims = std::str::from_utf8(identity.claims()).unwrap();
            set("claims", (!claims.is_empty()).then(|| claims.into()));
            fields
        }
        Kind::Reject => {
            let Reject { cause, retry_after_ms, message } = Reject::decode(payload)?;
            json!({ "cause": cause.label(), "retry_after_ms": retry_after_ms, "message": message })
        }
        Kind::Reauth => {
            let reauth = Reauth::decode(payload)?;
            let claims = std::str::from_utf8(reauth.claims).ok().filter(|text| !text.is_empty());
            present([
                ("subject", reauth.subject.map(Value::from)),
                ("token_id", reauth.token_id.map(Value::from)),
                ("expires_ms", reauth.expires.map(|at| at.as_millis().into())),
                ("claims", claims.map(Value::from)),
            ])
        }
        Kind::Expire => json!({ "expires_ms": Expire::decode(payload)?.expires.as_millis() }),
        Kind::Revoke => {
            let Revocation { target, lapses } = Revocation::decode(payload)?;
            present([
                ("lapses_ms", Some(lapses.as_millis().into())),
                ("subject", target.subject().map(Value::from)),
                ("token_id", target.token_id().map(Value::from)),
                ("issued_before_ms", target.issued_before().map(|at| at.as_millis().into())),
            ])
        }
        kind => return Err(LinkError::Unexpected { kind }),
    })
}

/// An object of the members that are there.
fn present<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    let there = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect())
}

fn decode_open(open: &Open<'_>) -> Value {
    let mut fields = json!({ "path": open.path, "route": open.route });
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields[name] = value;
        }
    };
    set("subject", open.subject.map(Value::from));
    set("token_id", open.token_id.map(Value::from));
    set("expires_ms", open.expires.map(|expires| expires.as_millis().into()));
    let claims = std::str::from_utf8(open.claims).unwrap();
    set("claims", (!claims.is_empty()).then(|| claims.into()));
    set("route_name", (!open.route_name.is_empty()).then(|| open.route_name.into()));
    set("remote", open.remote.map(|remote| remote.to_string().into()));
    set("subprotocol", open.subprotocol.map(Value::from));
    set("origin", open.origin.map(Value::from));
    let headers: Vec<Value> = open
        .headers
        .iter()
        .map(|(name, value)| json!([name, std::str::from_utf8(value).unwrap()]))
        .collect();
    set("headers", (!headers.is_empty()).then(|| headers.into()));
    set("credit", open.credit.map(Value::from));
    set("connection", open.connection.map(|it| format!("{it:016x}").into()));
    fields
}

fn only_frame(bytes: &[u8]) -> Result<(FrameHeader, Vec<u8>), LinkError> {
    let mut input = bytes;
    let mut reader = LinkReader::new(PAYLOAD_MAX as u32);
    let frame = reader.next(&mut input)?.expect("a whole frame");
    assert!(input.is_empty(), "one frame only");
    Ok((frame.header, frame.payload.to_vec()))
}

#[test]
fn every_vector_decodes_to_its_fields_and_encodes_to_its_bytes() {
    let vectors = vectors();
    let frames = vectors["frames"].as_array().unwrap();
    assert!(frames.len() >= 25);
    for vector in frames {
        let name = &vector["name"];
        let bytes = unhex(&vector["hex"]);
        let (header, payload) = only_frame(&bytes).unwrap();
        let session = &vector["session"];
        assert_eq!(u64::from(header.session.slot), number(&session["slot"]), "{name}");
        assert_eq!(u64::from(header.session.generation), number(&session["generation"]), "{name}");
        assert_eq!(u64::from(header.flags), number(&vector["flags"]), "{name}");
        let found = decode(&Frame { header, payload: &payload }).unwrap();
        assert_eq!(found, vector["fields"], "{name}");
        assert_eq!(hex(&encode(vector)), hex(&bytes), "{name}");
    }
}

#[test]
fn every_invalid_vector_is_refused_and_optional_fields_are_skipped() {
    let vectors = vectors();
    for vector in vectors["invalid"].as_array().unwrap() {
        let refused = only_frame(&unhex(&vector["hex"]))
            .and_then(|(header, payload)| decode(&Frame { header, payload: &payload }));
        assert!(refused.is_err(), "{}: {refused:?}", vector["name"]);
    }
    for vector in vectors["skipped"].as_array().unwrap() {
        let read = |name: &str| {
            let (header, payload) = only_frame(&unhex(&vector[name])).unwrap();
            decode(&Frame { header, payload: &payload }).unwrap()
        };
        assert_eq!(read("hex"), read("same_as"), "{}", vector["name"]);
    }
}

#[test]
fn the_vectors_proofs_are_ours_and_nothing_else_passes() {
    let vectors = vectors();
    for handshake in vectors["handshakes"].as_array().unwrap() {
        let part = |name: &str| unhex(&handshake[name])[HEADER_BYTES..].to_vec();
        let (hello, challenge, proof) = (part("hello"), part("challenge"), part("proof"));
        let backend = Challenge::decode(&challenge).unwrap().proof;
        let gateway = Proof::decode(&proof).unwrap();
        let key = (!handshake["key"].is_null()).then(|| Secret::new(unhex(&handshake["key"])));
        let key = key.as_ref();
        let other = Secret::new(vec![9; 32]);
        assert!(backend.verify_backend(key, &hello, &challenge));
        assert!(gateway.verify_gateway(key, &hello, &challenge));
        assert!(!backend.verify_backend(Some(&other), &hello, &challenge));
        assert!(!gateway.verify_gateway(Some(&other), &hello, &challenge));
        let Some(key) = key else { continue };
        assert!(!backend.verify_backend(None, &hello, &challenge));
        assert!(!Proof::Absent.verify_gateway(Some(key), &hello, &challenge));
        assert!(!backend.verify_gateway(Some(key), &hello, &challenge), "no reflection");
        assert_eq!(Proof::of_backend(key, &hello, &challenge), backend);
        assert_eq!(Proof::of_gateway(key, &hello, &challenge), gateway);
        for at in 0..hello.len() {
            let mut altered = hello.clone();
            altered[at] ^= 1;
            assert!(!backend.verify_backend(Some(key), &altered, &challenge), "byte {at}");
        }
        for at in 0..challenge.len() {
            let mut altered = challenge.clone();
            altered[at] ^= 1;
            assert!(!gateway.verify_gateway(Some(key), &hello, &altered), "byte {at}");
        }
    }
}

#[test]
fn a_later_versions_hello_may_be_longer() {
    let vectors = vectors();
    let mut payload = unhex(&vectors["handshakes"][0]["hello"])[HEADER_BYTES..].to_vec();
    payload[7] = 2;
    payload.extend_from_slice(b"fields of version 2");
    assert_eq!(Hello::decode(&payload).unwrap().version_max, 2);
}

#[test]
fn reasons_are_cut_between_characters_and_what_is_too_long_is_not_sent() {
    let mut out = Vec::new();
    let reason = "ä".repeat(100);
    Close { by: Closer::Backend, label: "", code: 4000, reason: &reason }
        .encode(SessionId::new(1, 1), &mut out);
    assert_eq!(Close::decode(&out[HEADER_BYTES..]).unwrap().reason, "ä".repeat(61));
    out.truncate(3);
    let long = "x".repeat(65_536);
    assert!(!Open::new(&long).encode(SessionId::new(1, 1), u32::MAX, &mut out));
    assert!(!Open::new("/room").encode(SessionId::new(1, 1), 12, &mut out));
    assert_eq!(out.len(), 3, "what did not fit leaves no trace");
    assert!(Open::new("/room").encode(SessionId::new(1, 1), 13, &mut out));
}

#[test]
fn verdicts_out_of_their_bounds_are_not_sent() {
    let id = SessionId::new(1, 1);
    let accept =
        Accept { subject: "ada", token_id: None, issued_at: None, expires: None, claims: &[] };
    let long = "x".repeat(1025);
    let mut out = Vec::new();
    for wrong in [
        Accept { subject: "", ..accept.clone() },
        Accept { subject: &long, ..accept.clone() },
        Accept { token_id: Some(""), ..accept.clone() },
        Accept { token_id: Some(&long), ..accept.clone() },
        Accept { claims: &[0; 8193], ..accept.clone() },
    ] {
        assert!(!wrong.encode(id, &mut out));
    }
    for wrong in [
        Reject::new(Cause::Idle),
        Reject { retry_after_ms: 1, ..Reject::new(Cause::TokenExpired) },
        Reject { retry_after_ms: 3_600_001, ..Reject::new(Cause::RateLimited) },
    ] {
        assert!(!wrong.encode(id, &mut out));
    }
    assert!(out.is_empty());
    assert!(Auth::encode(&Open::new("/"), id, &mut out));
    let whole = out.len();
    let long = vec![b'x'; 65_534];
    let credential = Credential { carrier: CredentialCarrier::Cookie, name: "s", token: &long };
    assert!(!credential.append_to(&mut out), "over its length field");
    let name = "n".repeat(256);
    let credential = Credential { carrier: CredentialCarrier::Cookie, name: &name, token: b"t" };
    assert!(!credential.append_to(&mut out), "a name that has no length");
    assert_eq!(out.len(), whole, "what did not fit leaves no trace");
}

#[test]
fn kinds_have_one_number_each_and_reserved_ones_a_feature() {
    for code in 0..=255u8 {
        assert!(Kind::from_code(code).is_none_or(|kind| kind as u8 == code));
    }
    for kind in Kind::ALL {
        assert_eq!(Kind::from_code(*kind as u8), Some(*kind));
        assert_eq!(kind.feature() != 0, *kind as u8 >= 0x30, "{kind:?}");
    }
    for code in RefusalCode::ALL {
        assert_eq!(RefusalCode::from_code(code.code()), *code);
        assert!(code.hint().len() <= REASON_MAX);
    }
    for cause in crate::protocol::cause::Cause::ALL {
        let close = Close { by: Closer::Gateway, label: cause.label(), code: 0, reason: "" };
        let mut out = Vec::new();
        close.encode(SessionId::new(0, 0), &mut out);
        assert_eq!(Close::decode(&out[HEADER_BYTES..]).unwrap().cause(), Some(*cause));
    }
}

/// Every kind that has a codec.
const CODED: &[Kind] = &[
    Kind::Hello,
    Kind::Challenge,
    Kind::Proof,
    Kind::Ready,
    Kind::Refused,
    Kind::Ping,
    Kind::Pong,
    Kind::GoAway,
    Kind::Credit,
    Kind::Open,
    Kind::Data,
    Kind::Close,
    Kind::Auth,
    Kind::Accept,
    Kind::Reject,
    Kind::Reauth,
    Kind::Expire,
    Kind::Revoke,
];

proptest! {
    #[test]
    fn opens_come_back_as_they_went(
        subject in prop::option::of(".{0,40}"),
        claims in prop::collection::vec(any::<u8>(), 0..200),
        path in "/.{0,60}",
        remote in prop::option::of((any::<[u8; 16]>(), any::<u16>(), any::<bool>())),
        headers in prop::collection::vec(
            ("[a-z0-9-]{1,20}", prop::collection::vec(any::<u8>(), 0..30)), 0..5),
        expires in prop::option::of(any::<u64>()),
        credit in prop::option::of(any::<u32>()),
        route in any::<u16>(),
        slot in 0..u32::MAX,
        generation in 0u32..1 << 24,
    ) {
        let headers: Vec<(&str, &[u8])> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let open = Open {
            subject: subject.as_deref(),
            claims: &claims,
            expires: expires.map(UnixTime::from_millis),
            remote: remote.map(|(ip, port, is_v6)| {
                let ip = if is_v6 { IpAddr::from(ip) } else { IpAddr::from([ip[0], ip[1], 0, 9]) };
                SocketAddr::new(ip, port)
            }),
            headers: OpenHeaders::Pairs(&headers),
            credit,
            route,
            ..Open::new(&path)
        };
        let id = SessionId::new(slot, generation);
        let mut out = Vec::new();
        prop_assert!(open.encode(id, 1 << 20, &mut out));
        let (header, payload) = only_frame(&out).unwrap();
        prop_assert_eq!(header.session, id);
        prop_assert_eq!(Open::decode(&payload).unwrap(), open);
        for cut in 0..payload.len() {
            let _ = Open::decode(&payload[..cut]);
        }
    }

    #[test]
    fn payloads_of_chance_never_panic_and_what_decodes_encodes_to_itself(
        kind in prop::sample::select(CODED),
        start in prop::sample::select(vec![&b""[..], b"PTCL\0\x01\0\x01", b"\x05\0\x01/", b"\0\0"]),
        rest in prop::collection::vec(any::<u8>(), 0..150),
    ) {
        let payload = [start, &rest].concat();
        let session =
            if kind.scope() == Scope::Session { SessionId::new(3, 4) } else { SessionId::LINK };
        let header = FrameHeader { length: payload.len() as u32, kind, flags: 0, session };
        let _ = FrameHeader::parse(&header.format());
        let is_canonical =
            matches!(kind, Kind::Close | Kind::Refused | Kind::Ping | Kind::Credit)
                || matches!(kind, Kind::Reject | Kind::Expire);
        if let Ok(fields) = decode(&Frame { header, payload: &payload }) && is_canonical {
            let name = format!("{kind:?}").to_uppercase();
            let vector = json!({
                "kind": name, "fields": fields,
                "session": { "slot": session.slot, "generation": session.generation },
            });
            prop_assert_eq!(&encode(&vector)[HEADER_BYTES..], &payload[..]);
        }
    }

    #[test]
    fn headers_of_chance_parse_to_themselves_or_not_at_all(bytes in any::<[u8; 12]>()) {
        if let Ok(header) = FrameHeader::parse(&bytes) {
            prop_assert_eq!(header.format(), bytes);
        }
    }
}
