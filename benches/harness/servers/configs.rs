//! The configurations that servers are started with, as text.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where a proxy listens, what it stands in front of, and what it may use.
pub struct Wiring {
    /// For `ws://`.
    pub plain: SocketAddr,
    /// For `wss://`.
    pub secure: SocketAddr,
    /// The echo server behind it.
    pub upstream: SocketAddr,
    /// Its own folder.
    pub folder: PathBuf,
    /// PEM files.
    pub certificate: PathBuf,
    /// PEM files.
    pub key: PathBuf,
    /// Both in one file.
    pub bundle: PathBuf,
    /// Clients at once, at most.
    pub connections: u64,
}

impl Wiring {
    /// Two sockets for each client, and room for what the proxy needs itself.
    fn descriptors(&self) -> u64 {
        (self.connections * 2 + 1024).min(u64::from(crate::kernel::descriptor_limit()))
    }
}

/// nginx, one worker.
pub fn nginx(wiring: &Wiring) -> String {
    let folder = wiring.folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {folder}/{name};\n"))
        .collect();
    let limit = wiring.descriptors();
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\n\
         error_log {folder}/error.log crit;\nworker_rlimit_nofile {limit};\n\
         events {{ worker_connections {limit}; }}\nhttp {{\n  access_log off;\n{temporary}\
         \x20 server {{\n    listen {plain} backlog=4096;\n\
         \x20   listen {secure} ssl backlog=4096;\n    ssl_certificate {certificate};\n\
         \x20   ssl_certificate_key {key};\n    ssl_protocols TLSv1.2 TLSv1.3;\n\
         \x20   location / {{\n      proxy_pass http://{upstream};\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Upgrade $http_upgrade;\n\
         \x20     proxy_set_header Connection \"upgrade\";\n      proxy_read_timeout 1h;\n\
         \x20     proxy_send_timeout 1h;\n    }}\n  }}\n}}\n",
        plain = wiring.plain,
        secure = wiring.secure,
        certificate = wiring.certificate.display(),
        key = wiring.key.display(),
        upstream = wiring.upstream,
    )
}

/// HAProxy, one thread.
pub fn haproxy(wiring: &Wiring) -> String {
    format!(
        "global\n  maxconn {maxconn}\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 5s\n\
         \x20 timeout client 300s\n  timeout server 300s\n  timeout tunnel 1h\nfrontend clients\n\
         \x20 bind {plain}\n  bind {secure} ssl crt {bundle}\n  default_backend echo\n\
         backend echo\n  server echo {upstream}\n",
        maxconn = wiring.descriptors() / 2 - 100,
        plain = wiring.plain,
        secure = wiring.secure,
        bundle = wiring.bundle.display(),
        upstream = wiring.upstream,
    )
}

/// Caddy.
pub fn caddy(wiring: &Wiring) -> String {
    format!(
        "{{\n  admin off\n  auto_https off\n  log {{\n    level ERROR\n  }}\n\
         }}\nhttp://{plain} {{\n  bind {host}\n  reverse_proxy {upstream}\n}}\n\
         https://{secure} {{\n  bind {host}\n  tls {certificate} {key}\n\
         \x20 reverse_proxy {upstream}\n}}\n",
        host = wiring.plain.ip(),
        plain = wiring.plain,
        secure = wiring.secure,
        certificate = wiring.certificate.display(),
        key = wiring.key.display(),
        upstream = wiring.upstream,
    )
}

/// lighttpd.
pub fn lighttpd(wiring: &Wiring) -> String {
    format!(
        "server.modules = (\"mod_proxy\", \"mod_openssl\")\n\
         server.document-root = \"{folder}\"\nserver.errorlog = \"{folder}/error.log\"\n\
         server.bind = \"{host}\"\nserver.port = {port}\nserver.max-fds = {limit}\n\
         server.max-connections = {connections}\nserver.listen-backlog = 4096\n\
         server.max-read-idle = 3600\nserver.max-write-idle = 3600\n\
         server.stream-response-body = 2\nserver.stream-request-body = 2\n\
         proxy.server = (\"\" => ((\"host\" => \"{up_host}\", \"port\" => {up_port})))\n\
         proxy.header = (\"upgrade\" => \"enable\")\n\
         $SERVER[\"socket\"] == \"{secure}\" {{\n  ssl.engine = \"enable\"\n\
         \x20 ssl.pemfile = \"{certificate}\"\n  ssl.privkey = \"{key}\"\n}}\n",
        folder = wiring.folder.display(),
        host = wiring.plain.ip(),
        port = wiring.plain.port(),
        limit = wiring.descriptors(),
        connections = wiring.descriptors() / 2,
        up_host = wiring.upstream.ip(),
        up_port = wiring.upstream.port(),
        secure = wiring.secure,
        certificate = wiring.certificate.display(),
        key = wiring.key.display(),
    )
}

/// What a gateway is started for.
pub struct GatewayWiring<'a> {
    /// For `ws://`.
    pub plain: SocketAddr,
    /// For `wss://`.
    pub secure: SocketAddr,
    /// Metrics and readiness.
    pub admin: SocketAddr,
    /// Threads.
    pub workers: u16,
    /// Clients at once, at most.
    pub connections: u64,
    /// Receive buffers of each worker.
    pub buffers: u32,
    /// Silence before a ping, seconds.
    pub ping_s: u64,
    /// Junk comes: the default limit on TLS handshakes holds.
    pub flooded: bool,
    /// Silence on a link before a ping, seconds; three times this and its sessions are lost.
    pub link_ping_s: u64,
    /// `link` or `websocket`.
    pub upstream_kind: &'a str,
    /// The echo backend.
    pub echo: &'a str,
    /// The counting backend of the fan-in.
    pub count: &'a str,
    /// PEM files.
    pub certificate: &'a Path,
    /// PEM files.
    pub key: &'a Path,
    /// The file of the HS256 secret.
    pub secret: &'a Path,
}

/// The gateway: production limits, but for those that bound one client's rate, since a closed
/// loop sends as fast as it can, and for the log, since lines cost more than what is measured.
pub fn gateway(wiring: &GatewayWiring<'_>) -> String {
    let GatewayWiring { plain, secure, admin, workers, connections, buffers, .. } = wiring;
    // The kernel spreads connections over the workers by a hash: not evenly.
    let room = (connections * 3 / 2).max(50_000);
    // Every worker has its share of the cap, and many of them open slowly: it must not be small.
    let unauthenticated = if *workers > 4 { 50_000 } else { 16_000 };
    let (ping, idle) = (wiring.ping_s, wiring.ping_s * 3);
    let link_ping = wiring.link_ping_s;
    let handshakes = if wiring.flooded { "\"auto\"" } else { "1_000_000" };
    let backend = |name: &str, address: &str| {
        let kind = wiring.upstream_kind;
        format!(
            "\n[[backend]]\nname = \"{name}\"\nkind = \"{kind}\"\nendpoints = [\"{address}\"]\n"
        )
    };
    let route = |path: &str, backend: &str| {
        format!(
            "\n[[route]]\npath = \"{path}\"\norigins = []\norigin_absent = \"allow\"\n\
             auth = \"bench\"\nbackend = \"{backend}\"\nrefuse = \"http\"\n"
        )
    };
    format!(
        "[gateway]\nworkers = {workers}\nadmin = \"{admin}\"\n\
         log = {{ format = \"json\", level = \"error\" }}\n\n\
         [limits]\nconnections_max = {room}\nunauthenticated_max = {unauthenticated}\n\
         frames_per_second = 1_000_000_000\nframes_burst = 1_000_000_000\n\
         tls_handshakes_per_second = {handshakes}\n\
         client_buffers = {buffers}\nclose_lines_per_second = 0\n\n\
         [deadlines]\nping_interval = \"{ping}s\"\nidle = \"{idle}s\"\n\
         link_ping = \"{link_ping}s\"\n\n\
         [[listener]]\naddress = \"{plain}\"\n\n[[listener]]\naddress = \"{secure}\"\n\
         tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n\n\
         [[auth]]\nname = \"bench\"\nkind = \"jwt\"\ncarriers = [\"authorization\"]\n\
         keys = [{{ algorithm = \"HS256\", secret_file = \"{secret}\" }}]\n{}{}{}{}",
        route("/echo", "echo"),
        route("/count/*", "count"),
        backend("echo", wiring.echo),
        backend("count", wiring.count),
        certificate = wiring.certificate.display(),
        key = wiring.key.display(),
        secret = wiring.secret.display(),
    )
}
