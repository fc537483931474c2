//! Reload, drain, signals, a worker's panic, exhaustion, and the admin endpoints.

use std::time::{Duration, Instant};

use portcullis::backend::EndedBy;
use serde_json::Value;

use crate::support::{
    Backend, Child, Client, Config, End, Gateway, Opcode, PATIENCE, SECRET, free_port, mint,
    series_value, token, unix_now, wait_until,
};

const GOING_AWAY: &str =
    r#"{"type":"close","code":1001,"reason":"going_away","reconnect":true,"retry_after_ms":1000}"#;

/// Waits for the explained 1001 and answers it; how long that took since `begun`.
pub(crate) fn await_going_away(client: &mut Client, begun: Instant) -> Duration {
    client.expect(Opcode::Text, GOING_AWAY.as_bytes());
    let at = begun.elapsed();
    assert_eq!(client.close_frame(), (Some(1001), "going_away".into()));
    client.close(1001, "");
    assert_eq!(client.end(), End::Fin);
    at
}

fn status(client: &(Client, String)) -> &str {
    client.1.split(' ').nth(1).expect("a status")
}

#[test]
fn a_reload_changes_what_is_hot_for_old_and_new_connections() {
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .guarded("a", "authorization", "")
        .route("/old", "auth = \"none\"")
        .ports(free_port(), free_port());
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    gateway.wait_ready(1);
    let address = gateway.address();
    let good = format!("Authorization: Bearer {}\r\n", token("good"));
    let mut old = Client::open(address, "/old", "");
    old.echo("hello");
    assert_eq!(status(&Client::ask(address, "/new", "")), "404");
    // The old route goes, a new one comes, messages become smaller, a key is added.
    let new_key = "a new key, which is long enough too";
    let mut changed = Config { routes: String::new(), auths: String::new(), ..config.clone() }
        .guarded("a", "authorization", "refuse = \"http\"")
        .route("/new", "auth = \"none\"")
        .limits("message_max = \"1KiB\"");
    changed.auths = changed
        .auths
        .replace("keys = [", &format!("keys = [{{ id = \"new\", secret = \"{new_key}\" }}, "));
    assert!(gateway.reload(&changed).is_ok());
    wait_until("the new route is there", || status(&Client::ask(address, "/new", "")) == "101");
    assert_eq!(status(&Client::ask(address, "/old", "")), "404");
    Client::open(address, "/a", &good).echo("the old key still signs");
    let (_, answer) = Client::ask(address, "/a", "");
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    old.echo("an old connection lives on");
    old.send(true, Opcode::Binary, &[0; 1025]);
    assert_eq!(old.close_frame(), (Some(1009), "too_large".into()));
    gateway.wait_metric("portcullis_reloads_total{result=\"ok\"}", |count| count == 1);
}

#[test]
fn a_reload_with_one_cold_change_changes_nothing() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).ports(free_port(), free_port());
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    gateway.wait_ready(1);
    let with_new = config.clone().route("/new", "auth = \"none\"");
    for (what, changed) in [
        ("gateway.workers", with_new.clone().workers(2)),
        ("limits.dead_tokens_max", with_new.clone().limits("dead_tokens_max = 0")),
        ("limits.client_buffers", with_new.clone().limits("client_buffers = 512")),
        ("no-such-key", with_new.clone().limits("no-such-key = 1")),
    ] {
        let problems = gateway.reload(&changed).expect_err(what);
        assert!(problems.iter().any(|problem| problem.contains(what)), "{what}: {problems:?}");
        assert_eq!(status(&Client::ask(gateway.address(), "/new", "")), "404", "{what}");
        Client::open(gateway.address(), "/ws", "").echo("hello");
    }
    assert!(gateway.reload(&with_new).is_ok());
    wait_until("the route is there", || {
        status(&Client::ask(gateway.address(), "/new", "")) == "101"
    });
    gateway.wait_metric("portcullis_reloads_total{result=\"refused\"}", |count| count == 4);
}

#[test]
fn a_reload_adds_moves_and_removes_endpoints_and_leaves_the_others_sessions_alone() {
    let (first, second) = (Backend::start(), Backend::start());
    let both = [second.address(), first.address()];
    let config = Config::to(first.address())
        .ports(free_port(), free_port())
        .workers(1)
        .deadlines("drain = \"1s\"");
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    gateway.wait_ready(1);
    let mut of_first = Client::open(gateway.address(), "/ws", "");
    of_first.echo("on the first");

    // The new one comes before it in the list; the old link keeps its session.
    gateway.reload(&config.clone().backend(&both, "")).expect("live");
    gateway.wait_ready(2);
    let mut of_second = Client::open(gateway.address(), "/ws", "");
    of_second.echo("on the second");
    assert_eq!((first.opens(), second.opens()), (1, 1));
    of_first.echo("still on the first");

    // The removed one takes nobody any more, and its clients are told to come again.
    let begun = Instant::now();
    gateway.reload(&config.clone().backend(&both[..1], "")).expect("live");
    let mut newcomer = Client::open(gateway.address(), "/ws", "");
    newcomer.echo("on the second, too");
    assert_eq!(first.opens(), 0);
    let took = await_going_away(&mut of_first, begun);
    assert!(took < Duration::from_secs(3), "{took:?}");
    gateway.wait_metric("portcullis_links{state=\"ready\"}", |links| links == 1);
    gateway.wait_metric("portcullis_links{state=\"down\"}", |links| links == 0);
    gateway.wait_closes("going_away", 1);
    of_second.echo("untouched");
    newcomer.echo("untouched");

    // All at once: the slot of the first is used again, the second leaves.
    gateway.reload(&config).expect("live");
    let begun = Instant::now();
    await_going_away(&mut of_second, begun);
    await_going_away(&mut newcomer, begun);
    gateway.wait_metric("portcullis_links{state=\"down\"}", |links| links == 0);
    gateway.wait_metric("portcullis_links{state=\"ready\"}", |links| links == 1);
    Client::open(gateway.address(), "/ws", "").echo("on the first again");
    assert_eq!(first.opens(), 1);
}

#[test]
fn the_program_reloads_drains_over_its_window_and_exits_0() {
    let backend = Backend::start();
    let config = Config::to(backend.address())
        .guarded("first", "first-message", "")
        .workers(2)
        .deadlines("drain = \"2s\"\nauthenticate = \"30s\"");
    let mut child = Child::start(config, "");
    wait_until("both links are up", || {
        series_value(&child.get("/metrics").1, "portcullis_links{state=\"ready\"}") == 2
    });
    let mut clients: Vec<Client> =
        (0..30).map(|_| Client::open(child.address, "/ws", "")).collect();
    clients.iter_mut().for_each(|client| client.echo("hello"));
    // Hot, then cold.
    let changed = child.config().route("/new", "auth = \"none\"");
    child.rewrite(&changed);
    child.signal("HUP");
    wait_until("the route is there", || status(&Client::ask(child.address, "/new", "")) == "101");
    child.rewrite(&changed.route("/newer", "auth = \"none\"").workers(1));
    child.signal("HUP");
    wait_until("the refusal is in the log", || {
        child.log().contains("reload refused") && child.log().contains("gateway.workers")
    });
    assert_eq!(status(&Client::ask(child.address, "/newer", "")), "404");
    // One more is not authenticated yet.
    clients.push(Client::open(child.address, "/first", ""));
    let begun = Instant::now();
    child.signal("TERM");
    wait_until("it says so", || child.get("/readyz") == (503, "draining\n".into()));
    assert_eq!(child.get("/healthz").0, 200);
    wait_until("nobody gets in", || std::net::TcpStream::connect(child.address).is_err());
    let waiting: Vec<_> = clients
        .into_iter()
        .map(|mut client| std::thread::spawn(move || await_going_away(&mut client, begun)))
        .collect();
    let times: Vec<Duration> = waiting.into_iter().map(|t| t.join().expect("told")).collect();
    let (first, last) = (times.iter().min().expect("31"), times.iter().max().expect("31"));
    assert!(*last - *first > Duration::from_millis(900), "not spread: {times:?}");
    assert!(*last < Duration::from_millis(3500), "{last:?}");
    assert_eq!(child.wait().code(), Some(0), "{}", child.log());
    let log = child.log();
    assert!(log.contains("draining") && log.contains("stopped"), "{log}");
    // The backend is told why, not left to guess.
    for _ in 0..30 {
        let ended = backend.ended();
        if ended.by == EndedBy::Client {
            continue;
        }
        assert_eq!((ended.cause.as_str(), ended.code), ("going_away", 1001));
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).deadlines("drain = \"1h\"");
    let mut child = Child::start(config, "");
    wait_until("the link is up", || {
        series_value(&child.get("/metrics").1, "portcullis_links{state=\"ready\"}") == 1
    });
    let mut client = Client::open(child.address, "/ws", "");
    client.echo("hello");
    child.signal("TERM");
    wait_until("it drains", || child.get("/readyz").0 == 503);
    client.echo("not yet");
    let begun = Instant::now();
    child.signal("INT");
    assert_eq!(child.wait().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4));
    client.drain();
}

#[test]
fn a_drain_without_a_window_still_says_goodbye() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let mut clients: Vec<Client> =
        (0..20).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
    clients.iter_mut().for_each(|client| client.echo("hello"));
    let begun = Instant::now();
    gateway.handle.shutdown(Duration::ZERO);
    for client in &mut clients {
        await_going_away(client, begun);
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    for _ in 0..20 {
        assert_eq!(backend.ended().cause, "going_away");
    }
    gateway.handle.join().expect("it ends");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_workers_panic_loses_its_own_connections_only() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()).workers(2));
    let mut clients: Vec<Client> =
        (0..40).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
    clients.iter_mut().for_each(|client| client.echo("hello"));
    let connections = || -> Vec<u64> {
        let live: Value = serde_json::from_str(&gateway.get("/live.json").1).expect("JSON");
        let workers = live["workers"].as_array().expect("a list").iter();
        workers.map(|worker| worker["connections"].as_u64().expect("a number")).collect()
    };
    wait_until("all are counted", || connections().iter().sum::<u64>() == 40);
    let (lost, kept) = (connections()[0], connections()[1]);
    assert!(lost > 0 && kept > 0, "{lost} and {kept}");
    gateway.handle.inject_panic(0);
    gateway.wait_metric("portcullis_worker_panics_total", |count| count == 1);
    let mut alive = 0;
    for client in &mut clients {
        client.text("are you there?");
        alive += u64::from(client.frame().is_some_and(|f| f.payload == b"are you there?"));
    }
    assert_eq!(alive, kept);
    gateway.wait_closes("internal", lost);
    gateway.wait_metric("portcullis_workers_alive", |alive| alive == 2);
    gateway.wait_ready(2);
    // Both take connections again.
    let mut again: Vec<Client> =
        (0..40).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
    again.iter_mut().for_each(|client| client.echo("again"));
    wait_until("both have some", || connections()[0] > 0 && connections()[1] > kept);
    assert_eq!(gateway.get("/readyz").0, 200);
    for _ in 0..lost {
        assert_eq!(backend.ended().by, EndedBy::Link);
    }
}

#[test]
fn the_admin_endpoints_tell_what_is_going_on() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).guarded("a", "authorization", "");
    let gateway = Gateway::start(&config);
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.echo("hello");
    let mut refused = Client::open(gateway.address(), "/a", "");
    refused.frame();
    refused.close_frame();
    refused.close(4401, "");
    refused.end();
    assert_eq!(gateway.get("/healthz").0, 200);
    assert_eq!(gateway.get("/readyz").0, 200);
    assert_eq!(gateway.get("/nothing").0, 404);
    gateway.wait_closes("token_missing", 1);
    for (series, value) in [
        ("portcullis_connections_accepted_total", 2),
        ("portcullis_connections{stage=\"open\"}", 1),
        ("portcullis_connections{stage=\"refused\"}", 0),
        ("portcullis_upgrades_total", 2),
        ("portcullis_tokens_refused_total", 1),
        ("portcullis_sessions_opened_total", 1),
        ("portcullis_messages_total{direction=\"from_client\"}", 1),
        ("portcullis_messages_total{direction=\"to_client\"}", 1),
        ("portcullis_message_bytes_total{direction=\"to_client\"}", 5),
        ("portcullis_links{state=\"ready\"}", 1),
        ("portcullis_workers_alive", 1),
        ("portcullis_worker_panics_total", 0),
    ] {
        assert_eq!(gateway.metric(series), value, "{series}");
    }
    let live: Value = serde_json::from_str(&gateway.get("/live.json").1).expect("JSON");
    for (pointer, value) in [
        ("/phase", Value::from("serving")),
        ("/ready", true.into()),
        ("/connections/open", 1.into()),
        ("/closes/token_missing", 1.into()),
        ("/accepted_total", 2.into()),
        ("/messages_total/from_client", 1.into()),
        ("/links/ready", 1.into()),
    ] {
        assert_eq!(live.pointer(pointer), Some(&value), "{pointer}");
    }
}

#[test]
fn a_cap_turns_clients_away_and_makes_room_again() {
    let backend = Backend::start();
    let config =
        Config::to(backend.address()).limits("connections_per_worker = 16\nexplain_reserve = 0");
    let gateway = Gateway::start(&config);
    let mut clients: Vec<Client> =
        (0..16).map(|_| Client::open(gateway.address(), "/ws", "")).collect();
    clients.iter_mut().for_each(|client| client.echo("hello"));
    let mut late = Client::connect(gateway.address());
    late.write(b"GET /ws HTTP/1.1\r\n");
    assert_eq!(late.end(), End::Reset);
    gateway.wait_metric("portcullis_connections_over_cap_total", |count| count >= 1);
    clients.truncate(15);
    gateway.wait_closes("client_gone", 1);
    Client::open(gateway.address(), "/ws", "").echo("there is room");
    clients.iter_mut().for_each(|client| client.echo("undisturbed"));
}

#[test]
fn few_descriptors_are_a_cap_and_no_crash() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).limits("explain_reserve = 0");
    let mut child = Child::start(config, "ulimit -n 300;");
    wait_until("the link is up", || {
        series_value(&child.get("/metrics").1, "portcullis_links{state=\"ready\"}") == 1
    });
    assert!(child.log().contains("the limit on open files"), "{}", child.log());
    let mut taken = Vec::new();
    let begun = Instant::now();
    let turned_away = loop {
        let mut client = Client::connect(child.address);
        client.write(crate::support::request("/ws", "").as_bytes());
        if client.try_head().is_none() {
            break taken.len();
        }
        taken.push(client);
        assert!(taken.len() < 400 && begun.elapsed() < PATIENCE, "nobody is turned away");
    };
    assert_eq!(turned_away, 300 - 256);
    taken.iter_mut().for_each(|client| client.echo("hello"));
    drop(taken);
    wait_until("there is room", || {
        let mut client = Client::connect(child.address);
        client.write(crate::support::request("/ws", "").as_bytes());
        client.try_head().is_some()
    });
    child.signal("TERM");
    assert_eq!(child.wait().code(), Some(0));
}

#[test]
fn a_key_rotated_out_stays_valid_while_it_is_listed() {
    let backend = Backend::start();
    let config = Config::bare(backend.address())
        .guarded("a", "authorization", "refuse = \"http\"")
        .ports(free_port(), free_port());
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    gateway.wait_ready(1);
    let new_key = "a new key, which is long enough too";
    let answer = |key: &str| {
        let claims = format!(r#"{{"sub":"ada","exp":{}}}"#, unix_now() + 60);
        let fields = format!("Authorization: Bearer {}\r\n", mint(key, &claims));
        status(&Client::ask(gateway.address(), "/a", &fields)).to_owned()
    };
    assert_eq!((answer(SECRET), answer(new_key)), ("101".into(), "401".into()));
    let replaced = Config { auths: config.auths.replace(SECRET, new_key), ..config };
    assert!(gateway.reload(&replaced).is_ok());
    wait_until("the new key counts", || answer(new_key) == "101");
    assert_eq!(answer(SECRET), "401");
}
