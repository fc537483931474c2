//! The fields of a request to an HTTP endpoint, as they gather.

use crate::protocol::link::{Credential, CredentialCarrier};

#[derive(Default)]
pub(super) struct Fields {
    fields: Vec<(String, Vec<u8>)>,
    cookies: Vec<u8>,
    authorized: bool,
    /// A credential is not fit for a field.
    pub(super) failed: bool,
}

impl Fields {
    pub(super) fn put(&mut self, name: &str, value: &[u8]) {
        self.fields.push((name.to_owned(), value.to_vec()));
    }

    /// A credential where an endpoint looks for it: cookies and headers as they came, whatever
    /// else as `Authorization: Bearer`, of which there is one, the first.
    pub(super) fn credential(&mut self, credential: &Credential<'_>) {
        let Credential { carrier, name, token } = *credential;
        let printable = |b: &u8| *b >= b' ' && *b != 0x7f;
        match carrier {
            CredentialCarrier::Cookie => {
                let separator: &[u8] = if self.cookies.is_empty() { b"" } else { b"; " };
                let parts = [separator, name.as_bytes(), b"=", token];
                parts.iter().for_each(|part| self.cookies.extend_from_slice(part));
                self.failed |= !token.iter().all(printable);
            }
            CredentialCarrier::Header => {
                self.put(name, token);
                self.failed |= !token.iter().all(printable);
            }
            _ if self.authorized => {}
            _ => {
                self.authorized = true;
                self.put("authorization", &[b"Bearer ", token].concat());
                // RFC 6750 §2.1: without spaces and commas, which would end it.
                self.failed |= token.iter().any(|b| !b.is_ascii_graphic() || *b == b',');
            }
        }
    }

    pub(super) fn finish(mut self) -> Vec<(String, Vec<u8>)> {
        if !self.cookies.is_empty() {
            self.fields.push(("cookie".to_owned(), self.cookies));
        }
        self.fields
    }
}
