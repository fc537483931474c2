//! TLS at the fake clients' end: a whole rustls client over the simulated bytes.
//!
//! What goes over the wire differs from run to run, because rustls draws its own randomness. Its
//! lengths do not (an Ed25519 certificate sees to that), so a seed still gives one run; the event
//! hash leaves the ciphertext out.

use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

const NAME: &str = "gateway.example.com";

struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// One certificate for the whole process.
fn configs() -> &'static Configs {
    static CONFIGS: OnceLock<Configs> = OnceLock::new();
    CONFIGS.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key pair");
        let mut parameters =
            rcgen::CertificateParams::new([NAME.to_owned()]).expect("a name for a certificate");
        parameters.serial_number = Some(rcgen::SerialNumber::from(7));
        let certificate = parameters.self_signed(&key).expect("a certificate of our own");
        let certificate = certificate.der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate of our own is one");
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], private)
            .expect("the key is the certificate's");
        let mut client =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        client.resumption = Resumption::disabled();
        Configs { server: Arc::new(server), client: Arc::new(client) }
    })
}

/// What the simulated listener serves.
pub fn server() -> Arc<ServerConfig> {
    configs().server.clone()
}

/// A client's end of one connection.
#[derive(Debug)]
pub struct TlsClient {
    connection: ClientConnection,
}

impl TlsClient {
    /// A client that has not said anything yet.
    pub fn new() -> Self {
        let name = ServerName::try_from(NAME).expect("a proper name");
        let mut connection = ClientConnection::new(configs().client.clone(), name)
            .expect("the configuration is complete");
        connection.set_buffer_limit(None);
        TlsClient { connection }
    }

    /// Decrypts `wire` to the end of `plain`.
    ///
    /// # Errors
    /// What rustls has against it.
    pub fn receive(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        while !wire.is_empty() {
            let count = self.connection.read_tls(&mut wire).map_err(|why| why.to_string())?;
            self.connection.process_new_packets().map_err(|why| format!("TLS: {why}"))?;
            // It ends with "nothing yet", which is no error here.
            let _ = self.connection.reader().read_to_end(plain);
            if count == 0 {
                return Err("bytes after the end of TLS".into());
            }
        }
        Ok(())
    }

    /// Encrypts all of `plain`, and adds whatever is to be sent to `wire`.
    pub fn send(&mut self, plain: &[u8], wire: &mut Vec<u8>) {
        self.connection.writer().write_all(plain).expect("there is no limit");
        while self.connection.wants_write() {
            self.connection.write_tls(wire).expect("a vector takes everything");
        }
    }
}

impl Default for TlsClient {
    fn default() -> Self {
        TlsClient::new()
    }
}
