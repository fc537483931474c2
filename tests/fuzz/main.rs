//! Fuzzes every target with inputs that are a function of a seed: no fuzzer need be installed, and
//! every run tries the same ones. What was found once stays in `corpus/` and is tried first.
//!
//! `PORTCULLIS_FUZZ_SECONDS=60 cargo test --test fuzz` goes on for so long for each target;
//! `PORTCULLIS_FUZZ_SEED=7` begins elsewhere; `PORTCULLIS_FUZZ_INPUT=FILE cargo test --test fuzz
//! NAME` tries one input. `cargo fuzz run NAME --fuzz-dir tests/fuzz` looks where this cannot.

mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portcullis::base::random::Random;

use targets::{TARGETS, target};

/// Inputs for each target when nothing else is asked for.
const INPUTS: u64 = 1_500;
/// Longest input.
const BYTES_MAX: usize = 70_000;

/// What inputs are worth being changed to hold.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"=",
    b"&",
    b"?",
    b"/",
    b"%2f",
    b"%",
    b"..",
    b".",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"1e999",
    b"-0",
    b"GET / HTTP/1.1\r\n",
    b"HTTP/1.1",
    b"Host: a\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: Upgrade\r\n",
    b"Sec-WebSocket-Version: 13\r\n",
    b"Content-Length: 0\r\n",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Origin: https://app.example.com\r\n",
    b"Authorization: Bearer ",
    b"https://",
    b".example.org",
    b"token=",
    b"\x81\x80\0\0\0\0",
    b"\x01\x81\0\0\0\0a",
    b"\x80\x80\0\0\0\0",
    b"\x89\x80\0\0\0\0",
    b"\x88\x82\0\0\0\0\x03\xe8",
    b"\x82\xfe\0\x80\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80",
    b"\xc2",
    b"\xe2\x82\xac",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
    b"\xf4\x90",
    b"PROXY TCP4 ",
    b"127.0.0.1",
    b"::1",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x16\x03\x01",
    b"exp",
    b"sub",
    b"\0\0\x04\x13\0\0\0\x01\0\0\0\0\0\0\x10\0",
    b"\0\0\0\x22\0\0\0\x01\0\0\0\0",
    b"\0\0\x02\x21\x07\0\0\x01\0\0\0\0hi",
    b"\0\0\x08\x10\0\0\0\0\xff\xff\xff\xff12345678",
];

/// Inputs that are a function of a seed, made from those of a corpus.
struct Inputs {
    corpus: Vec<Vec<u8>>,
    random: Random,
}

impl Inputs {
    fn next(&mut self) -> Vec<u8> {
        let mut input = self.pick();
        for _ in 0..=self.random.below(6) {
            self.change(&mut input);
        }
        input.truncate(BYTES_MAX);
        input
    }

    fn pick(&mut self) -> Vec<u8> {
        match self.corpus.len() as u64 {
            0 => Vec::new(),
            count => self.corpus[self.random.below(count) as usize].clone(),
        }
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.random.below(input.len() as u64 + 1) as usize;
        let end = (at + self.random.below(20) as usize).min(input.len());
        match self.random.below(9) {
            0 if at < input.len() => input[at] ^= 1 << self.random.below(8),
            1 if at < input.len() => input[at] = self.random.number() as u8,
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            5 => {
                let mut bytes = vec![0; self.random.below(9) as usize];
                self.random.fill(&mut bytes);
                input.splice(at..at, bytes);
            }
            6 => {
                let other = self.pick();
                let from = self.random.below(other.len() as u64 + 1) as usize;
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let word = WORDS[self.random.below(WORDS.len() as u64) as usize];
                let end = if self.random.chance(1, 2) { at } else { end };
                input.splice(at..end, word.iter().copied());
            }
        }
    }
}

/// Targets that have come through.
static DONE: AtomicUsize = AtomicUsize::new(0);

/// A number that an environment variable may give.
fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// The corpus of a target, in the order of its files' names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = folder().join("corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<_> = files.map(|file| file.expect("listed").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("readable")).collect()
}

/// The first input on which the target panics: the corpus, then as many others as are asked for.
fn first_failure(
    corpus: Vec<Vec<u8>>,
    seed: u64,
    goes_on: impl Fn(u64) -> bool,
    target: impl Fn(&[u8]),
) -> Result<u64, Vec<u8>> {
    let fails = |input: &[u8]| catch_unwind(AssertUnwindSafe(|| target(input))).is_err();
    if let Some(found) = corpus.iter().find(|input| fails(input)) {
        return Err(found.clone());
    }
    let mut inputs = Inputs { corpus, random: Random::from_number(seed) };
    let mut count = 0;
    while goes_on(count) {
        let input = inputs.next();
        if fails(&input) {
            return Err(input);
        }
        count += 1;
    }
    Ok(count)
}

fn run(name: &str) {
    let target = target(name);
    if let Some(file) = std::env::var_os("PORTCULLIS_FUZZ_INPUT") {
        return target(&std::fs::read(file).expect("the input is readable"));
    }
    let seed = asked("PORTCULLIS_FUZZ_SEED").unwrap_or(1);
    let seconds = asked("PORTCULLIS_FUZZ_SECONDS").map(Duration::from_secs);
    let begun = Instant::now();
    let goes_on = |count| match seconds {
        Some(time) => begun.elapsed() < time,
        None => count < INPUTS,
    };
    match first_failure(corpus(name), seed, goes_on, target) {
        Ok(count) => {
            let done = DONE.fetch_add(1, Ordering::Relaxed) + 1;
            let (of, time) = (TARGETS.len(), begun.elapsed().as_secs());
            println!("[{done}/{of}] {name}: {count} inputs in {time} s, seed {seed}");
        }
        Err(input) => {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
            std::fs::write(&file, &input).expect("written");
            panic!(
                "{name} fails on {} bytes (seed {seed}):\n{}\ntry it again with\n  \
                 PORTCULLIS_FUZZ_INPUT={} cargo test --test fuzz {name}",
                input.len(),
                input[..input.len().min(2_000)].escape_ascii(),
                file.display(),
            );
        }
    }
}

macro_rules! tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        const TESTED: &[&str] = &[$(stringify!($name),)*];
    };
}

tests! {
    acceptance base64url carrier client client_hello compact config dialect first_message forwarded frames head
    http_decision json jwt link link_payload link_reader mask origin phoenix proxy reauthenticate revocation_file
    server_answer session
    term tls tls_garbage utf8
}

#[test]
fn every_target_is_everywhere() {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(TESTED, names);
    let manifest = std::fs::read_to_string(folder().join("Cargo.toml")).expect("readable");
    let listed = |path: &str| {
        let entries = std::fs::read_dir(folder().join(path)).expect("a folder");
        let name = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap().path())).collect();
        names.sort();
        names
    };
    assert_eq!(listed("corpus"), names);
    assert_eq!(listed("fuzz_targets"), names);
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        assert!(!corpus(name).is_empty(), "{name} has no corpus");
    }
}

/// Which targets reach a module that reads what comes from outside; a module that reads nothing of
/// the kind says why it has none.
enum Fuzzed {
    By(&'static [&'static str]),
    Not(&'static str),
}

use Fuzzed::{By, Not};

const PROTOCOL: &[(&str, Fuzzed)] = &[
    ("acceptance", By(&["acceptance"])),
    ("base64url", By(&["base64url"])),
    ("carrier", By(&["carrier"])),
    ("cause", Not("a table of constants")),
    ("client_hello", By(&["client_hello"])),
    ("close_detail", Not("an enumeration")),
    ("compact_json", By(&["json"])),
    ("compact_token", By(&["compact"])),
    ("dialect", By(&["dialect", "first_message"])),
    ("external_term", By(&["term"])),
    ("forwarded", By(&["forwarded"])),
    ("host", By(&["forwarded"])),
    ("http_decision", By(&["http_decision"])),
    ("http_upgrade", By(&["head", "client"])),
    ("identity", Not("holds what others have checked")),
    ("jwt", By(&["jwt"])),
    ("link", By(&["link", "link_payload", "link_reader"])),
    ("mac", By(&["compact", "jwt", "phoenix"])),
    ("mask", By(&["mask"])),
    ("origin", By(&["origin"])),
    ("phoenix_token", By(&["phoenix"])),
    ("plug_crypto", By(&["phoenix", "session"])),
    ("plug_session", By(&["session"])),
    ("proxy_header", By(&["proxy"])),
    ("rejected_tokens", Not("keeps a keyed hash of a token, whatever its bytes")),
    ("revocation", By(&["link_payload", "revocation_file"])),
    ("scratch", Not("a buffer")),
    ("utf8", By(&["utf8"])),
    ("verifier", Not("hands tokens to the codecs of their kinds")),
    ("websocket", By(&["frames"])),
];

const CONNECTION: &[(&str, Fuzzed)] = &[
    ("auth_request", Not("data of a question; the target of first messages makes it")),
    ("authenticate", By(&["client", "first_message"])),
    ("client", By(&["client", "first_message", "reauthenticate"])),
    ("context", Not("what machines are given")),
    ("route_order", Not("numbers of the settings' own routes")),
    ("session", By(&["client", "link"])),
    ("stage", Not("an enumeration")),
    ("tls", By(&["tls", "tls_garbage"])),
    ("transport", By(&["tls", "tls_garbage"])),
    ("transport_error", Not("an enumeration of what rustls found")),
    ("upstream", By(&["link", "server_answer"])),
];

#[test]
fn every_codec_and_machine_has_a_target() {
    for (layer, table) in [("protocol", PROTOCOL), ("connection", CONNECTION)] {
        let file = format!("{}/src/{layer}/mod.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(file).expect("readable");
        let mut modules: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once("mod ")?.1.strip_suffix(';'))
            .filter(|name| !name.contains(' '))
            .collect();
        modules.sort_unstable();
        let known: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            modules, known,
            "src/{layer}: give each module a target, or say why it has none"
        );
        for (name, fuzzed) in table {
            match fuzzed {
                By(targets) => {
                    assert!(!targets.is_empty(), "{name}");
                    assert!(targets.iter().all(|target| TESTED.contains(target)), "{name}");
                }
                Not(reason) => assert!(!reason.is_empty(), "{name}"),
            }
        }
    }
}

/// Bugs that take two particular changes of a corpus, and a particular cut, are found.
#[test]
fn planted_bugs_are_found() {
    let planted = |bug: fn(&[u8]) -> bool, name: &str| {
        let goes_on = |count| count < 20_000;
        let found = first_failure(corpus(name), 1, goes_on, |input| assert!(!bug(input)));
        assert!(found.is_err_and(|input| bug(&input)), "{name}");
    };
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    planted(|input| input.windows(4).any(|w| w == b"%2f%"), "head");
    planted(|input| input.len() > 6 && input[2] & 0x70 == 0x40 && input[3] == 0x80, "frames");
    planted(|input| input.windows(2).any(|w| w == b"\xed\xa0"), "utf8");
    std::panic::set_hook(silent);
}
