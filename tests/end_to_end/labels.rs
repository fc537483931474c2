//! Numbers by listener and by route.

use crate::support::{Backend, Client, Config, Gateway, free_port, wait_until};

fn route(metric: &str, name: &str, more: &str) -> String {
    format!("portcullis_route_{metric}{{route=\"{name}\"{more}}}")
}

#[test]
fn routes_and_listeners_are_counted_by_name_and_a_reload_loses_nothing() {
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .route("/feed/*", "auth = \"none\"")
        .route("/old", "auth = \"none\"\nname = \"chat\"")
        .ports(free_port(), free_port());
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    gateway.wait_ready(1);
    let address = gateway.address();
    let at_listener = |metric: &str, more: &str| {
        format!("portcullis_listener_{metric}{{listener=\"{address}\"{more}}}")
    };
    let mut chat = Client::open(address, "/old", "");
    let mut feed = Client::open(address, "/feed/1", "");
    chat.echo("hello");
    feed.echo("hi");
    // Its route is never known.
    assert!(Client::ask(address, "/none", "").1.starts_with("HTTP/1.1 404 "));
    gateway.wait_metric(&route("messages_total", "chat", ",direction=\"from_client\""), |n| n == 1);
    gateway.wait_metric(&at_listener("closes_total", ",cause=\"bad_request\""), |n| n == 1);
    for (series, value) in [
        (route("message_bytes_total", "chat", ",direction=\"to_client\""), 5),
        (route("message_bytes_total", "/feed/*", ",direction=\"from_client\""), 2),
        (route("sessions_opened_total", "/feed/*", ""), 1),
        (route("connections", "chat", ""), 1),
        (at_listener("accepted_total", ""), 3),
        (at_listener("connections", ""), 2),
        (at_listener("refused_total", ""), 0),
    ] {
        assert_eq!(gateway.metric(&series), value, "{series}");
    }
    // The one route goes, the other gets another place and path, and a third one comes.
    let changed = Config { routes: String::new(), ..config }
        .route("/third", "auth = \"none\"")
        .route("/new", "auth = \"none\"\nname = \"chat\"");
    assert!(gateway.reload(&changed).is_ok());
    wait_until("the new route is there", || {
        Client::ask(address, "/new", "").1.starts_with("HTTP/1.1 101 ")
    });
    // A client whose route is gone is still counted there.
    feed.echo("hi again");
    feed.close(1000, "");
    chat.echo("hello");
    Client::open(address, "/third", "").echo("hey");
    let closed = route("closes_total", "/feed/*", ",cause=\"client_closed\"");
    gateway.wait_metric(&closed, |n| n == 1);
    gateway.wait_metric(&route("messages_total", "/third", ",direction=\"to_client\""), |n| n == 1);
    for (series, value) in [
        (route("messages_total", "/feed/*", ",direction=\"from_client\""), 2),
        (route("connections", "/feed/*", ""), 0),
        (route("messages_total", "chat", ",direction=\"from_client\""), 2),
        (route("message_bytes_total", "/third", ",direction=\"to_client\""), 3),
        (at_listener("closes_total", ",cause=\"bad_request\""), 1),
    ] {
        assert_eq!(gateway.metric(&series), value, "{series}");
    }
}
