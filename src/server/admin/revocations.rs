//! The admin API of the revocations, without any I/O: bodies to revocations, entries to JSON.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json as value};

use super::answer::{Answer, json};
use crate::base::time::UnixTime;
use crate::protocol::revocation::{Full, Inserted, NAME_MAX, Revocation, ScopedRevocation, Target};

/// Entries in one answer; `?after=ID` asks for those that follow.
pub const PAGE_MAX: usize = 1000;

/// How far the clock of who revokes may be ahead of ours.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What a POST says. Times are Unix times in seconds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Demand {
    subject: Option<String>,
    token_id: Option<String>,
    issued_before: Option<u64>,
    /// On whose routes it holds.
    backend: Option<Box<str>>,
    /// Until when it holds.
    lapses: Option<u64>,
    /// For how many seconds it holds.
    lapses_in: Option<u64>,
}

/// Reads the body of a POST.
///
/// # Errors
/// What is wrong, for people; nothing of the body is in it.
pub fn parse(body: &[u8], now: UnixTime) -> Result<ScopedRevocation, String> {
    let demand: Demand = serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!(
            "the body is not as expected (line {line}, column {column}): write a JSON object with \
             subject, token_id or issued_before, lapses or lapses_in, and backend if it holds on \
             the routes of one backend alone"
        )
    })?;
    let before = demand.issued_before.map(UnixTime::from_seconds);
    // Tokens that are not made yet cannot be known to be bad; milliseconds by mistake end here.
    if before.is_some_and(|before| before > now.later(CLOCK_SKEW)) {
        return Err(
            "issued_before lies in the future; write a Unix time in seconds, now at most".into()
        );
    }
    let target = Target::new(demand.subject.as_deref(), demand.token_id.as_deref(), before);
    let target = target.map_err(|error| error.to_string())?;
    let lapses = match (demand.lapses, demand.lapses_in) {
        (Some(at), None) => UnixTime::from_seconds(at),
        (None, Some(seconds)) => {
            let millis = seconds.saturating_mul(1000).saturating_add(now.as_millis());
            UnixTime::from_millis(millis)
        }
        _ => return Err("say until when it holds: either lapses or lapses_in".into()),
    };
    if demand.backend.as_ref().is_some_and(|name| name.is_empty() || name.len() > NAME_MAX) {
        return Err("backend is empty or over 1,024 bytes: write the name of a [[backend]]".into());
    }
    Ok(ScopedRevocation { revocation: Revocation { target, lapses }, backend: demand.backend })
}

/// The answer to a POST. `kept` says whether it outlives a restart.
pub fn inserted(inserted: Result<Inserted, Full>, kept: bool) -> Answer {
    match inserted {
        Ok(Inserted::New(id)) => {
            json(StatusCode::OK, &value!({"result": "revoked", "id": id, "saved": kept}))
        }
        Ok(Inserted::Covered(id)) => {
            json(StatusCode::OK, &value!({"result": "covered", "id": id, "saved": kept}))
        }
        Ok(Inserted::Lapsed) => refused("it has lapsed already", StatusCode::UNPROCESSABLE_ENTITY),
        Err(full) => refused(&full.to_string(), StatusCode::INSUFFICIENT_STORAGE),
    }
}

/// An error that says why.
pub fn refused(why: &str, status: StatusCode) -> Answer {
    json(status, &value!({"result": "refused", "problems": [why]}))
}

/// One page of entries. `next` is there when there may be more.
pub fn page<'a>(
    entries: impl Iterator<Item = (u64, &'a Arc<ScopedRevocation>)>,
    held: usize,
) -> Answer {
    let page: Vec<(u64, &Arc<ScopedRevocation>)> = entries.take(PAGE_MAX).collect();
    let mut answer = value!({
        "held": held,
        "revocations": page.iter().map(|(id, held)| entry(*id, held)).collect::<Value>(),
    });
    if let (PAGE_MAX, Some((last, _))) = (page.len(), page.last()) {
        answer["next"] = value!(format!("/revocations?after={last}"));
    }
    json(StatusCode::OK, &answer)
}

fn entry(id: u64, scoped: &ScopedRevocation) -> Value {
    let ScopedRevocation { revocation, backend } = scoped;
    let target = &revocation.target;
    let mut entry = value!({"id": id, "lapses": seconds(revocation.lapses)});
    for (name, value) in [
        ("subject", target.subject().map(Value::from)),
        ("token_id", target.token_id().map(Value::from)),
        ("issued_before", target.issued_before().map(seconds)),
        ("backend", backend.as_deref().map(Value::from)),
    ] {
        if let Some(value) = value {
            entry[name] = value;
        }
    }
    entry
}

/// Whole seconds where it is that, as backends may name milliseconds.
fn seconds(time: UnixTime) -> Value {
    match time.as_millis() % 1000 {
        0 => value!(time.as_seconds()),
        _ => value!(time.as_millis() as f64 / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::protocol::revocation::{Hasher, RevocationSet};

    fn body(answer: Answer) -> (u16, Value) {
        let (head, body) = answer.into_parts();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
        (head.status.as_u16(), serde_json::from_slice(&bytes).unwrap())
    }

    #[test]
    fn bodies_are_read_strictly() {
        let now = UnixTime::from_seconds(100);
        let read = |body: &str| parse(body.as_bytes(), now);
        let good = [
            (r#"{"subject":"a","lapses":200}"#, Some("a"), None, None, 200),
            (r#"{"subject":"a","issued_before":90,"lapses_in":5}"#, Some("a"), None, Some(90), 105),
            (r#"{"token_id":"t","lapses_in":1}"#, None, Some("t"), None, 101),
            (r#"{"issued_before":90,"lapses":200,"subject":null}"#, None, None, Some(90), 200),
            (
                r#"{"token_id":"t","lapses_in":18446744073709551615}"#,
                None,
                Some("t"),
                None,
                u64::MAX,
            ),
        ];
        for (body, subject, token_id, before, lapses) in good {
            let target =
                Target::new(subject, token_id, before.map(UnixTime::from_seconds)).unwrap();
            let lapses = UnixTime::from_seconds(lapses);
            assert_eq!(read(body), Ok(Revocation { target, lapses }.into()), "{body}");
        }
        let scoped = read(r#"{"subject":"a","lapses":200,"backend":"chat"}"#).unwrap();
        assert_eq!(scoped.backend.as_deref(), Some("chat"));
        for (body, why) in [
            ("", "not as expected (line 1, column 0)"),
            ("[]", "not as expected"),
            (r#"{"subject":"a"}"#, "either lapses or lapses_in"),
            (r#"{"subject":"a","lapses":1,"lapses_in":1}"#, "either lapses or lapses_in"),
            (r#"{"subject":"a","lapses":200,"backend":""}"#, "backend is empty"),
            (r#"{"lapses":200,"backend":"chat"}"#, "name a subject"),
            (r#"{"lapses":200}"#, "name a subject"),
            (r#"{"subject":"","lapses":200}"#, "empty"),
            (r#"{"subject":"a","token_id":"b","lapses":200}"#, "stands alone"),
            (r#"{"issued_before":161,"lapses":900}"#, "in the future"),
            (r#"{"subject":"a","issued_before":99999999999,"lapses":900}"#, "in the future"),
            (r#"{"subject":"a","lapses":-1}"#, "not as expected"),
            (r#"{"subject":"a","lapses":200,"more":"s3cret"}"#, "not as expected"),
            (r#"{"subject":"a","subject":"b","lapses":200}"#, "not as expected"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(why) && !error.contains("s3cret"), "{body}: {error}");
        }
    }

    #[test]
    fn pages_are_bounded_and_escaped() {
        let mut set = RevocationSet::new(Hasher::new(&[0; 32]));
        for index in 0..PAGE_MAX + 1 {
            let name = format!("a\"\n<{index}>");
            let target = Target::new(Some(&name), None, Some(UnixTime::from_millis(1500))).unwrap();
            let lapses = UnixTime::from_seconds(9);
            let revocation = Revocation { target, lapses };
            set.insert(revocation, 9999, UnixTime::default()).unwrap();
        }
        let read = |after| body(page(set.after(after), set.len())).1;
        let first = read(0);
        assert_eq!(first["revocations"].as_array().unwrap().len(), PAGE_MAX);
        assert_eq!(first["next"], "/revocations?after=1000");
        let rest = value!({"held": 1001, "revocations": [
            {"id": 1001, "subject": "a\"\n<1000>", "issued_before": 1.5, "lapses": 9},
        ]});
        assert_eq!(read(1000), rest);
    }

    #[test]
    fn answers_say_what_became_of_it() {
        let (status, new) = body(inserted(Ok(Inserted::New(7)), false));
        assert_eq!((status, &new["id"], &new["saved"]), (200, &value!(7), &value!(false)));
        let (status, full) = body(inserted(Err(Full { max: 5 }), true));
        let why = full["problems"][0].as_str().unwrap();
        assert!(status == 507 && why.contains("revocations_max (5)"), "{full}");
        assert_eq!(body(inserted(Ok(Inserted::Lapsed), true)).0, 422);
    }
}
