//! `reauthenticate` of a `[[route]]`: which messages of open connections bring a fresh token.

use std::sync::Arc;

use toml::Spanned;

use super::file::{RawAuth, RawReauthenticate, RawRoute};
use super::load::Loader;
use super::{MessageTypes, Reauthenticate};
use crate::protocol::carrier::Carrier;

/// Longest prefix, in bytes: that much of a message may have to wait until it is classified.
pub const PREFIX_MAX: usize = 64;

impl Loader<'_> {
    /// `Some(None)` where the route has none, `None` an error.
    pub(super) fn reauthenticate(
        &mut self,
        raw: &RawRoute,
        blocks: &[&RawAuth],
    ) -> Option<Option<Arc<Reauthenticate>>> {
        let Some(RawReauthenticate { prefix, token }) = &raw.reauthenticate else {
            return Some(None);
        };
        let (prefix, token) = (prefix.as_ref()?, token.as_ref()?);
        let mut failed = false;
        let mut error = |at: &Spanned<String>, what: &str, fix: &str| {
            self.report.error(at.span(), what, fix);
            failed = true;
        };
        let text = prefix.get_ref();
        if !text.starts_with('{') || text.len() > PREFIX_MAX || text.chars().any(char::is_control) {
            let what = format!("{text:?} cannot begin a message that brings a token");
            let fix = "write the beginning of a JSON object, of at most 64 bytes, exactly as \
                       clients send it: '{\"type\":\"authenticate\",'";
            error(prefix, &what, fix);
        } else if text == "{" {
            let what = "prefix = \"{\" takes every JSON object from the backend";
            error(prefix, what, "write on until no other message begins so");
        }
        if token.get_ref().split('.').any(str::is_empty) {
            let what = format!("{:?} is no way to a member", token.get_ref());
            error(token, &what, "write member names with dots between them, as in payload.token");
        }
        let is_external = |block: &&&RawAuth| {
            let kind = block.kind.as_ref().map(|kind| kind.get_ref().as_str());
            matches!(kind, Some("backend" | "http"))
        };
        let blocks: Vec<_> = blocks.iter().filter(|block| !is_external(block)).collect();
        if blocks.is_empty() {
            let what = "reauthenticate on a route where the gateway judges no token itself";
            let fix = "remove it, or name an [[auth]] of another kind than backend and http; a \
                       backend can set when its sessions' identities end";
            error(prefix, what, fix);
        }
        if raw.messages() == MessageTypes::Binary {
            let what = "reauthenticate takes text messages, and the route takes binary ones only";
            error(prefix, what, "write messages = \"any\", or remove reauthenticate");
        }
        let names = blocks.iter().map(|block| Some(block.name.as_ref()?.get_ref().clone()));
        let auths: Option<Vec<String>> = names.collect();
        if failed {
            return None;
        }
        let path = token.get_ref().split('.').map(str::to_owned).collect();
        let token = Carrier::FirstMessageJson(path);
        Some(Some(Arc::new(Reauthenticate { prefix: text.clone(), token, auths: auths? })))
    }
}
