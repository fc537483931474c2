//! The configuration of one run: text and files that only exist in memory, loaded by the
//! ordinary loader.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::certificate::Certificate;
use super::options::{DevOptions, failure, unix_seconds};
use crate::protocol::jwt::JwtKey;
use crate::server::RunError;
use crate::settings::load::{Environment, FileContents, Issuing, Loaded, load};

/// The subprotocol that the page offers beside its token: a browser fails a connection whose
/// offers were all passed over.
pub(super) const SUBPROTOCOL: &str = "portcullis";

const CERTIFICATE_FILE: &str = "certificate.pem";
const CERTIFICATE_KEY_FILE: &str = "certificate-key.pem";
const TOKEN_KEY_FILE: &str = "token-key";
const LINK_SECRET_FILE: &str = "link-secret";

/// All that differs from run to run.
pub(super) struct Demo {
    pub(super) options: DevOptions,
    /// Where the backend listens.
    pub(super) backend: String,
    pub(super) link_secret: String,
    pub(super) token_key: String,
    pub(super) certificate: Certificate,
}

/// The page's origins: a browser names the host as it stands in the address bar.
pub(super) fn origins(options: &DevOptions) -> [String; 2] {
    [format!("http://{}", options.admin), format!("http://localhost:{}", options.admin.port())]
}

/// The key that the demo's tokens are signed with.
pub(super) fn token_key(loaded: &Loaded) -> JwtKey {
    match &loaded.issuing[0] {
        Issuing::Jwt { keys, .. } => keys[0].clone(),
        _ => unreachable!("the demo's own configuration has kind = \"jwt\""),
    }
}

/// The configuration as a file would say it.
fn text(demo: &Demo) -> String {
    let DevOptions { plain, tls, admin } = demo.options;
    let backend = &demo.backend;
    let mut text = format!(
        r#"[gateway]
admin = "{admin}"
log = {{ format = "auto", level = "info" }}

[limits]
connections_max = 10_000
unauthenticated_max = 1_000

[deadlines]
drain = "1s"

[[listener]]
address = "{plain}"

[[listener]]
address = "{tls}"
tls = {{ certificate = "{CERTIFICATE_FILE}", key = "{CERTIFICATE_KEY_FILE}" }}

[[backend]]
name = "dev"
endpoints = ["{backend}"]
secret_file = "{LINK_SECRET_FILE}"
"#
    );
    // Apart, because a route that waits for a first message cannot say before it that a token is
    // missing.
    let auths = [
        ("upgrade", r#"["authorization", "subprotocol", "query:token"]"#),
        ("message", r#"["first-message"]"#),
    ];
    for (name, carriers) in auths {
        let _infallible = write!(
            text,
            r#"
[[auth]]
name = "{name}"
kind = "jwt"
carriers = {carriers}
keys = [{{ id = "dev", algorithm = "HS256", secret_file = "{TOKEN_KEY_FILE}" }}]
"#
        );
    }
    let [address, localhost] = origins(&demo.options);
    let routes = [
        ("/chat", "upgrade"),
        ("/echo", "upgrade"),
        ("/first/chat", "message"),
        ("/first/echo", "message"),
    ];
    for (path, auth) in routes {
        let _infallible = write!(
            text,
            r#"
[[route]]
path = "{path}"
origins = ["{address}", "{localhost}"]
origin_absent = "allow"
auth = "{auth}"
backend = "dev"
subprotocols = ["{SUBPROTOCOL}"]
health = true
"#
        );
    }
    text
}

/// The files of a [`Demo`], and this machine's clock.
struct InMemory<'a>(&'a Demo);

impl Environment for InMemory<'_> {
    fn read(&self, path: &Path) -> io::Result<FileContents> {
        let Demo { certificate, token_key, link_secret, .. } = self.0;
        let text = match path.to_str() {
            Some(CERTIFICATE_FILE) => &certificate.certificate_pem,
            Some(CERTIFICATE_KEY_FILE) => &certificate.key_pem,
            Some(TOKEN_KEY_FILE) => token_key,
            Some(LINK_SECRET_FILE) => link_secret,
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(FileContents { bytes: text.clone().into_bytes(), readable_by_others: false })
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn unix_seconds(&self) -> u64 {
        unix_seconds()
    }
}

/// Loads the configuration as if it were a file's.
pub(super) fn load_demo(demo: &Demo) -> Result<Loaded, RunError> {
    load(&text(demo), Path::new("dev.toml"), &InMemory(demo)).map_err(|problems| {
        let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
        failure("its own configuration is refused", lines.join("\n"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::certificate;
    use super::*;
    use crate::protocol::carrier::Carrier;

    fn demo(admin: &str) -> Demo {
        let options = DevOptions { admin: admin.parse().unwrap(), ..DevOptions::default() };
        Demo {
            options,
            backend: "127.0.0.1:7000".into(),
            link_secret: "s".repeat(64),
            token_key: "k".repeat(64),
            certificate: certificate::make().unwrap(),
        }
    }

    #[test]
    fn the_ordinary_loader_takes_it() {
        let loaded = load_demo(&demo("127.0.0.1:9464")).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(token_key(&loaded).secret.expose(), "k".repeat(64).as_bytes());
        let settings = loaded.settings;
        assert!(settings.listeners[0].tls.is_none() && settings.listeners[1].tls.is_some());
        assert!(settings.backends[0].secret.is_some());
        let paths = ["/chat", "/echo", "/first/chat", "/first/echo"];
        let carriers = |path: &str| {
            let route =
                &settings.routes[usize::from(settings.route_for("localhost", path).unwrap())];
            settings.auths_of(route).next().unwrap().carriers.clone()
        };
        for path in paths {
            let first = path.starts_with("/first");
            assert_eq!(carriers(path) == [Carrier::FirstMessage], first, "{path}");
        }
        assert!(settings.route_for("localhost", "/").is_none());
    }

    #[test]
    fn an_admin_listener_for_all_the_world_is_refused_with_the_loaders_words() {
        let error = load_demo(&demo("0.0.0.0:9464")).err().expect("refused").to_string();
        assert!(error.contains("admin"), "{error}");
    }
}
