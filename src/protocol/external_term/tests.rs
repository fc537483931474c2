use proptest::prelude::*;
use serde_json::{Value, json};

use super::json::DEPTH_MAX;
use super::*;

/// The JSON of a term in hexadecimal, without its version byte; `None` when it is refused.
fn rendered(hex: &str) -> Option<String> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    let mut bytes = vec![VERSION];
    bytes.extend(digits.chunks(2).map(byte));
    let mut out = vec![0; 4096];
    let json = write_json(read(&bytes)?, Some("secret"), &mut out);
    Some(str::from_utf8(json).unwrap().to_owned())
}

#[test]
fn terms_are_read_exactly() {
    let deep = |depth: usize| format!("{}6a", "6801".repeat(depth));
    let nested = |depth: usize, inner: &str| {
        Some(format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth)))
    };
    let table: &[(&str, Option<&str>)] = &[
        ("6100", Some("0")),
        ("61ff", Some("255")),
        ("6200000000", Some("0")),
        ("627fffffff", Some("2147483647")),
        ("6280000000", Some("-2147483648")),
        ("6e0000", Some("0")),
        ("6e0001", Some("0")),
        ("6e02 01 0000", Some("0")),
        ("6e01 00 05", Some("5")),
        ("6e03 00 050000", Some("5")),
        ("6e04 00 00ca9a3b", Some("1000000000")),
        ("6e04 00 ffc99a3b", Some("999999999")),
        ("6e08 00 ffffffffffffff7f", Some("9223372036854775807")),
        ("6e08 00 0000000000000080", Some("9223372036854775808")),
        ("6e09 01 000000000000000001", Some("-18446744073709551616")),
        ("6e01 02 05", None),
        ("6e02 00 05", None),
        ("46 3ff8000000000000", Some("1.5")),
        ("46 c000000000000000", Some("-2.0")),
        ("46 7ff0000000000000", None),
        ("46 7ff8000000000000", None),
        ("46 3ff80000000000", None),
        ("64 0003 6e696c", Some("null")),
        ("73 04 74727565", Some("true")),
        ("77 05 66616c7365", Some("false")),
        ("76 0003 616263", Some("\"abc\"")),
        ("77 02 c3a4", Some("\"ä\"")),
        ("73 02 c3a4", Some(r#"{"$unsupported":"atom"}"#)),
        ("77 01 ff", None),
        ("77 03 6162", None),
        ("6d 00000000", Some("\"\"")),
        ("6d 00000003 61225c", Some("\"a\\\"\\\\\"")),
        ("6d 00000002 0a7f", Some("\"\\u000a\u{7f}\"")),
        ("6d 00000002 ff00", Some("{\"base64url\":\"_wA\"}")),
        ("6d 00000003 ff00", None),
        ("6d ffffffff 61", None),
        ("6b 0002 01ff", Some("[1,255]")),
        ("6b 0000", Some("[]")),
        ("6b 0003 01ff", None),
        ("6a", Some("[]")),
        ("6c 00000001 6101 6a", Some("[1]")),
        ("6c 00000002 6101 6102 6a", Some("[1,2]")),
        ("6c 00000001 6101 6102", Some(r#"{"$unsupported":"improper_list"}"#)),
        ("6c 00000001 6101", None),
        ("6c 00000000 6a", Some("[]")),
        ("6c ffffffff 6101 6a", None),
        ("6800", Some("[]")),
        ("6802 6101 6102", Some("[1,2]")),
        ("69 00000001 6101", Some("[1]")),
        ("69 ffffffff 6101", None),
        ("6802 6101", None),
        ("74 00000000", Some("{}")),
        ("74 00000001 6d00000001 61 6101", Some("{\"a\":1}")),
        ("74 00000002 6101 6102 770162 6103", Some("{\"1\":2,\"b\":3}")),
        ("74 ffffffff 6101 6102", None),
        ("74 80000000 6101 6102", None),
        ("74 00000001 6101", None),
        // Keys that have no text, or the same one: left out, and counted.
        ("74 00000001 6a 6101", Some(r#"{"$unsupported":1}"#)),
        ("74 00000001 6d00000001 ff 6101", Some(r#"{"$unsupported":1}"#)),
        ("74 00000002 770161 6101 6d00000001 61 6102", Some(r#"{"$unsupported":2}"#)),
        ("74 00000002 6101 6101 6d00000001 31 6101", Some(r#"{"$unsupported":2}"#)),
        ("74 00000002 6e0001 6101 6100 6101", Some(r#"{"$unsupported":2}"#)),
        ("74 00000002 770161 6101 6802 6101 6102 6103", Some(r#"{"a":1,"$unsupported":1}"#)),
        ("74 00000002 46 3ff8000000000000 6101 770162 6102", Some(r#"{"b":2,"$unsupported":1}"#)),
        // No data can pass for the mark.
        ("74 00000001 770c 24756e737570706f72746564 6100", Some(r#"{"$unsupported":1}"#)),
        // Left out, at the top and only there.
        ("74 00000002 6d00000006 736563726574 6101 770161 6102", Some("{\"a\":2}")),
        ("6801 74 00000001 6d00000006 736563726574 6101", Some("[{\"secret\":1}]")),
        // What only the node that wrote it understands, beside a value that JSON has.
        ("6802 58 770161 00000001 00000000 00000000 6105", Some(r#"[{"$unsupported":"pid"},5]"#)),
        ("67 640001 61 00000001 00000000 01", Some(r#"{"$unsupported":"pid"}"#)),
        ("66 770161 00000001 01", Some(r#"{"$unsupported":"port"}"#)),
        ("59 770161 00000001 00000001", Some(r#"{"$unsupported":"port"}"#)),
        ("78 770161 0000000000000001 00000001", Some(r#"{"$unsupported":"port"}"#)),
        ("65 770161 00000001 01", Some(r#"{"$unsupported":"reference"}"#)),
        ("72 0002 770161 01 00000001 00000002", Some(r#"{"$unsupported":"reference"}"#)),
        ("5a 0001 64000161 00000000 00000001", Some(r#"{"$unsupported":"reference"}"#)),
        ("5a 0002 64000161 00000000 00000001", None),
        ("5a 0001 6101 00000000 00000001", None),
        ("58 64000161 00000001 00000000 000000", None),
        ("4d 00000001 01 80", Some(r#"{"$unsupported":"bitstring"}"#)),
        ("4d 00000001 09 80", None),
        ("6f 00000001 00 05", Some("5")),
        // Two terms, none, compressed, functions.
        ("6101 6101", None),
        ("", None),
        ("50 00000003 789c4b4c0400024d0127", None),
        ("70 00", None),
        ("71 640001 61 640001 61 6101", None),
        ("63 312e35", None),
        ("79 00", None),
        ("ff", None),
    ];
    for (hex, expected) in table {
        assert_eq!(rendered(hex).as_deref(), *expected, "{hex}");
    }
    assert_eq!(rendered(&deep(DEPTH_MAX)), nested(DEPTH_MAX, "[]"));
    let cut = nested(DEPTH_MAX, r#"{"$unsupported":"nesting"}"#);
    assert_eq!(rendered(&deep(DEPTH_MAX + 1)), cut);
    assert_eq!(rendered(&deep(30_000)), cut, "and no stack grows with it");
    let big = |bytes: usize| format!("6f {bytes:08x} 00 {}", "ff".repeat(bytes));
    assert_eq!(rendered(&big(255)).unwrap().len(), 615, "digits of 2^2040 - 1");
    assert_eq!(rendered(&big(256)).as_deref(), Some(r#"{"$unsupported":"integer"}"#));
    assert!(read(b"").is_none() && read(b"\x82a\x01").is_none());
}

#[test]
fn integers_saturate() {
    let table: &[(&[u8], i64)] = &[
        (b"\x83a\x05", 5),
        (b"\x83b\xff\xff\xff\xff", -1),
        (b"\x83n\x08\x00\xff\xff\xff\xff\xff\xff\xff\x7f", i64::MAX),
        (b"\x83n\x08\x01\xff\xff\xff\xff\xff\xff\xff\x7f", -i64::MAX),
        (b"\x83n\x08\x00\x00\x00\x00\x00\x00\x00\x00\x80", i64::MAX),
        (b"\x83n\x08\x01\x00\x00\x00\x00\x00\x00\x00\x80", i64::MIN),
        (b"\x83n\x09\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", 1),
        (b"\x83n\x09\x01\x01\x00\x00\x00\x00\x00\x00\x00\x01", i64::MIN),
    ];
    for (bytes, expected) in table {
        let Some(Term::Integer(integer)) = read(bytes) else { panic!("an integer") };
        assert_eq!(integer.saturated(), *expected, "{bytes:?}");
    }
}

fn json_values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-300_i64..300).prop_map(Value::from),
        // serde_json reads these back exactly.
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((".{0,4}", inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Encoder and reader are each other's inverse, by way of JSON.
    #[test]
    fn what_is_encoded_reads_back(value in json_values()) {
        let mut bytes = Vec::new();
        encode(&value, &mut bytes);
        let mut out = vec![0; 1 << 16];
        let json = write_json(read(&bytes).expect("a term"), None, &mut out);
        prop_assert_eq!(serde_json::from_slice::<Value>(json).expect("JSON"), value);
    }

    /// Big integers, against a conversion digit by digit.
    #[test]
    fn decimals(magnitude in prop::collection::vec(any::<u8>(), 0..=255), negative: bool) {
        let mut bytes = vec![VERSION, b'n', magnitude.len() as u8, u8::from(negative)];
        bytes.extend_from_slice(&magnitude);
        let mut digits = vec![0_u8];
        for byte in magnitude.iter().rev() {
            let mut carry = u32::from(*byte);
            for digit in &mut digits {
                let value = u32::from(*digit) * 256 + carry;
                *digit = (value % 10) as u8;
                carry = value / 10;
            }
            while carry > 0 {
                digits.push((carry % 10) as u8);
                carry /= 10;
            }
        }
        let text: String = digits.iter().rev().map(|d| char::from(b'0' + d)).collect();
        let expected = if negative && text != "0" { format!("-{text}") } else { text };
        let Some(Term::Integer(integer)) = read(&bytes) else { panic!("an integer") };
        let mut out = [0; 700];
        prop_assert_eq!(integer.write_decimal(&mut out), Some(expected.as_str()));
        prop_assert_eq!(integer.write_decimal(&mut out[..expected.len() - 1]), None);
    }

    /// Nothing crashes, reads past its end, or takes longer than its length permits.
    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(
        prop_oneof![
            any::<u8>(),
            prop::sample::select(b"abnoFdsvwmkhijltgXfYxerZM\x00\x01\x02".to_vec()),
        ],
        0..200,
    )) {
        bytes.insert(0, VERSION);
        let mut out = [0; 1300];
        if let Some(term) = read(&bytes) {
            serde_json::from_slice::<Value>(write_json(term, None, &mut out)).expect("JSON");
        }
    }
}

#[test]
fn the_longest_rendering_fits_six_times_over() {
    let value = json!("\u{0}".repeat(500));
    let mut bytes = Vec::new();
    encode(&value, &mut bytes);
    let mut out = vec![0; bytes.len() * 6];
    assert!(write_json(read(&bytes).unwrap(), None, &mut out).starts_with(b"\"\\u0000"));
    let cut = write_json(read(&bytes).unwrap(), None, &mut out[..3000]);
    assert_eq!(cut, br#"{"$unsupported":"size"}"#);
    assert_eq!(write_json(read(&bytes).unwrap(), None, &mut out[..22]), b"");
}

#[test]
fn pairs_beyond_the_bound_are_counted() {
    let value: Value = (0..300).map(|n| (format!("k{n:03}"), Value::from(n))).collect();
    let mut bytes = Vec::new();
    encode(&value, &mut bytes);
    let mut out = vec![0; 1 << 16];
    let json: Value =
        serde_json::from_slice(write_json(read(&bytes).unwrap(), None, &mut out)).unwrap();
    assert_eq!((json["$unsupported"].as_u64(), json["k255"].as_u64()), (Some(44), Some(255)));
    assert_eq!(json.as_object().unwrap().len(), 257);
}

#[test]
fn paths_lead_through_maps_keywords_tuples_and_lists() {
    let name = |text: &str| Step::Name(text.into());
    // {user, [{id, 42}, {id2, "x"}, {two, 1}, {two, 2}], %{a: "b"}, [7, 8]}
    let bytes = b"\x83h\x04w\x04user\
        l\x00\x00\x00\x04h\x02w\x02ida\x2ah\x02m\x00\x00\x00\x03id2m\x00\x00\x00\x01x\
        h\x02w\x03twoa\x01h\x02w\x03twoa\x02j\
        t\x00\x00\x00\x01w\x01am\x00\x00\x00\x01bk\x00\x02\x07\x08";
    let table: Vec<(Vec<Step>, Option<&str>)> = vec![
        (vec![Step::Index(1), name("id")], Some("42")),
        (vec![Step::Index(1), name("id2")], Some("\"x\"")),
        (vec![Step::Index(1), Step::Index(0), Step::Index(1)], Some("42")),
        (vec![Step::Index(2), name("a")], Some("\"b\"")),
        (vec![Step::Index(3), Step::Index(1)], Some("8")),
        (vec![Step::Index(0)], Some("\"user\"")),
        (vec![Step::Index(1), name("two")], None),
        (vec![Step::Index(1), name("none")], None),
        (vec![Step::Index(4)], None),
        (vec![Step::Index(2), Step::Index(0)], None),
        (vec![name("user")], None),
        (vec![Step::Index(0), name("a")], None),
        (vec![Step::Index(3), Step::Index(2)], None),
    ];
    for (steps, expected) in table {
        let mut out = [0; 100];
        let found = TermPath::from(steps.clone()).find(read(bytes).unwrap());
        let json = found.map(|term| str::from_utf8(write_json(term, None, &mut out)).unwrap());
        assert_eq!(json, expected, "{steps:?}");
    }
}
