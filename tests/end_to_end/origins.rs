//! Which pages may connect.

use crate::support::{Backend, Client, Config, End, Gateway, head};

#[test]
fn origins_are_compared_exactly() {
    let backend = Backend::start();
    let list = "origins = [\"https://app.example\", \"http://app.example:8080\", \
         \"https://*.wild.example\"]";
    let config = Config::bare(backend.address())
        .route("/list", &format!("auth = \"none\"\n{list}\norigin_absent = \"refuse\""))
        .route("/absent", &format!("auth = \"none\"\n{list}\norigin_absent = \"allow\""))
        .route("/none", "auth = \"none\"\norigins = []\norigin_absent = \"allow\"")
        .route("/any", "auth = \"none\"\norigins = \"any\"\norigin_absent = \"refuse\"");
    let gateway = Gateway::start(&config);
    let mut refused = 0;
    for (path, origin, allowed) in [
        ("/list", Some("https://app.example"), true),
        ("/list", Some("http://app.example:8080"), true),
        ("/list", Some("https://a.wild.example"), true),
        ("/list", Some("https://a.b.wild.example"), true),
        ("/list", Some("https://wild.example"), false),
        ("/list", Some("https://evilwild.example"), false),
        ("/list", Some("https://app.example.evil.com"), false),
        ("/list", Some("https://app.example:8443"), false),
        ("/list", Some("http://app.example"), false),
        ("/list", Some("https://APP.example"), false),
        ("/list", Some("https://app.example."), false),
        ("/list", Some("https://u@app.example"), false),
        ("/list", Some("https://app.example/"), false),
        ("/list", Some("null"), false),
        ("/list", Some(""), false),
        ("/list", None, false),
        ("/absent", None, true),
        ("/absent", Some("https://evil.example"), false),
        ("/none", None, true),
        ("/none", Some("https://app.example"), false),
        ("/any", Some("https://whatever.example"), true),
        ("/any", None, false),
    ] {
        let fields = origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
        let (mut client, answer) = Client::ask(gateway.address(), path, &fields);
        let status = if allowed { "101 Switching Protocols" } else { "403 Forbidden" };
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{path} {origin:?}: {answer}"
        );
        if allowed {
            client.echo("hello");
            assert_eq!(backend.opened().origin.as_deref(), origin, "{path}");
        } else {
            assert_eq!(head(&answer, "connection"), Some("close"));
            let (body, end) = client.drain();
            assert!(body.starts_with(b"forbidden_origin: "), "{}", body.escape_ascii());
            assert_eq!(end, End::Fin);
            refused += 1;
        }
    }
    assert_eq!(backend.opens(), 0, "no session for the refused");
    gateway.wait_closes("forbidden_origin", refused);
}
