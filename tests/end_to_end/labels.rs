//! Numbers by listener, route and endpoint.

use portcullis::protocol::link::Kind;

use crate::support::{
    Backend, Child, Client, Config, Gateway, Opcode, RawBackend, Server, free_port, series_value,
    wait_until,
};

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

fn endpoint(metric: &str, address: &str, more: &str) -> String {
    format!("portcullis_endpoint_{metric}{{backend=\"main\",endpoint=\"{address}\"{more}}}")
}

#[test]
fn endpoints_are_counted_by_the_address_in_the_settings() {
    let (one, two) = (Backend::start(), Backend::start());
    let dead = format!("127.0.0.1:{}", free_port());
    let config = Config::default().backend(&[one.address(), two.address(), &dead], "").workers(2);
    let gateway = Gateway::start_alone(&config);
    gateway.wait_ready(4);
    let mut clients: Vec<Client> =
        (0..8).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
    clients.iter_mut().for_each(|client| client.echo("hello"));
    gateway.wait_metric(&endpoint("failures_total", &dead, ""), |n| n >= 2);
    wait_until("the sessions are counted", || {
        let sessions = |of: &Backend| gateway.metric(&endpoint("sessions", of.address(), ""));
        let (one, two) = (sessions(&one), sessions(&two));
        one + two == 8 && one > 0 && two > 0
    });
    for (series, value) in [
        (endpoint("links", one.address(), ",state=\"ready\""), 2),
        (endpoint("links", two.address(), ",state=\"down\""), 0),
        (endpoint("connects_total", two.address(), ""), 2),
        (endpoint("failures_total", one.address(), ""), 0),
        (endpoint("links", &dead, ",state=\"ready\""), 0),
        (endpoint("links", &dead, ",state=\"down\""), 2),
        (endpoint("connects_total", &dead, ""), 0),
        (endpoint("sessions", &dead, ""), 0),
    ] {
        assert_eq!(gateway.metric(&series), value, "{series}");
    }
    drop(clients);
    for of in [&one, &two] {
        gateway.wait_metric(&endpoint("sessions", of.address(), ""), |open| open == 0);
    }
}

#[test]
fn an_endpoint_that_a_reload_removes_keeps_its_counters_and_has_no_links() {
    let (one, two) = (Backend::start(), Backend::start());
    let before = Config::default()
        .backend(&[one.address()], "")
        .deadlines("drain = \"1s\"")
        .ports(free_port(), free_port());
    let gateway = Gateway::start_from(&before, tempfile::tempdir().expect("a folder"));
    gateway.wait_ready(1);
    let links = |of: &Backend, state: &str| {
        gateway.metric(&endpoint("links", of.address(), &format!(",state=\"{state}\"")))
    };
    assert!(gateway.reload(&before.clone().backend(&[two.address()], "")).is_ok());
    wait_until("the other is linked", || links(&two, "ready") == 1);
    wait_until("the removed one has no links", || links(&one, "ready") == 0);
    assert_eq!(links(&one, "down"), 0, "no alert for what is not there");
    assert_eq!(gateway.metric(&endpoint("connects_total", one.address(), "")), 1);
    // It comes back and goes on counting.
    assert!(gateway.reload(&before.backend(&[one.address(), two.address()], "")).is_ok());
    gateway.wait_metric(&endpoint("connects_total", one.address(), ""), |n| n == 2);
    wait_until("both are linked", || links(&one, "ready") + links(&two, "ready") == 2);
}

#[test]
fn websocket_servers_are_counted_among_the_endpoints() {
    let server = Server::start();
    let dead = format!("127.0.0.1:{}", free_port());
    let config = Config::default()
        .backend(&[&server.endpoint(), &format!("ws://{dead}")], "kind = \"websocket\"");
    let gateway = Gateway::start_alone(&config);
    let address = gateway.address();
    // Round robin: every second one tries the dead server first, which rests after three.
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let client = std::thread::spawn(move || Client::open(address, "/ws", ""));
            let app = server.accept();
            (client.join().expect("it is let in"), app)
        })
        .collect();
    gateway.wait_metric(&endpoint("resting", &dead, ""), |n| n == 1);
    let failures = gateway.metric(&endpoint("failures_total", &dead, ""));
    assert_eq!(failures, gateway.metric("portcullis_upstream_failures_total"));
    let live = server.endpoint().replace("ws://", "");
    for (series, value) in [
        (endpoint("sessions", &live, ""), 6),
        (endpoint("connects_total", &live, ""), 6),
        (endpoint("failures_total", &live, ""), 0),
        (endpoint("resting", &live, ""), 0),
        // No link is made to a server.
        (endpoint("links", &live, ",state=\"down\""), 0),
        (endpoint("sessions", &dead, ""), 0),
        (endpoint("connects_total", &dead, ""), 0),
        (route("sessions_opened_total", "/ws", ""), 6),
    ] {
        assert_eq!(gateway.metric(&series), value, "{series}");
    }
    drop(clients);
    gateway.wait_metric(&endpoint("sessions", &live, ""), |n| n == 0);
}

/// Its addresses are not known before the gateway runs, and may change.
#[test]
fn websocket_servers_are_found_by_name_and_counted_under_it() {
    let server = Server::start();
    let url = server.endpoint().replace("127.0.0.1", "localhost");
    let config = Config::default().backend(&[&url], "kind = \"websocket\"");
    let gateway = Gateway::start_alone(&config);
    let address = gateway.address();
    let client = std::thread::spawn(move || Client::open(address, "/ws", ""));
    let app = server.accept();
    let client = client.join().expect("it is let in");
    let name = url.replace("ws://", "");
    gateway.wait_metric(&endpoint("sessions", &name, ""), |n| n == 1);
    assert_eq!(gateway.metric(&endpoint("connects_total", &name, "")), 1);
    drop((client, app));
    gateway.wait_metric(&endpoint("sessions", &name, ""), |n| n == 0);
}

/// It is named before its sessions are closed, in the log and by a metric.
#[test]
fn a_backend_that_answers_no_ping_is_named_before_its_link_is_dropped() {
    let backend = RawBackend::listen();
    let config = Config::to(&backend.address()).deadlines("link_ping = \"1s\"");
    let child = Child::start(config, "");
    let mut link = backend.accept();
    let mut client = Client::open(child.address, "/ws", "");
    link.expect(Kind::Open);
    let silent = endpoint("pings_unanswered_total", &backend.address(), "");
    let count = || series_value(&child.get("/metrics").1, &silent);
    let trouble = |log: &str| log.matches("link in trouble").count();
    wait_until("it is named", || trouble(&child.log()) == 1);
    let log = child.log();
    assert!(log.contains("deadlines.link_ping") && log.contains(&backend.address()), "{log}");
    assert!(!log.contains("link down"), "not before the warning: {log}");
    client.expect(Opcode::Text, crate::backends::UNAVAILABLE.as_bytes());
    wait_until("its link is dropped", || child.log().contains("link down"));
    assert_eq!(trouble(&child.log()), 1, "{}", child.log());
    wait_until("it is counted", || count() == 1);
}

#[test]
fn a_backend_that_gives_no_credit_is_named_once_for_each_standstill() {
    let mut backend = RawBackend::listen();
    backend.limits.session_window = 4096;
    let config = Config::to(&backend.address()).deadlines("link_stall = \"300ms\"");
    let child = Child::start(config, "");
    let mut link = backend.accept();
    let mut client = Client::open(child.address, "/ws", "");
    let (session, _) = link.expect(Kind::Open);
    let stalls = endpoint("credit_stalls_total", &backend.address(), "");
    let count = || series_value(&child.get("/metrics").1, &stalls);
    assert_eq!(count(), 0);
    // More than the window: the rest waits.
    client.send(true, Opcode::Binary, &[0; 6000]);
    wait_until("it is named", || child.log().contains("link in trouble"));
    wait_until("it is counted", || count() == 1);
    // Credit for less than what waits, and none again.
    link.credit(session, 100);
    wait_until("the next standstill is named", || {
        child.log().matches("link in trouble").count() == 2
    });
    let log = child.log();
    assert!(log.contains("deadlines.link_stall") && log.contains(&backend.address()), "{log}");
    assert!(!log.contains("link down"), "{log}");
    wait_until("it is counted again", || count() == 2);
    link.credit(session, 100_000);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(count(), 2, "nothing waits any more");
}
