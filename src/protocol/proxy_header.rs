//! The PROXY protocol header, versions 1 and 2, by which a load balancer tells the client's
//! address (the HAProxy project's proxy-protocol.txt).
//!
//! Believe it only from a trusted network, and then require it: a client could write one itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest version 1 header, its CRLF included (proxy-protocol.txt §2.1).
const V1_MAX: usize = 107;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_START: usize = 16;

/// Why a header is refused: close without an answer. The load balancer is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The first bytes are no PROXY header.
    #[error("the connection does not start with a PROXY header")]
    Missing,
    /// A header that breaks the specification.
    #[error("the PROXY header is malformed")]
    Malformed,
    /// A header over its limit.
    #[error("the PROXY header is too long")]
    TooLong,
    /// A valid header for something that is not a TCP connection.
    #[error("the PROXY header does not describe a TCP connection")]
    NotTcp,
}

impl ProxyError {
    /// Every error, in declaration order.
    pub const ALL: &'static [ProxyError] =
        &[ProxyError::Missing, ProxyError::Malformed, ProxyError::TooLong, ProxyError::NotTcp];
}

/// Reads the header at the start of `bytes`. `None`: more bytes are needed. Else how many bytes
/// it has, and the client's address; `LOCAL`, `UNKNOWN` and unix sockets have none, and the
/// connection's own address stands. Extensions such as a client certificate (§2.2) make a version
/// 2 header long: `max` bounds the whole of one.
///
/// # Errors
/// [`ProxyError`], at the first byte that makes the header unacceptable or soon after it.
pub fn parse(bytes: &[u8], max: usize) -> Result<Option<(usize, Option<SocketAddr>)>, ProxyError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    match first {
        b'P' => parse_v1(bytes),
        b'\r' => parse_v2(bytes, max),
        _ => Err(ProxyError::Missing),
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, ProxyError> {
    let start = b"PROXY ";
    let common = bytes.len().min(start.len());
    if bytes[..common] != start[..common] {
        return Err(ProxyError::Missing);
    }
    let window = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = window.iter().position(|b| b"\r\n".contains(b)) else {
        return if window.len() == V1_MAX { Err(ProxyError::TooLong) } else { Ok(None) };
    };
    match window[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if end + 1 == V1_MAX => return Err(ProxyError::TooLong),
        [b'\r'] => return Ok(None),
        _ => return Err(ProxyError::Malformed),
    }
    let line = str::from_utf8(&window[start.len()..end]).map_err(|_| ProxyError::Malformed)?;
    let mut words = line.split(' ');
    let address = match words.next() {
        // §2.1: whatever follows UNKNOWN is to be ignored.
        Some("UNKNOWN") => return Ok(Some((end + 2, None))),
        Some("TCP4") => v1_addresses::<Ipv4Addr>(words),
        Some("TCP6") => v1_addresses::<Ipv6Addr>(words),
        _ => None,
    };
    let address = address.ok_or(ProxyError::Malformed)?;
    Ok(Some((end + 2, Some(address))))
}

/// Source, destination, source port, destination port; the first and third are the client's.
fn v1_addresses<A: FromStr + Into<IpAddr>>(
    mut words: std::str::Split<'_, char>,
) -> Option<SocketAddr> {
    let source: A = words.next()?.parse().ok()?;
    let _destination: A = words.next()?.parse().ok()?;
    let port = v1_port(words.next()?)?;
    v1_port(words.next()?)?;
    words.next().is_none().then(|| SocketAddr::new(source.into(), port))
}

/// Decimal without leading zeros.
fn v1_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok()?;
    (digits && (text.len() == 1 || !text.starts_with('0')) && text.len() <= 5).then_some(port)
}

fn parse_v2(bytes: &[u8], max: usize) -> Result<Option<(usize, Option<SocketAddr>)>, ProxyError> {
    let common = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..common] != V2_SIGNATURE[..common] {
        return Err(ProxyError::Missing);
    }
    if bytes.get(12).is_some_and(|&version| version != 0x20 && version != 0x21) {
        return Err(ProxyError::Malformed);
    }
    let Some(&[command, family, high, low]) = bytes.get(12..V2_START) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if V2_START + length > max {
        return Err(ProxyError::TooLong);
    }
    // §2.2: of LOCAL nothing counts but the length; balancers' checks put anything there.
    let local = command == 0x20;
    // Address bytes of each family (§2.2); more may follow as extensions.
    let needed = match family {
        _ if local => 0,
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(ProxyError::Malformed),
    };
    if length < needed {
        return Err(ProxyError::Malformed);
    }
    if !local && matches!(family, 0x12 | 0x22 | 0x32) {
        return Err(ProxyError::NotTcp);
    }
    let Some(body) = bytes.get(V2_START..V2_START + length) else { return Ok(None) };
    let address = if local { None } else { v2_source(family, body) };
    Ok(Some((V2_START + length, address)))
}

/// Type of the extension that tells of TLS, and its bit for a client that speaks it
/// (proxy-protocol.txt §2.2.6).
const TLV_SSL: u8 = 0x20;
const CLIENT_SSL: u8 = 1;

/// Whether a whole header says that the client speaks TLS to the load balancer.
pub fn says_tls(header: &[u8]) -> bool {
    let (Some(V2_SIGNATURE), Some(&family)) = (header.first_chunk(), header.get(13)) else {
        return false;
    };
    let addresses = match family >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let mut rest = header.get(V2_START + addresses..).unwrap_or_default();
    while let [kind, high, low, more @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((value, behind)) = more.split_at_checked(length) else { return false };
        if *kind == TLV_SSL {
            return value.first().is_some_and(|client| client & CLIENT_SSL != 0);
        }
        rest = behind;
    }
    false
}

fn v2_source(family: u8, body: &[u8]) -> Option<SocketAddr> {
    let port = |at: usize| Some(u16::from_be_bytes(*body.get(at..)?.first_chunk()?));
    match family {
        0x11 => {
            let source: &[u8; 4] = body.first_chunk()?;
            Some(SocketAddr::new(Ipv4Addr::from(*source).into(), port(8)?))
        }
        0x21 => {
            let source: &[u8; 16] = body.first_chunk()?;
            Some(SocketAddr::new(Ipv6Addr::from(*source).into(), port(32)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER_MAX: usize = 4096;
    const V2_BODY_MAX: usize = HEADER_MAX - V2_START;

    type Answer = Result<Option<(usize, Option<SocketAddr>)>, ProxyError>;

    /// The answer must be the same however much follows; before the header's end it must be
    /// `None` or the same error.
    fn check(bytes: &[u8], expected: Answer) {
        let shown = bytes.escape_ascii();
        assert_eq!(parse(bytes, HEADER_MAX), expected, "{shown}");
        if expected.is_ok_and(|answer| answer.is_none()) {
            return;
        }
        let end = expected.map_or(bytes.len(), |answer| answer.map_or(0, |(length, _)| length));
        for cut in 0..end {
            let got = parse(&bytes[..cut], HEADER_MAX);
            assert!(got == Ok(None) || (expected.is_err() && got == expected), "{cut}: {shown}");
        }
        let mut more = bytes.to_vec();
        more.extend_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(parse(&more, HEADER_MAX), expected, "{shown}");
    }

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn tls_is_told_by_its_extension() {
        let header = |family: u8, addresses: usize, extensions: &[u8]| {
            let length = (addresses + extensions.len()) as u16;
            let start = [&V2_SIGNATURE[..], &[0x21, family], &length.to_be_bytes()].concat();
            [&start[..], &vec![7; addresses], extensions].concat()
        };
        let ssl = |client: u8| [&[0x20, 0, 5, client][..], &[0; 4]].concat();
        let other = [0x02, 0, 2, 0x20, 1];
        for (family, addresses) in [(0x11, 12), (0x21, 36)] {
            let says = |extensions: &[u8]| says_tls(&header(family, addresses, extensions));
            assert!(says(&ssl(1)) && says(&ssl(7)) && says(&[&other[..], &ssl(1)].concat()));
            assert!(!says(&ssl(0)) && !says(&[]) && !says(&other) && !says(&ssl(1)[..5]));
            assert!(!says(&[0x20, 0, 0]) && !says(&[0x20, 0]));
        }
        assert!(!says_tls(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n") && !says_tls(b""));
    }

    #[test]
    fn version_1_is_read_exactly() {
        let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let full_line = format!("PROXY TCP6 {full} {full} 65535 65535\r\n");
        let unknown = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX - 16));
        let unknown_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX - 15));
        let endless = "PROXY UNKNOWN ".to_owned() + &"x".repeat(V1_MAX);
        let table: &[(&str, Answer)] = &[
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
                Ok(Some((45, address("192.0.2.1:56324")))),
            ),
            ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Ok(Some((32, address("0.0.0.0:0"))))),
            ("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", Ok(Some((32, address("[2001:db8::1]:1"))))),
            (&full_line, Ok(Some((104, address(&format!("[{full}]:65535")))))),
            ("PROXY UNKNOWN\r\n", Ok(Some((15, None)))),
            ("PROXY UNKNOWN 1 2 3 4 5\r\n", Ok(Some((25, None)))),
            (&unknown, Ok(Some((V1_MAX, None)))),
            (&unknown_long, Err(ProxyError::TooLong)),
            (&endless, Err(ProxyError::TooLong)),
            ("", Ok(None)),
            ("PROXY TCP4 1.2.3.4", Ok(None)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r", Ok(None)),
            ("GET / HTTP/1.1\r\n", Err(ProxyError::Missing)),
            ("PUT / HTTP/1.1\r\n", Err(ProxyError::Missing)),
            ("proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", Err(ProxyError::Missing)),
            ("PROXY\r\n", Err(ProxyError::Missing)),
            ("PROXY \r\n", Err(ProxyError::Malformed)),
            ("PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rx", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 evil 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 00 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 -2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 ::1 ::1 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP6 ::1%lo ::1 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4\t1.2.3.4 1.2.3.4 1 2\r\n", Err(ProxyError::Malformed)),
            ("PROXY TCP4 1.2.3.\u{664} 1.2.3.4 1 2\r\n", Err(ProxyError::Malformed)),
        ];
        for (text, expected) in table {
            check(text.as_bytes(), *expected);
        }
    }

    #[test]
    fn version_2_is_read_exactly() {
        let header = |command: u8, family: u8, length: usize, body: &[u8]| {
            let mut bytes = V2_SIGNATURE.to_vec();
            bytes.extend_from_slice(&[command, family]);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            bytes.extend_from_slice(body);
            bytes
        };
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 0xbb];
        let mut v6 = [0; 36];
        v6[..2].copy_from_slice(&[0x20, 1]);
        v6[15] = 1;
        v6[32..].copy_from_slice(&[0, 80, 1, 2]);
        let zeros = [0; 4200];
        let v4_and_more = [&v4[..], &zeros[..V2_BODY_MAX - 12]].concat();
        let table: &[(Vec<u8>, Answer)] = &[
            (header(0x21, 0x11, 12, &v4), Ok(Some((28, address("192.0.2.1:56324"))))),
            (header(0x21, 0x21, 36, &v6), Ok(Some((52, address("[2001::1]:80"))))),
            (
                header(0x21, 0x11, V2_BODY_MAX, &v4_and_more),
                Ok(Some((HEADER_MAX, address("192.0.2.1:56324")))),
            ),
            (header(0x21, 0x31, 216, &zeros[..216]), Ok(Some((232, None)))),
            (header(0x21, 0x00, 0, &[]), Ok(Some((16, None)))),
            (header(0x21, 0x00, 7, &zeros[..7]), Ok(Some((23, None)))),
            (header(0x20, 0x00, 0, &[]), Ok(Some((16, None)))),
            (header(0x20, 0x11, 12, &v4), Ok(Some((28, None)))),
            (header(0x20, 0x12, 3, &v4[..3]), Ok(Some((19, None)))),
            (header(0x20, 0x41, 0, &[]), Ok(Some((16, None)))),
            (header(0x20, 0xff, 12, &v4), Ok(Some((28, None)))),
            (header(0x20, 0xff, V2_BODY_MAX + 1, &zeros), Err(ProxyError::TooLong)),
            (header(0x21, 0x11, 12, &v4[..11]), Ok(None)),
            (V2_SIGNATURE.to_vec(), Ok(None)),
            (header(0x21, 0x11, 11, &v4[..11]), Err(ProxyError::Malformed)),
            (header(0x21, 0x21, 35, &v6[..35]), Err(ProxyError::Malformed)),
            (header(0x21, 0x31, 215, &zeros[..215]), Err(ProxyError::Malformed)),
            (header(0x21, 0x12, 12, &v4), Err(ProxyError::NotTcp)),
            (header(0x21, 0x22, 36, &v6), Err(ProxyError::NotTcp)),
            (header(0x21, 0x32, 216, &zeros[..216]), Err(ProxyError::NotTcp)),
            (header(0x21, 0x13, 12, &v4), Err(ProxyError::Malformed)),
            (header(0x21, 0x41, 12, &v4), Err(ProxyError::Malformed)),
            (header(0x21, 0x01, 12, &v4), Err(ProxyError::Malformed)),
            (header(0x22, 0x11, 12, &v4), Err(ProxyError::Malformed)),
            (header(0x11, 0x11, 12, &v4), Err(ProxyError::Malformed)),
            (header(0x31, 0x11, 12, &v4), Err(ProxyError::Malformed)),
            (
                header(0x21, 0x11, V2_BODY_MAX + 1, &zeros[..V2_BODY_MAX + 1]),
                Err(ProxyError::TooLong),
            ),
            (header(0x21, 0x11, 65535, &v4), Err(ProxyError::TooLong)),
            (b"\r\n\r\n\0\r\nQUIX\n".to_vec(), Err(ProxyError::Missing)),
            (b"\r\nGET / HTTP/1.1".to_vec(), Err(ProxyError::Missing)),
        ];
        for (bytes, expected) in table {
            check(bytes, *expected);
        }
        let longer = [&v4[..], &zeros[..V2_BODY_MAX - 11]].concat();
        let longer = header(0x21, 0x11, V2_BODY_MAX + 1, &longer);
        let read = Ok(Some((HEADER_MAX + 1, address("192.0.2.1:56324"))));
        assert_eq!(parse(&longer, HEADER_MAX + 1), read);
        // Refused by its length alone, before its body is here.
        assert_eq!(parse(&longer[..V2_START], 600), Err(ProxyError::TooLong));
    }
}
