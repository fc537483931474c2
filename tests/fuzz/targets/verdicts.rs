//! What outside services and files say of clients: the answer of an HTTP endpoint, and the file
//! of revocations.

use portcullis::base::time::UnixTime;
use portcullis::protocol::http_decision::{DecisionHeaders, HttpDecision, judge};
use portcullis::protocol::identity::{CLAIMS_MAX, IDENTITY_TEXT_MAX};
use portcullis::protocol::revocation::{
    Hasher, Revocation, RevocationSet, ScopedRevocation, Target,
};
use portcullis::server::journal::{Snapshot, parse};
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
            assert!(matches!(status, 300 | 302..=307 | 309..=399 | 401 | 403));
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

/// The input as a file, and as the record of files whose checksum is right: what is read is what
/// serde_json reads, holds as a set, takes more entries, and is written and read again.
pub fn revocation_file(data: &[u8]) {
    const NOW: UnixTime = UnixTime::from_seconds(1_700_000_000);
    let hasher = || Hasher::new(&[1; 32]);
    let sum: [u8; 32] = Sha256::digest(data).into();
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    let old = [format!("portcullis-revocations 1 sha256={sum}\n").as_bytes(), data, b"\n"].concat();
    let new = [format!("portcullis-revocations 2\n{sum} ").as_bytes(), data, b"\n"].concat();
    let entries = |set: &RevocationSet| -> Vec<(u64, ScopedRevocation)> {
        set.after(0).map(|(id, revocation)| (id, (**revocation).clone())).collect()
    };
    for (bytes, body) in [(data, None), (&old, Some(data)), (&new, Some(data))] {
        let Ok((mut set, _torn)) = parse(bytes, hasher()) else { continue };
        if let (Some(body), true) = (body, !data.contains(&b'\n')) {
            let body: Value = serde_json::from_slice(body).expect("JSON");
            assert!(whole(&body, 0, "next_id").expect("a number") <= set.next_id());
            let theirs = part(&body, 1, "entries").and_then(Value::as_array).expect("entries");
            for (id, ScopedRevocation { revocation, backend }) in entries(&set) {
                let theirs = theirs.iter().find(|entry| whole(entry, 0, "id") == Some(id));
                let (theirs, target) = (theirs.expect("it is there"), &revocation.target);
                let text = |at, name| part(theirs, at, name).and_then(Value::as_str);
                assert_eq!(text(1, "subject"), target.subject());
                assert_eq!(text(2, "token_id"), target.token_id());
                let before = target.issued_before().map(UnixTime::as_millis);
                assert_eq!(whole(theirs, 3, "issued_before_ms"), before);
                assert_eq!(whole(theirs, 4, "lapses_ms"), Some(revocation.lapses.as_millis()));
                assert_eq!(text(5, "backend"), backend.as_deref());
            }
        }
        let (again, torn) = parse(&Snapshot::of(&set).file(), hasher()).expect("our own file");
        assert_eq!((again.next_id(), entries(&again), torn), (set.next_id(), entries(&set), 0));
        let target = Target::new(Some("a"), None, None).expect("a target");
        let revocation = Revocation { target, lapses: NOW.later(std::time::Duration::MAX) };
        let before = set.next_id();
        let _covered_or_new = set.insert(revocation, usize::MAX, NOW).expect("room");
        assert!(set.next_id() >= before && entries(&set).iter().all(|e| e.0 < set.next_id()));
    }
}
