//! No descriptor is left.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::backend::Process;
use crate::report::{Outcome, Row};
use crate::stages::{IDLE, SILENT};
use crate::support::{Client, free_port, series_value, token, wait_until};
use crate::world::{World, config};

/// A client from 127.9.0.`host`.
pub fn from(to: SocketAddr, host: u8) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    connect(socket, to, host)
}

/// The same with a receive buffer that takes next to nothing.
pub fn narrow_from(to: SocketAddr, host: u8) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("set");
    socket.set_tcp_mss(1000).expect("set");
    connect(socket, to, host)
}

fn connect(socket: Socket, to: SocketAddr, host: u8) -> Client {
    socket.bind(&SocketAddr::from(([127, 9, 0, host], 0)).into()).expect("bound");
    socket.connect(&to.into()).expect("connected");
    Client::over_tcp(TcpStream::from(socket))
}

fn open_from(to: SocketAddr, host: u8) -> Client {
    let mut client = from(to, host);
    let fields = format!("X-Token: {}\r\n", token("good"));
    client.write(crate::support::request("/header", &fields).as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    client
}

fn backend() -> Process {
    Process::echo(&format!("127.0.0.1:{}", free_port()))
}

fn patient(mut config: crate::support::Config, kind: &str) -> crate::support::Config {
    config.gateway += &format!("descriptors = \"{kind}\"\n");
    config.deadlines("request_head = \"1m\"")
}

/// How many of these were reset.
fn reset(clients: &mut [Client]) -> u32 {
    let quiet = |client: &mut Client| {
        client.tcp().set_nonblocking(true).expect("set");
        let mut byte = [0];
        let outcome = client.tcp().peek(&mut byte);
        outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    clients.iter_mut().map(|client| u32::from(!quiet(client))).sum()
}

/// Clients are descriptors of the process, and accept fails with EMFILE: those who say nothing
/// for a second give way, nobody who is authenticated does.
pub fn plain() -> Outcome {
    let backend = backend();
    let world = World::start(patient(config(&[&backend.address]), "plain"), "", 1);
    let address = world.child.address;
    let mut established: Vec<Client> = (0..5).map(|_| open_from(address, 1)).collect();
    established.iter_mut().for_each(|client| client.echo("hello"));
    let room = 20;
    world.limit_descriptors(world.descriptors() + room);
    let mut silent: Vec<Client> = (0..60).map(|_| from(address, 2)).collect();
    // A newcomer waits in the backlog behind them.
    let mut newcomer = open_from(address, 3);
    newcomer.echo("served");
    established.iter_mut().for_each(|client| client.echo("undisturbed"));
    let gone = reset(&mut silent);
    assert!(gone as usize >= silent.len() - room, "{gone} gave way");
    world.wait_metric("portcullis_accept_exhausted_total", |count| count > 0);
    wait_until("each of them is counted", || {
        let evicted = world.metric("portcullis_evictions_total{kind=\"oldest\"}");
        evicted == u64::from(reset(&mut silent))
    });
    drop((silent, newcomer));
    established.iter_mut().for_each(|client| client.echo("to the end"));
    drop(established);
    world.rest();
    world.limit_descriptors(4096);
    world.assert_recovered(1);
    Outcome::Ran(vec![
        Row { stage: IDLE, saw: "goes on".into(), sent: 15, answered: 15 },
        Row { stage: SILENT, saw: "reset after a second".into(), sent: 0, answered: 0 },
        Row { stage: "newcomer", saw: "waits a second, served".into(), sent: 1, answered: 1 },
    ])
}

/// Clients are the ring's own, and need no descriptor of the process: without one left, they are
/// served as before; the admin listener is not.
pub fn direct() -> Outcome {
    let mut backend = backend();
    let world = World::start(patient(config(&[&backend.address]), "direct"), "", 1);
    let address = world.child.address;
    let mut established: Vec<Client> = (0..5).map(|_| open_from(address, 1)).collect();
    established.iter_mut().for_each(|client| client.echo("hello"));
    world.limit_descriptors(world.descriptors());
    let mut newcomers: Vec<Client> = (0..60).map(|_| open_from(address, 3)).collect();
    newcomers.iter_mut().for_each(|client| client.echo("served"));
    // The gateway waits for a descriptor, it does not spin for one.
    let asked = TcpStream::connect(world.child.admin).expect("its backlog takes it");
    let before = processor_time(world.child.id());
    std::thread::sleep(Duration::from_secs(2));
    let used = processor_time(world.child.id()) - before;
    assert!(used < Duration::from_secs(1), "{used:?} of processor time in 2 s");
    drop(asked);
    established.iter_mut().for_each(|client| client.echo("undisturbed"));
    // A link is lost and made again.
    backend.kill();
    for client in established.iter_mut().chain(&mut newcomers) {
        client.frame().expect("an explanation");
        assert_eq!(client.close_frame(), (Some(1012), "backend_unavailable".into()));
    }
    backend.restart();
    wait_until("the backend is back", || {
        let mut client = open_from(address, 1);
        client.text("hello");
        client.frame().is_some_and(|frame| frame.payload == b"hello")
    });
    drop((established, newcomers));
    world.limit_descriptors(4096);
    wait_until("the admin listener answers", || world.child.get("/readyz").0 == 200);
    world.assert_recovered(1);
    Outcome::Ran(vec![
        Row { stage: IDLE, saw: "goes on".into(), sent: 10, answered: 10 },
        Row { stage: "newcomer", saw: "served".into(), sent: 60, answered: 60 },
    ])
}

/// User and system time of a process.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let behind = stat.rsplit(") ").next().expect("a line");
    let ticks = |at: usize| behind.split(' ').nth(at).and_then(|n| n.parse::<u64>().ok());
    // proc_pid_stat(5): fields 14 and 15, in hundredths of a second.
    Duration::from_millis(10 * (ticks(11).expect("utime") + ticks(12).expect("stime")))
}

/// The gateway was started with few descriptors, and takes no more clients than that. Of those
/// who are not authenticated the heaviest prefix gives way.
pub fn cap() -> Outcome {
    let backend = backend();
    let config = patient(config(&[&backend.address]), "direct").limits("unauthenticated_max = 20");
    // 256 are kept back for everything but clients.
    let world = World::start(config, "ulimit -n 300;", 1);
    let address = world.child.address;
    let mut established: Vec<Client> = (0..10).map(|_| open_from(address, 1)).collect();
    established.iter_mut().for_each(|client| client.echo("hello"));
    let mut few: Vec<Client> = (0..3).map(|_| from(address, 4)).collect();
    let mut many: Vec<Client> = (0..60).map(|_| from(address, 2)).collect();
    // 20 places, of which a lighter prefix has 3. In the burst itself those who gave way still
    // count against the cap until they are closed, and any newcomer may be turned away.
    wait_until("43 gave way", || reset(&mut many) >= 43);
    let mut newcomers: Vec<Client> = (0..10).map(|_| open_from(address, 3)).collect();
    newcomers.iter_mut().for_each(|client| client.echo("served"));
    established.iter_mut().for_each(|client| client.echo("undisturbed"));
    wait_until("each of them is counted", || {
        let page = world.metrics();
        let series = ["evictions_total{kind=\"oldest\"}", "connections_over_cap_total"];
        let counted = series.map(|name| series_value(&page, &format!("portcullis_{name}")));
        counted.iter().sum::<u64>() == u64::from(reset(&mut many))
    });
    assert_eq!(reset(&mut few), 0, "the lighter prefix stays");
    drop((established, newcomers, few, many));
    world.assert_recovered(1);
    Outcome::Ran(vec![
        Row { stage: IDLE, saw: "goes on".into(), sent: 20, answered: 20 },
        Row { stage: "silent, of the heaviest prefix", saw: "reset".into(), sent: 0, answered: 0 },
        Row { stage: "silent, of another", saw: "goes on".into(), sent: 0, answered: 0 },
        Row { stage: "newcomer", saw: "served".into(), sent: 10, answered: 10 },
    ])
}
