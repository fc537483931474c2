//! What ties a close line to a backend's own log, and to a user: the connection's number, and the
//! client's subject where the settings ask for it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::base::slab::Key;
use crate::settings::{LogSubject, Settings};

use super::clients::Connection;
use super::core::{Control, Parts};
use super::mailbox::Report;

/// Lines about refused Origins, and about odd answers of servers, of one worker.
const ORIGIN_LINES_PER_SECOND: u32 = 1;
const ORIGIN_LINES_BURST: u32 = 5;

/// The subjects of open connections, by the slot of the connection. Nothing is allocated while
/// `gateway.log.subject` is off.
#[derive(Default)]
pub(super) struct Subjects(Vec<Option<Box<str>>>);

impl Subjects {
    fn keep(&mut self, slot: u32, subject: Box<str>) {
        let slot = slot as usize;
        if slot >= self.0.len() {
            self.0.resize_with(slot + 1, || None);
        }
        self.0[slot] = Some(subject);
    }

    /// The subject of a connection that is gone; its slot is free for another.
    pub(super) fn take(&mut self, slot: u32) -> Option<Box<str>> {
        self.0.get_mut(slot as usize)?.take()
    }
}

impl Parts {
    /// The number of a connection: no two connections of all gateways have the same, but by a
    /// chance of 1 in 2^64.
    pub(super) fn connection_number(&self, key: Key, connection: &Connection) -> u64 {
        let accepted_ns = connection.client.accepted().as_nanos();
        let mut hasher = DefaultHasher::new();
        let Key { slot, generation } = key;
        // A generation comes round again, an instant does not.
        (self.options.instance, self.options.index, slot, generation, accepted_ns)
            .hash(&mut hasher);
        hasher.finish()
    }

    /// Tells the log which Origin a route has refused: the first mistake of every front-end author.
    /// Strangers choose it, so only a few lines a second are written.
    pub(super) fn report_refused_origin(&mut self, connection: &Connection) {
        let refused = &mut self.scratch.output.refused_origin;
        let origin = String::from_utf8_lossy(refused).into_owned();
        refused.clear();
        let Control { mailbox, origin_lines, .. } = &mut self.control;
        let now = self.env.now.instant;
        if !origin_lines.take(1, ORIGIN_LINES_PER_SECOND, ORIGIN_LINES_BURST, now) {
            return;
        }
        mailbox.report(Report::OriginRefused {
            route: connection.client.route(&self.env.routes),
            peer: connection.client.peer(),
            origin,
        });
    }
}

impl Parts {
    /// Says in the log what a server's answer points to. Each client may cause one, so only a few
    /// lines a second are written.
    pub(super) fn report_advice(
        &mut self,
        key: Key,
        status: Option<u16>,
        advice: Option<&'static str>,
    ) {
        let (Some(status), Some(advice)) = (status, advice) else { return };
        let target = Arc::clone(&self.server_of_websocket(key).target);
        let Control { mailbox, advice_lines, .. } = &mut self.control;
        let now = self.env.now.instant;
        if advice_lines.take(1, ORIGIN_LINES_PER_SECOND, ORIGIN_LINES_BURST, now) {
            mailbox.report(Report::ServerAnswered { target, status, advice });
        }
    }
}

impl Control {
    /// Keeps the subject of a client whose session opens, if the close line is to have it.
    pub(super) fn keep_subject(&mut self, settings: &Settings, key: Key, subject: &str) {
        if let Some(text) = logged_subject(settings, subject) {
            self.subjects.keep(key.slot, text);
        }
    }
}

/// What stands for a subject in the log.
fn logged_subject(settings: &Settings, subject: &str) -> Option<Box<str>> {
    if subject.is_empty() {
        return None;
    }
    match &settings.gateway.log_subject {
        LogSubject::Off => None,
        LogSubject::Plain => Some(subject.into()),
        LogSubject::Hash(key) => {
            let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.expose())
                .expect("HMAC takes a key of any length");
            mac.update(subject.as_bytes());
            let digest: [u8; 32] = mac.finalize().into_bytes().into();
            let [first, ..] = digest.as_chunks::<16>().0 else { unreachable!("32 bytes") };
            Some(format!("{:032x}", u128::from_be_bytes(*first)).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::settings::load::test_settings;

    #[test]
    fn subjects_stand_in_the_log_as_the_settings_say() {
        let mut settings = test_settings();
        assert_eq!(logged_subject(&settings, "alice"), None);
        settings.gateway.log_subject = LogSubject::Plain;
        assert_eq!(logged_subject(&settings, "alice").as_deref(), Some("alice"));
        assert_eq!(logged_subject(&settings, ""), None, "a client without authentication");
        let key = Secret::new(b"0123456789abcdef0123456789abcdef".to_vec());
        settings.gateway.log_subject = LogSubject::Hash(key);
        // printf alice | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
        let expected = "433deb45467e4e53dbaba594c88bc3a2";
        assert_eq!(logged_subject(&settings, "alice").as_deref(), Some(expected));
    }

    #[test]
    fn a_slot_keeps_one_subject_until_it_is_taken() {
        let mut subjects = Subjects::default();
        assert_eq!(subjects.take(7), None);
        subjects.keep(7, "alice".into());
        subjects.keep(2, "bob".into());
        assert_eq!(subjects.take(7).as_deref(), Some("alice"));
        assert_eq!((subjects.take(7), subjects.take(2).as_deref()), (None, Some("bob")));
    }
}
