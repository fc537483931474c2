//! Reads `heads.txt`. The unit tests and the end-to-end tests both have this file as a module.

const FILE: &str = include_str!("heads.txt");

/// One request.
pub struct Case {
    /// Where it is, to name it.
    pub line: usize,
    pub bytes: Vec<u8>,
    pub expected: Expected,
    /// What early bytes come to when they arrive after the 101.
    pub then: Option<Then>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// An HTTP answer with this status and label.
    Refused(u16, &'static str),
    /// A good upgrade of `/ws`, or of another path: host and target.
    Upgrade { host: &'static str, target: &'static str },
    /// A good GET or HEAD of this path that asks for no WebSocket, and its answer where there is
    /// no health check: `get` or `head`.
    Plain { method: &'static str, path: &'static str, label: &'static str },
    /// The head is not whole.
    Incomplete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// A close frame with this code and reason.
    Closed(Option<u16>, &'static str),
    /// The backend's echo.
    Echoed(&'static str),
    /// An empty pong.
    Ponged,
    /// Nothing: a frame has begun.
    Open,
}

/// The whole answer that a label stands for.
pub struct Answer {
    pub label: &'static str,
    pub bytes: String,
}

/// Every case, in order.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let lines = FILE.lines().enumerate().map(|(index, line)| (index + 1, line));
    let mut bytes = None;
    for (number, line) in lines.take_while(|(_, line)| *line != "== answers") {
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        match (line.strip_prefix("  "), bytes.take()) {
            (None, None) => bytes = Some((number, expand(line))),
            (Some(answer), Some((line, bytes))) => {
                cases.push(Case { line, bytes, expected: expected(answer), then: None });
            }
            (Some(answer), None) => {
                let then = answer.strip_prefix("then ").expect("a case has one answer");
                cases.last_mut().expect("an answer before any case").then = Some(outcome(then));
            }
            (None, Some(_)) => panic!("line {number}: the case above has no answer"),
        }
    }
    cases
}

/// The whole answer of every label.
pub fn answers() -> Vec<Answer> {
    let table = FILE.split_once("\n== answers\n").expect("the table of answers").1;
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| {
        let [label, status, fields, text] = row.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("not four columns: {row}")
        };
        let fields = String::from_utf8(expand(fields)).expect("text");
        let body = format!("{label}: {text}\n");
        let bytes = format!(
            "HTTP/1.1 {status}\r\n{fields}Content-Type: text/plain; charset=utf-8\r\n\
             Cache-Control: no-store\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Answer { label, bytes }
    })
    .collect()
}

fn expected(answer: &'static str) -> Expected {
    let words: Vec<&str> = answer.split(' ').collect();
    match words[..] {
        ["incomplete"] => Expected::Incomplete,
        ["ok", host, target] => Expected::Upgrade { host, target },
        ["get", path] => Expected::Plain { method: "get", path, label: "upgrade_required" },
        [method @ ("get" | "head"), path, label] => Expected::Plain { method, path, label },
        [status, label] => Expected::Refused(number(status), label),
        _ => panic!("not an answer: {answer}"),
    }
}

fn outcome(then: &'static str) -> Then {
    let words: Vec<&str> = then.split(' ').collect();
    match words[..] {
        ["closed"] => Then::Closed(None, ""),
        ["closed", code] => Then::Closed(Some(number(code)), ""),
        ["closed", code, reason] => Then::Closed(Some(number(code)), reason),
        ["echoed", text] => Then::Echoed(text),
        ["ponged"] => Then::Ponged,
        ["open"] => Then::Open,
        _ => panic!("not an outcome: {then}"),
    }
}

fn number(digits: &str) -> u16 {
    digits.parse().unwrap_or_else(|_| panic!("not a number: {digits}"))
}

/// The bytes that a text with escapes and braces stands for.
fn expand(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\\', '{']) {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at..];
        if rest.starts_with('{') {
            let end = rest.find('}').unwrap_or_else(|| panic!("an open brace: {text}"));
            bytes.extend(braces(&rest[1..end]));
            rest = &rest[end + 1..];
            continue;
        }
        let (byte, used) = match rest.as_bytes()[1] {
            b'r' => (b'\r', 2),
            b'n' => (b'\n', 2),
            b't' => (b'\t', 2),
            b'x' => (u8::from_str_radix(&rest[2..4], 16).expect("two hex digits"), 4),
            plain @ (b'\\' | b'{') => (plain, 2),
            _ => panic!("an unknown escape: {text}"),
        };
        bytes.push(byte);
        rest = &rest[used..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fn braces(inside: &str) -> Vec<u8> {
    match inside {
        "" => Vec::new(),
        "G" => b"GET /ws HTTP/1.1\r\n".to_vec(),
        "H" => b"Host: a.example\r\n".to_vec(),
        "U" => b"Upgrade: websocket\r\nConnection: Upgrade\r\n".to_vec(),
        "V" => b"Sec-WebSocket-Version: 13\r\n".to_vec(),
        "K" => b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n".to_vec(),
        repeat => {
            let (text, times) = repeat.rsplit_once('*').expect("a known part, or text*times");
            expand(text).repeat(times.parse().expect("how many times"))
        }
    }
}
