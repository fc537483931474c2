//! What is fuzzed. Each target takes any bytes, and panics when the code is wrong about them. The
//! seeded runner (`main.rs`) and cargo-fuzz share this folder.

mod codecs;
mod dialects;
mod frames;
mod links;
mod machines;
mod scripts;
mod servers;
mod tokens;
mod verdicts;

use portcullis::base::random::Random;

/// A target.
pub type Target = fn(&[u8]);

/// Every target by name, in order.
pub const TARGETS: &[(&str, Target)] = &[
    ("acceptance", servers::acceptance),
    ("base64url", codecs::base64url),
    ("carrier", codecs::carrier),
    ("client", machines::client),
    ("client_hello", codecs::client_hello),
    ("compact", tokens::compact),
    ("config", codecs::config),
    ("dialect", dialects::dialect),
    ("first_message", scripts::first_message),
    ("forwarded", codecs::forwarded),
    ("frames", frames::frames),
    ("head", codecs::head),
    ("http_decision", verdicts::http_decision),
    ("json", codecs::json),
    ("jwt", codecs::jwt),
    ("link", links::machine),
    ("link_payload", links::payload),
    ("link_reader", links::reader),
    ("mask", frames::mask),
    ("origin", codecs::origin),
    ("phoenix", tokens::phoenix),
    ("proxy", codecs::proxy),
    ("reauthenticate", scripts::reauthenticate),
    ("revocation_file", verdicts::revocation_file),
    ("server_answer", servers::answer),
    ("session", tokens::session),
    ("term", tokens::term),
    ("tls", machines::tls),
    ("tls_garbage", machines::tls_garbage),
    ("utf8", frames::utf8),
];

/// The target of this name.
pub fn target(name: &str) -> Target {
    TARGETS.iter().find(|(known, _)| *known == name).expect("a target").1
}

/// The first two bytes of an input choose how the rest is cut.
fn with_cuts(data: &[u8]) -> (Random, &[u8]) {
    match data.split_first_chunk::<2>() {
        Some((seed, rest)) => (Random::from_number(u16::from_be_bytes(*seed).into()), rest),
        None => (Random::from_number(0), &[]),
    }
}

/// `bytes` in pieces: mostly small ones, with a large one now and then.
fn pieces(mut random: Random, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let size = match random.below(8) {
            0..4 => 1,
            4..7 => 1 + random.below(16),
            _ => 1 + random.below(1000),
        };
        let (piece, after) = rest.split_at(rest.len().min(size as usize));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}
