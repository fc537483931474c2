//! What outside services and files say of clients: the answer of an HTTP endpoint, and the file
//! of revocations.

use portcullis::base::time::UnixTime;
use portcullis::protocol::http_decision::{DecisionHeaders, HttpDecision, judge};
use portcullis::protocol::identity::{CLAIMS_MAX, IDENTITY_TEXT_MAX};
use portcullis::protocol::revocation::{Entry, Hasher, Revocation, RevocationSet, Target};
use portcullis::server::revocation_file::{format, parse};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The status is the first two bytes, the rest are fields, one a line. What is accepted is exactly
/// what another reading of the fields says; everything else is refused or undecided.
pub fn http_decision(data: &[u8]) {
    let Some((status, rest)) = data.split_first_chunk::<2>() else { return };
    let status = u16::from_be_bytes(*status) % 1000;
    let names = DecisionHeaders {
        subject: "s".into(),
        token_id: "t".into(),
        expires: "e".into(),
        issued_at: "i".into(),
        claims: "c".into(),
        reason: "r".into(),
    };
    let fields: Vec<(&str, &[u8])> = rest
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((std::str::from_utf8(&line[..colon]).ok()?, &line[colon + 1..]))
        })
        .collect();
    let allowed = allowed(status, &fields);
    match judge(status, &fields, &names) {
        HttpDecision::Accepted(voucher) => {
            let identity = voucher.identity();
            let said = [
                Some(identity.subject().to_owned()),
                identity.token_id().map(str::to_owned),
                identity.expires().map(|at| at.as_seconds().to_string()),
                identity.issued_at().map(|at| at.as_seconds().to_string()),
                Some(String::from_utf8(identity.claims().to_vec()).expect("UTF-8"))
                    .filter(|claims| !claims.is_empty()),
            ];
            assert_eq!(Some(said), allowed);
        }
        HttpDecision::Refused(cause) => {
            assert!(status == 401 || status == 403);
            let reason = only(&fields, "r").expect("at most one");
            assert!(reason.is_empty() || reason == cause.label());
            assert_eq!(only(&fields, "s").as_deref(), Some(""));
            assert_eq!(allowed, None);
        }
        HttpDecision::Undecided(_) => assert_eq!(allowed, None),
    }
}

/// Subject, token id, expiry, time of issue and claims of an answer that accepts.
fn allowed(status: u16, fields: &[(&str, &[u8])]) -> Option<[Option<String>; 5]> {
    let number = |name| {
        let text = only(fields, name)?;
        let good = text.len() <= 12 && text.chars().all(|c| c.is_ascii_digit());
        good.then(|| text.parse::<u64>().ok())
    };
    let (subject, id, claims) = (only(fields, "s")?, only(fields, "t")?, only(fields, "c")?);
    let (expires, issued) = (number("e")?, number("i")?);
    let in_order = expires.is_none_or(|end| issued.is_none_or(|start| start < end));
    let fits = (1..=IDENTITY_TEXT_MAX).contains(&subject.len())
        && id.len() <= IDENTITY_TEXT_MAX
        && claims.len() <= CLAIMS_MAX;
    let good = (200..300).contains(&status) && only(fields, "r")?.is_empty() && in_order && fits;
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let (expires, issued) = (expires.map(|n| n.to_string()), issued.map(|n| n.to_string()));
    good.then(|| [some(subject), some(id), expires, issued, some(claims)])
}

/// The text of a field that is there at most once, empty when it is not; `None` when it is there
/// twice or is no text.
fn only(fields: &[(&str, &[u8])], name: &str) -> Option<String> {
    let values: Vec<_> = fields.iter().filter(|(field, _)| *field == name).collect();
    match values.as_slice() {
        [] => Some(String::new()),
        [(_, value)] => String::from_utf8(value.to_vec()).ok(),
        _ => None,
    }
}

/// A part of a record: to serde an array of the values in their order is one, too.
fn part<'v>(record: &'v Value, at: usize, name: &str) -> Option<&'v Value> {
    record.get(name).or_else(|| record.get(at))
}

fn whole(record: &Value, at: usize, name: &str) -> Option<u64> {
    part(record, at, name)?.as_u64()
}

/// The input as a file, and as the body of a file whose checksum is right: what is read is what
/// serde_json reads, holds as a set, takes more entries, and is written and read again.
pub fn revocation_file(data: &[u8]) {
    const ENTRIES_MAX: usize = 50;
    const NOW: UnixTime = UnixTime::from_seconds(1_700_000_000);
    let mut file = b"portcullis-revocations 1 sha256=".to_vec();
    let sum: [u8; 32] = Sha256::digest(data).into();
    file.extend(sum.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
    file.extend([b"\n", data, b"\n"].concat());
    for (bytes, body) in [(data, None), (&file, Some(data))] {
        let Ok(saved) = parse(bytes, ENTRIES_MAX) else { continue };
        assert!(saved.entries.len() <= ENTRIES_MAX);
        if let Some(body) = body {
            let body: Value = serde_json::from_slice(body).expect("JSON");
            assert_eq!(whole(&body, 0, "next_id"), Some(saved.next_id));
            let theirs = part(&body, 1, "entries").and_then(Value::as_array).expect("entries");
            assert_eq!(theirs.len(), saved.entries.len());
            for (theirs, ours) in theirs.iter().zip(&saved.entries) {
                let target = &ours.revocation.target;
                let text = |at, name| part(theirs, at, name).and_then(Value::as_str);
                assert_eq!(whole(theirs, 0, "id"), Some(ours.id));
                assert_eq!(text(1, "subject"), target.subject());
                assert_eq!(text(2, "token_id"), target.token_id());
                let before = target.issued_before().map(UnixTime::as_millis);
                assert_eq!(whole(theirs, 3, "issued_before_ms"), before);
                let lapses = ours.revocation.lapses.as_millis();
                assert_eq!(whole(theirs, 4, "lapses_ms"), Some(lapses));
            }
        }
        let held = |entry: &&Entry| entry.revocation.lapses > NOW;
        let expected: Vec<Entry> = saved.entries.iter().filter(held).cloned().collect();
        let hasher = Hasher::new(&[1; 32]);
        let mut set = RevocationSet::restored(hasher, saved.next_id, saved.entries, NOW);
        let entries = |set: &RevocationSet| -> Vec<Entry> {
            let all = set.after(0);
            all.map(|(id, revocation)| Entry { id, revocation: revocation.clone() }).collect()
        };
        assert_eq!(entries(&set), expected);
        let again = parse(&format(&set), ENTRIES_MAX).expect("our own file");
        assert_eq!((again.next_id, again.entries), (set.next_id(), expected));
        let target = Target::new(Some("a"), None, None).expect("a target");
        let revocation = Revocation { target, lapses: NOW.later(std::time::Duration::MAX) };
        let before = set.next_id();
        let _covered_or_new = set.insert(revocation, ENTRIES_MAX + 1, NOW).expect("room");
        assert!(set.next_id() >= before && entries(&set).iter().all(|e| e.id < set.next_id()));
    }
}
