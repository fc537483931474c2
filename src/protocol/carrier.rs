//! Where a client may carry its token, and finding it there without allocating.
//!
//! A carrier that holds something broken refuses the request instead of giving way to the next
//! one: two parties must never read different tokens from one request.

use crate::protocol::base64url;
use crate::protocol::cause::Cause;
use crate::protocol::compact_json;
use crate::protocol::http_upgrade::{UpgradeRequest, carries_token, percent_byte, trim};
use crate::protocol::jwt::TOKEN_MAX;

/// Entries of Sec-WebSocket-Protocol that hold a token in base64 after them.
const BEARER_ENTRIES: [&str; 2] = ["base64url.bearer.phx.", "base64url.bearer.authorization."];

/// Header fields that are no place for a token, or have a carrier of their own.
const RESERVED_HEADERS: &[&str] = &[
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "origin",
    "transfer-encoding",
    "upgrade",
];

/// Where a client may carry its token, as configured in `auth.carriers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `Authorization: Bearer TOKEN`.
    Authorization,
    /// `Sec-WebSocket-Protocol: …, base64url.bearer.phx.TOKEN64` (or `.authorization.`).
    Subprotocol,
    /// A cookie with this name.
    Cookie(String),
    /// A header field with this name, lower case.
    Header(String),
    /// A query parameter with this name.
    Query(String),
    /// The first message is the token, as it stands.
    FirstMessage,
    /// The first message is JSON; the token is the string at this path of member names.
    FirstMessageJson(Vec<String>),
}

/// A buffer for tokens that must be decoded, made once per worker.
pub struct CarrierScratch(Box<[u8]>);

impl Default for CarrierScratch {
    fn default() -> Self {
        Self::new()
    }
}

impl CarrierScratch {
    /// Allocates the buffer.
    pub fn new() -> Self {
        CarrierScratch(vec![0; TOKEN_MAX].into_boxed_slice())
    }
}

/// A token as found, of 1 to [`TOKEN_MAX`] bytes. It has no `Debug`.
#[derive(Clone, Copy)]
pub struct Found<'t> {
    token: &'t [u8],
    carrier: usize,
}

impl<'t> Found<'t> {
    /// The token. Never format it.
    pub fn token(&self) -> &'t [u8] {
        self.token
    }

    /// Which carrier held it, as an index into the list that was searched.
    pub fn carrier(&self) -> usize {
        self.carrier
    }
}

/// Where a token lies.
enum Place<'b> {
    Request(&'b [u8]),
    /// This many bytes at the start of the scratch buffer.
    Scratch(usize),
}

impl Carrier {
    /// Reads a carrier as configured.
    ///
    /// # Errors
    /// What is wrong, and what may be written instead.
    pub fn parse(text: &str) -> Result<Carrier, String> {
        let (kind, name) = match text.split_once(':') {
            Some((kind, name)) => (kind, Some(name)),
            None => (text, None),
        };
        match (kind, name) {
            ("authorization", None) => Ok(Carrier::Authorization),
            ("subprotocol", None) => Ok(Carrier::Subprotocol),
            ("first-message", None) => Ok(Carrier::FirstMessage),
            ("first-message", Some(path)) => {
                if path.split('.').any(str::is_empty) {
                    return Err(format!("\"{text}\": write member names with dots between them"));
                }
                Ok(Carrier::FirstMessageJson(path.split('.').map(str::to_owned).collect()))
            }
            ("cookie", Some(name)) if is_name(name) => Ok(Carrier::Cookie(name.into())),
            ("query", Some(name)) if is_name(name) => Ok(Carrier::Query(name.into())),
            ("header", Some(name)) if is_name(name) => {
                let name = name.to_ascii_lowercase();
                if name.starts_with("sec-") || RESERVED_HEADERS.contains(&name.as_str()) {
                    return Err(format!("the header \"{name}\" cannot be a token's own"));
                }
                Ok(Carrier::Header(name))
            }
            ("cookie" | "query" | "header", Some(name)) => {
                Err(format!("\"{name}\" is not a name of letters, digits and -_.!#$&'*+^`|~"))
            }
            ("cookie" | "query" | "header", None) => {
                Err(format!("\"{kind}\" needs a name: write \"{kind}:NAME\""))
            }
            ("authorization" | "subprotocol", Some(_)) => {
                Err(format!("\"{kind}\" takes no name: write \"{kind}\""))
            }
            _ => Err(format!(
                "\"{text}\" is not a carrier: write authorization, subprotocol, cookie:NAME, \
                 header:NAME, query:NAME, first-message or first-message:path.to.member"
            )),
        }
    }

    /// Whether the token comes in the first message, after the 101.
    pub fn is_first_message(&self) -> bool {
        matches!(self, Carrier::FirstMessage | Carrier::FirstMessageJson(_))
    }

    /// Finds the token that this carrier holds. An empty one counts as none, but for
    /// `Authorization: Bearer`.
    fn locate<'b>(
        &self,
        request: &UpgradeRequest<'_, 'b>,
        scratch: &mut [u8],
    ) -> Result<Option<Place<'b>>, Cause> {
        let place = match self {
            Carrier::Authorization => in_authorization(request)?,
            Carrier::Subprotocol => in_subprotocols(request, scratch)?,
            Carrier::Cookie(name) => only(cookies(request, name))?.map(Place::Request),
            Carrier::Header(name) => {
                only(request.values(name))?.map(without_scheme).map(Place::Request)
            }
            Carrier::Query(name) => in_query(request, name, scratch)?,
            Carrier::FirstMessage | Carrier::FirstMessageJson(_) => None,
        };
        match place {
            Some(Place::Request(token)) if token.len() > TOKEN_MAX => Err(Cause::TokenMalformed),
            Some(Place::Request([]) | Place::Scratch(0)) => Ok(None),
            place => Ok(place),
        }
    }
}

/// The token of the first carrier in the list that holds one; `None` when none does.
///
/// # Errors
/// When a carrier before that one holds two tokens, [`Cause::TokenRepeated`]; something broken, or
/// one over [`TOKEN_MAX`] bytes, [`Cause::TokenMalformed`].
pub fn find<'t>(
    carriers: &[Carrier],
    request: &UpgradeRequest<'_, 't>,
    scratch: &'t mut CarrierScratch,
) -> Result<Option<Found<'t>>, Cause> {
    let mut located = None;
    for (index, carrier) in carriers.iter().enumerate() {
        located = carrier.locate(request, &mut scratch.0)?.map(|place| (index, place));
        if located.is_some() {
            break;
        }
    }
    Ok(located.map(|(carrier, place)| match place {
        Place::Request(token) => Found { token, carrier },
        Place::Scratch(length) => Found { token: &scratch.0[..length], carrier },
    }))
}

/// The token in a first message, for the first-message carriers.
///
/// # Errors
/// [`Cause::TokenMissing`] when the message holds none, [`Cause::TokenMalformed`] when it is not
/// the JSON that the carrier asks for, or the token is over [`TOKEN_MAX`] bytes.
pub fn first_message_token<'t>(
    carrier: &Carrier,
    text: &'t [u8],
    scratch: &'t mut CarrierScratch,
) -> Result<&'t [u8], Cause> {
    let token = match carrier {
        Carrier::FirstMessageJson(path) => compact_json::string_at(text, path, &mut scratch.0)
            .map_err(|_| Cause::TokenMalformed)?
            .map_or(b"".as_slice(), str::as_bytes),
        Carrier::FirstMessage => without_line_end(text),
        _ => b"",
    };
    let token = without_scheme(token);
    match token.len() {
        0 => Err(Cause::TokenMissing),
        1..=TOKEN_MAX => Ok(token),
        _ => Err(Cause::TokenMalformed),
    }
}

/// The decoded value of the one query parameter of this name, in `out`; `None` when there is
/// none, more than one, or one that does not fit.
pub fn query_parameter<'o>(
    request: &UpgradeRequest<'_, '_>,
    name: &str,
    out: &'o mut [u8],
) -> Option<&'o [u8]> {
    match in_query(request, name, out) {
        Ok(Some(Place::Scratch(length))) => Some(&out[..length]),
        _ => None,
    }
}

/// Appends path and query as sent, but without the query parameters of these names, which hold
/// secrets: for backends and logs.
pub fn redacted_path_and_query<'c>(
    request: &UpgradeRequest<'_, '_>,
    secrets: impl Iterator<Item = &'c str> + Clone,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(request.path().as_bytes());
    redacted_query(request, secrets, out);
}

/// Appends `?` and the query, without the parameters of these names; nothing if none is left.
pub fn redacted_query<'c>(
    request: &UpgradeRequest<'_, '_>,
    secrets: impl Iterator<Item = &'c str> + Clone,
    out: &mut Vec<u8>,
) {
    let mut separator = b'?';
    for parameter in request.query().into_iter().flat_map(|query| query.split('&')) {
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        if !secrets.clone().any(|secret| decodes_to(name, secret)) {
            out.push(separator);
            out.extend_from_slice(parameter.as_bytes());
            separator = b'&';
        }
    }
}

/// A token without the `Bearer ` that many clients put in front of it wherever it goes.
fn without_scheme(token: &[u8]) -> &[u8] {
    match token.split_first_chunk::<7>() {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"bearer ") => trim(rest),
        _ => token,
    }
}

/// A message without the one line end that tools add which send lines.
fn without_line_end(text: &[u8]) -> &[u8] {
    let ends: [&[u8]; 2] = [b"\r\n", b"\n"];
    ends.iter().find_map(|end| text.strip_suffix(*end)).unwrap_or(text)
}

/// RFC 6750 §2.1. Another scheme is not a token; the upgrade refused a repeated field already.
fn in_authorization<'b>(request: &UpgradeRequest<'_, 'b>) -> Result<Option<Place<'b>>, Cause> {
    let Some(value) = request.header("authorization") else { return Ok(None) };
    let end = value.iter().position(|b| b" \t".contains(b)).unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(None);
    }
    let token = trim(rest);
    if token.is_empty() || token.iter().any(|b| b" \t,".contains(b)) {
        return Err(Cause::TokenMalformed);
    }
    Ok(Some(Place::Request(token)))
}

fn in_subprotocols<'b>(
    request: &UpgradeRequest<'_, 'b>,
    scratch: &mut [u8],
) -> Result<Option<Place<'b>>, Cause> {
    let entries = request.subprotocols().filter(|entry| carries_token(entry));
    let Some(entry) = only(entries)? else { return Ok(None) };
    let text = BEARER_ENTRIES.iter().find_map(|start| entry.strip_prefix(start));
    let token = text.and_then(|text| base64url::decode_either(text.as_bytes(), scratch));
    match token {
        Some(token) if !token.is_empty() => Ok(Some(Place::Scratch(token.len()))),
        _ => Err(Cause::TokenMalformed),
    }
}

fn in_query<'b>(
    request: &UpgradeRequest<'_, 'b>,
    name: &str,
    scratch: &mut [u8],
) -> Result<Option<Place<'b>>, Cause> {
    let parameters = request.query().into_iter().flat_map(|query| query.split('&'));
    let values = parameters.filter_map(|parameter| {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        decodes_to(key, name).then_some(value)
    });
    let Some(value) = only(values)? else { return Ok(None) };
    let mut length = 0;
    for byte in decoded(value) {
        *scratch.get_mut(length).ok_or(Cause::TokenMalformed)? = byte;
        length += 1;
    }
    Ok(Some(Place::Scratch(length)))
}

/// Values of the cookies of this name (RFC 6265 §4.2.1), without their quotes.
fn cookies<'h, 'b, 'n>(
    request: &UpgradeRequest<'h, 'b>,
    name: &'n str,
) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b, 'n> {
    let pairs = request.values("cookie").flat_map(|value| value.split(|&b| b == b';'));
    pairs.filter_map(move |pair| {
        let at = pair.iter().position(|&b| b == b'=')?;
        let value = trim(&pair[at + 1..]);
        let bare = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
        (trim(&pair[..at]) == name.as_bytes()).then_some(bare.unwrap_or(value))
    })
}

/// The value of the one cookie of this name; `None` when there is none, or more than one.
pub fn cookie<'b>(request: &UpgradeRequest<'_, 'b>, name: &str) -> Option<&'b [u8]> {
    only(cookies(request, name)).ok().flatten()
}

/// The one item, if any. Of two, an attacker may have planted either (RFC 6265 §8.6).
fn only<T>(mut items: impl Iterator<Item = T>) -> Result<Option<T>, Cause> {
    let first = items.next();
    if items.next().is_some() { Err(Cause::TokenRepeated) } else { Ok(first) }
}

/// The bytes that percent-encoded text stands for. `+` stays: tokens may contain it, and
/// browsers' own encoders write `%20` and `%2B`.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (byte, length) = match percent_byte(rest) {
            Some(byte) => (byte, 3),
            None => (*rest.first()?, 1),
        };
        rest = &rest[length..];
        Some(byte)
    })
}

fn decodes_to(text: &str, name: &str) -> bool {
    decoded(text).eq(name.bytes())
}

/// A token of RFC 9110 §5.6.2 without `%`, which would need encoding in a query.
fn is_name(name: &str) -> bool {
    let symbols = b"!#$&'*+-.^_`|~";
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || symbols.contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http_upgrade::{HeadLimits, NO_FIELDS, Request, parse};

    const ALL: [&str; 5] =
        ["authorization", "subprotocol", "cookie:session", "header:x-token", "query:token"];

    fn with_request<T>(target: &str, fields: &str, judge: impl Fn(&UpgradeRequest) -> T) -> T {
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             {fields}\r\n"
        );
        let mut room = NO_FIELDS;
        let limits = HeadLimits { head_max: 1 << 16, ..HeadLimits::default() };
        match parse(head.as_bytes(), &mut room, &limits) {
            Ok(Request::Upgrade(request)) => judge(&request),
            Ok(Request::Plain(_)) => panic!("an upgrade"),
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    fn found(carriers: &[&str], target: &str, fields: &str) -> Result<Option<String>, Cause> {
        let carriers: Vec<_> = carriers.iter().map(|text| Carrier::parse(text).unwrap()).collect();
        with_request(target, fields, |request| {
            let mut scratch = CarrierScratch::new();
            let found = find(&carriers, request, &mut scratch)?;
            Ok(found.map(|found| format!("{}:{}", found.carrier(), found.token().escape_ascii())))
        })
    }

    #[test]
    fn tokens_are_found_exactly() {
        const BAD: Result<Option<&str>, Cause> = Err(Cause::TokenMalformed);
        const TWICE: Result<Option<&str>, Cause> = Err(Cause::TokenRepeated);
        let long = format!("X-Token: {}\r\n", "a".repeat(TOKEN_MAX + 1));
        let long_query = format!("/?token={}", "%61".repeat(TOKEN_MAX + 1));
        type Row<'r> = (&'r str, &'r str, Result<Option<&'r str>, Cause>);
        let table: &[Row<'_>] = &[
            ("/", "", Ok(None)),
            ("/", "Authorization: Bearer abc\r\n", Ok(Some("0:abc"))),
            ("/", "authorization: bEARER \t abc\r\n", Ok(Some("0:abc"))),
            ("/", "Authorization: Bearer\r\n", BAD),
            ("/", "Authorization: Bearer  \r\n", BAD),
            ("/", "Authorization: Bearer a b\r\n", BAD),
            ("/", "Authorization: Bearer a, Bearer b\r\n", BAD),
            ("/", "Authorization: Basic abc\r\n", Ok(None)),
            ("/", "Authorization: Bearerabc\r\n", Ok(None)),
            ("/", "Authorization:\r\n", Ok(None)),
            ("/", "X-Token: Bearer abc\r\n", Ok(Some("3:abc"))),
            ("/", "X-Token: bearer  abc\r\n", Ok(Some("3:abc"))),
            ("/", "X-Token: Bearer\r\n", Ok(Some("3:Bearer"))),
            ("/", "X-Token: Bearerabc\r\n", Ok(Some("3:Bearerabc"))),
            ("/", "X-Token: Basic abc\r\n", Ok(Some("3:Basic abc"))),
            ("/", "X-Token: Bearer a\r\nX-Token: Bearer a\r\n", TWICE),
            ("/", "Cookie: session=Bearer abc\r\n", Ok(Some("2:Bearer abc"))),
            ("/?token=q", "Authorization: Basic abc\r\n", Ok(Some("4:q"))),
            ("/?token=q", "Authorization: Bearer abc\r\n", Ok(Some("0:abc"))),
            ("/?token=q", "Authorization: Bearer\r\n", BAD),
            (
                "/",
                "Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.YS5iLmM\r\n",
                Ok(Some("1:a.b.c")),
            ),
            (
                "/",
                "Sec-WebSocket-Protocol: base64url.bearer.authorization.YWJj, x\r\n",
                Ok(Some("1:abc")),
            ),
            (
                "/",
                "Sec-WebSocket-Protocol: base64url.bearer.phx.-_-_\r\n",
                Ok(Some("1:\\xfb\\xff\\xbf")),
            ),
            (
                "/",
                "Sec-WebSocket-Protocol: base64url.bearer.phx.+/+/\r\n",
                Ok(Some("1:\\xfb\\xff\\xbf")),
            ),
            ("/", "Sec-WebSocket-Protocol: base64url.bearer.phx.+/-_\r\n", BAD),
            ("/", "Sec-WebSocket-Protocol: base64url.bearer.phx.YWI=\r\n", BAD),
            ("/", "Sec-WebSocket-Protocol: base64url.bearer.phx.YWJ\r\n", BAD),
            ("/", "Sec-WebSocket-Protocol: base64url.bearer.phx.\r\n", BAD),
            ("/", "Sec-WebSocket-Protocol: base64url.bearer.other.YWJj\r\n", BAD),
            ("/", "Sec-WebSocket-Protocol: base64url.bearer.YWJj\r\n", BAD),
            ("/", "Sec-WebSocket-Protocol: BASE64URL.bearer.phx.YWJj\r\n", BAD),
            (
                "/",
                "Sec-WebSocket-Protocol: base64url.bearer.phx.YWJj, \
                   base64url.bearer.authorization.YWJj\r\n",
                TWICE,
            ),
            ("/", "Sec-WebSocket-Protocol: phoenix\r\n", Ok(None)),
            ("/", "Cookie: session=abc\r\n", Ok(Some("2:abc"))),
            ("/", "Cookie: a=b; session=a=c; xsession=d\r\n", Ok(Some("2:a=c"))),
            ("/", "Cookie: a=b\r\nCookie: session=\"abc\" ;c=d\r\n", Ok(Some("2:abc"))),
            ("/", "Cookie: session=a; session=a\r\n", TWICE),
            ("/", "Cookie: session=a\r\nCookie: session=b\r\n", TWICE),
            ("/", "Cookie: Session=a; session; sessions=b;;=c\r\n", Ok(None)),
            ("/", "Cookie: session=\r\n", Ok(None)),
            ("/", "Cookie: session=%61\r\n", Ok(Some("2:%61"))),
            ("/", "X-TOKEN:  abc \r\n", Ok(Some("3:abc"))),
            ("/", "X-Token: a\r\nx-token: a\r\n", TWICE),
            ("/", "X-Token:\r\n", Ok(None)),
            ("/", &long, BAD),
            ("/?token=abc", "", Ok(Some("4:abc"))),
            ("/?a=1&token=a%2Eb+%2b=&b", "", Ok(Some("4:a.b++="))),
            ("/?tok%65n=abc", "", Ok(Some("4:abc"))),
            ("/?token=a&token=b", "", TWICE),
            ("/?token=a&%74oken=b", "", TWICE),
            ("/?token=&token=b", "", TWICE),
            ("/?token=", "", Ok(None)),
            ("/?token", "", Ok(None)),
            ("/?Token=a&tokens=b", "", Ok(None)),
            ("/token=a", "", Ok(None)),
        ];
        for (target, fields, expected) in table {
            let got = found(&ALL, target, fields);
            let expected = expected.map(|token| token.map(str::to_owned));
            assert_eq!(got, expected, "{target} {fields}");
        }
        let longest = &long_query[.."/?token=".len() + 3 * TOKEN_MAX];
        assert_eq!(found(&ALL, longest, ""), Ok(Some(format!("4:{}", "a".repeat(TOKEN_MAX)))));
        assert_eq!(found(&ALL, &long_query, ""), Err(Cause::TokenMalformed));
    }

    #[test]
    fn only_listed_carriers_are_asked_and_in_their_order() {
        let fields = "Authorization: Bearer a\r\nCookie: session=b\r\nX-Token: c\r\n";
        let found = |carriers: &[&str]| found(carriers, "/?token=d&token=e", fields).unwrap();
        assert_eq!(found(&["cookie:session", "authorization"]), Some("0:b".into()));
        assert_eq!(found(&["cookie:other", "header:X-Token"]), Some("1:c".into()));
        assert_eq!(found(&["first-message", "cookie:other"]), None);
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn carriers_are_read_exactly() {
        let path = |names: &[&str]| {
            Carrier::FirstMessageJson(names.iter().map(|&name| name.to_owned()).collect())
        };
        let table: &[(&str, Result<Carrier, &str>)] = &[
            ("authorization", Ok(Carrier::Authorization)),
            ("subprotocol", Ok(Carrier::Subprotocol)),
            ("cookie:__Host-s", Ok(Carrier::Cookie("__Host-s".into()))),
            ("header:X-Token", Ok(Carrier::Header("x-token".into()))),
            ("query:token", Ok(Carrier::Query("token".into()))),
            ("first-message", Ok(Carrier::FirstMessage)),
            ("first-message:token", Ok(path(&["token"]))),
            ("first-message:payload.token", Ok(path(&["payload", "token"]))),
            ("cookie", Err("write \"cookie:NAME\"")),
            ("query:", Err("is not a name")),
            ("cookie:a b", Err("is not a name")),
            ("cookie:a=b", Err("is not a name")),
            ("header:a:b", Err("is not a name")),
            ("header:Cookie", Err("cannot be")),
            ("header:Sec-WebSocket-Key", Err("cannot be")),
            ("authorization:x", Err("takes no name")),
            ("first-message:", Err("dots")),
            ("first-message:a..b", Err("dots")),
            ("Authorization", Err("is not a carrier")),
            ("bearer", Err("is not a carrier")),
            ("", Err("is not a carrier")),
        ];
        for (text, expected) in table {
            match (Carrier::parse(text), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, *expected),
                (Err(got), Err(part)) => assert!(got.contains(part), "{text}: {got}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn shown_paths_hold_no_token() {
        let secrets = ["token", "t2"];
        let table = [
            ("/ws", "/ws"),
            ("/ws?", "/ws?"),
            ("/ws?a=1&b=%20", "/ws?a=1&b=%20"),
            ("/ws?token=CANARY", "/ws"),
            ("/ws?token", "/ws"),
            ("/ws?a=1&token=CANARY&b", "/ws?a=1&b"),
            ("/ws?token=CANARY&a=1&t2=CANARY", "/ws?a=1"),
            ("/ws?%74%6f%6B%65%6E=CANARY&a", "/ws?a"),
            ("/ws?token=CANARY&token=CANARY", "/ws"),
            ("/ws?tokens=1&xtoken=2", "/ws?tokens=1&xtoken=2"),
        ];
        for (target, expected) in table {
            let out = with_request(target, "", |request| {
                let mut out = Vec::new();
                redacted_path_and_query(request, secrets.into_iter(), &mut out);
                out
            });
            assert_eq!(str::from_utf8(&out), Ok(expected), "{target}");
        }
    }

    #[test]
    fn parameters_are_read_once_or_not_at_all() {
        let table = [
            ("/ws", None),
            ("/ws?other=abc", None),
            ("/ws?csrf=abc", Some("abc")),
            ("/ws?vsn=2.0.0&c%73rf=a%2Db", Some("a-b")),
            ("/ws?csrf=", Some("")),
            ("/ws?csrf", Some("")),
            ("/ws?csrf=abcd", Some("abcd")),
            ("/ws?csrf=abcde", None),
            ("/ws?csrf=abc&csrf=abc", None),
        ];
        for (target, expected) in table {
            with_request(target, "", |request| {
                let mut out = [0; 4];
                let got = query_parameter(request, "csrf", &mut out);
                assert_eq!(got, expected.map(str::as_bytes), "{target}");
            });
        }
    }

    #[test]
    fn first_messages_hold_their_token() {
        let raw = Carrier::FirstMessage;
        let json = Carrier::parse("first-message:payload.token").unwrap();
        let long = "a".repeat(TOKEN_MAX + 1);
        let table: &[(&Carrier, &str, Result<&str, Cause>)] = &[
            (&raw, "a.b.c", Ok("a.b.c")),
            (&raw, " a", Ok(" a")),
            (&raw, "a.b.c\n", Ok("a.b.c")),
            (&raw, "a.b.c\r\n", Ok("a.b.c")),
            (&raw, "a.b.c\n\n", Ok("a.b.c\n")),
            (&raw, "a.b.c\r", Ok("a.b.c\r")),
            (&raw, "Bearer a.b.c\r\n", Ok("a.b.c")),
            (&raw, "bearer a.b.c", Ok("a.b.c")),
            (&raw, "Bearera.b.c", Ok("Bearera.b.c")),
            (&raw, "Bearer ", Err(Cause::TokenMissing)),
            (&raw, "\n", Err(Cause::TokenMissing)),
            (&json, r#"{"payload":{"token":"Bearer a.b"}}"#, Ok("a.b")),
            (&json, r#"{"payload":{"token":"BEARER \u0061"}}"#, Ok("a")),
            (&json, r#"{"payload":{"token":"Basic a"}}"#, Ok("Basic a")),
            (&raw, "", Err(Cause::TokenMissing)),
            (&raw, &long, Err(Cause::TokenMalformed)),
            (&json, r#"{"type":"connection_init","payload":{"token":"a.b"}}"#, Ok("a.b")),
            (&json, r#"{"payload":{"token":"\u0061"}}"#, Ok("a")),
            (&json, r#"{"payload":{"token":""}}"#, Err(Cause::TokenMissing)),
            (&json, r#"{"payload":{"token":1}}"#, Err(Cause::TokenMissing)),
            (&json, r#"{"token":"a"}"#, Err(Cause::TokenMissing)),
            (&json, r#"{"payload":{"token":"a","token":"b"}}"#, Err(Cause::TokenMalformed)),
            (&json, "a.b.c", Err(Cause::TokenMalformed)),
            (&Carrier::Authorization, "a.b.c", Err(Cause::TokenMissing)),
        ];
        for (carrier, text, expected) in table {
            let mut scratch = CarrierScratch::new();
            let got = first_message_token(carrier, text.as_bytes(), &mut scratch);
            assert_eq!(got, expected.map(str::as_bytes), "{text}");
        }
    }
}
