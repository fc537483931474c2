//! The admin API of the revocations, without any I/O: bodies to revocations, entries to JSON.

use serde::Deserialize;
use serde_json::{Value, json};

use super::admin_http::{Answer, Status};
use crate::base::time::UnixTime;
use crate::protocol::revocation::{Full, Inserted, Revocation, Target};

/// Entries in one answer; `?after=ID` asks for those that follow.
pub const PAGE_MAX: usize = 1000;

/// What a POST says. Times are Unix times in seconds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Demand {
    subject: Option<String>,
    token_id: Option<String>,
    issued_before: Option<u64>,
    /// Until when it holds.
    lapses: Option<u64>,
    /// For how many seconds it holds.
    lapses_in: Option<u64>,
}

/// Reads the body of a POST.
///
/// # Errors
/// What is wrong, for people; nothing of the body is in it.
pub fn parse(body: &[u8], now: UnixTime) -> Result<Revocation, String> {
    let demand: Demand = serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!(
            "the body is not as expected (line {line}, column {column}): write a JSON object with \
             subject, token_id or issued_before, and lapses or lapses_in"
        )
    })?;
    let before = demand.issued_before.map(UnixTime::from_seconds);
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
    Ok(Revocation { target, lapses })
}

/// The answer to a POST. `kept` says whether it outlives a restart.
pub fn inserted(inserted: Result<Inserted, Full>, kept: bool) -> Answer {
    match inserted {
        Ok(Inserted::New(id)) => {
            json(Status::Ok, &json!({"result": "revoked", "id": id, "saved": kept}))
        }
        Ok(Inserted::Covered(id)) => {
            json(Status::Ok, &json!({"result": "covered", "id": id, "saved": kept}))
        }
        Ok(Inserted::Lapsed) => refused("it has lapsed already", Status::Unprocessable),
        Err(full) => refused(&full.to_string(), Status::InsufficientStorage),
    }
}

/// An error that says why.
pub fn refused(why: &str, status: Status) -> Answer {
    json(status, &json!({"result": "refused", "problems": [why]}))
}

/// One page of entries. `next` is there when there may be more.
pub fn page<'a>(entries: impl Iterator<Item = (u64, &'a Revocation)>, held: usize) -> Answer {
    let page: Vec<(u64, &Revocation)> = entries.take(PAGE_MAX).collect();
    let mut answer = json!({
        "held": held,
        "revocations": page.iter().map(|(id, revocation)| entry(*id, revocation)).collect::<Value>(),
    });
    if let (PAGE_MAX, Some((last, _))) = (page.len(), page.last()) {
        answer["next"] = json!(format!("/revocations?after={last}"));
    }
    json(Status::Ok, &answer)
}

fn entry(id: u64, revocation: &Revocation) -> Value {
    let target = &revocation.target;
    let mut entry = json!({"id": id, "lapses": seconds(revocation.lapses)});
    for (name, value) in [
        ("subject", target.subject().map(Value::from)),
        ("token_id", target.token_id().map(Value::from)),
        ("issued_before", target.issued_before().map(seconds)),
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
        0 => json!(time.as_seconds()),
        _ => json!(time.as_millis() as f64 / 1000.0),
    }
}

fn json(status: Status, value: &Value) -> Answer {
    let body = format!("{value}\n").into_bytes();
    Answer { status, content_type: "application/json", body, fields: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::revocation::{Hasher, RevocationSet};

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
            assert_eq!(read(body), Ok(Revocation { target, lapses }), "{body}");
        }
        for (body, why) in [
            ("", "not as expected (line 1, column 0)"),
            ("[]", "not as expected"),
            (r#"{"subject":"a"}"#, "either lapses or lapses_in"),
            (r#"{"subject":"a","lapses":1,"lapses_in":1}"#, "either lapses or lapses_in"),
            (r#"{"lapses":200}"#, "name a subject"),
            (r#"{"subject":"","lapses":200}"#, "empty"),
            (r#"{"subject":"a","token_id":"b","lapses":200}"#, "stands alone"),
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
        let read = |after| -> Value {
            serde_json::from_slice(&page(set.after(after), set.len()).body).unwrap()
        };
        let first = read(0);
        assert_eq!(first["revocations"].as_array().unwrap().len(), PAGE_MAX);
        assert_eq!(first["next"], "/revocations?after=1000");
        let rest = json!({"held": 1001, "revocations": [
            {"id": 1001, "subject": "a\"\n<1000>", "issued_before": 1.5, "lapses": 9},
        ]});
        assert_eq!(read(1000), rest);
    }

    #[test]
    fn answers_say_what_became_of_it() {
        let text = |answer: Answer| String::from_utf8(answer.into_bytes(false)).unwrap();
        let new = text(inserted(Ok(Inserted::New(7)), false));
        assert!(new.starts_with("HTTP/1.1 200 ") && new.contains(r#""saved":false"#), "{new}");
        let full = text(inserted(Err(Full { max: 5 }), true));
        assert!(
            full.starts_with("HTTP/1.1 507 ") && full.contains("revocations_max (5)"),
            "{full}"
        );
        assert!(text(inserted(Ok(Inserted::Lapsed), true)).starts_with("HTTP/1.1 422 "));
    }
}
