//! Settings for the tests of this folder.

use std::time::Duration;

use crate::ring::EndpointAddress;
use crate::settings::endpoint::Endpoint;
use crate::settings::*;

/// One plain listener on a free loopback port, no route, one backend that
/// is not there; admin on a free loopback port.
pub fn settings() -> Settings {
    Settings {
        hash: 0,
        gateway: gateway(),
        limits: limits(),
        deadlines: deadlines(),
        listeners: vec![Listener {
            address: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            defer_accept: DeferAccept::Auto,
            proxy_trusted: Vec::new(),
            forwarded: None,
            external_scheme: ExternalScheme::Auto,
            redirect: Redirect::Off,
        }],
        auths: Vec::new(),
        routes: Vec::new(),
        backends: vec![Backend {
            name: "main".into(),
            endpoints: vec![Endpoint::Address(EndpointAddress::Tcp(
                "127.0.0.1:1".parse().unwrap(),
            ))],
            balance: Balance::LeastSessions,
            secret: None,
            revoke: RevokeScope::None,
            server: None,
        }],
    }
}

fn gateway() -> Gateway {
    Gateway {
        workers: Some(2),
        descriptors: Descriptors::Auto,
        admin: Some("127.0.0.1:0".parse().unwrap()),
        admin_token: None,
        log_format: LogFormat::Auto,
        log_level: "info".into(),
        ready_without_backend: true,
        drain_delay: Duration::ZERO,
        log_subject: LogSubject::Off,
        admin_socket: None,
        close_log: None,
        revocations_file: None,
    }
}

fn limits() -> Limits {
    Limits {
        connections_max: 1000,
        unauthenticated_max: 100,
        anonymous_max: 100,
        explain_reserve: 256,
        client_send_buffer: 128 * 1024,
        early_drop_start: 80,
        early_drop_rate: 30,
        prefix_share: 32,
        prefix_failures_per_minute: 60,
        prefix_failures_burst: 120,
        prefixes_max: 65_536,
        tls_handshakes_per_second: None,
        connections_per_worker: None,
        memory_max: None,
        message_max: 1 << 20,
        first_message_max: 8192,
        proxy_header_max: 4096,
        first_messages_max: 8,
        upstream_head_max: 16 << 10,
        head_max: 8192,
        header_fields_max: 64,
        request_line_max: 8000,
        token_max: 4096,
        dead_tokens_max: 1024,
        frames_per_second: 1000,
        frames_burst: 2000,
        controls_per_second: 10,
        controls_burst: 50,
        pongs_unsent_max: 1,
        fragments_max: 1024,
        session_window: 256 * 1024,
        link_window: 4 << 20,
        link_output_max: 4 << 20,
        stalled_input_max: 64 << 20,
        verdicts_max: 1000,
        handshakes_per_tick: 32,
        client_buffers: 64,
        accepts: 16,
        close_lines_per_second: 100,
        revocations_max: 1000,
    }
}

fn deadlines() -> Deadlines {
    let seconds = Duration::from_secs;
    Deadlines {
        tls_handshake: seconds(3),
        request_head: seconds(2),
        authenticate: seconds(5),
        linger: seconds(1),
        failure_grace: Duration::ZERO,
        ping_interval: seconds(25),
        idle: seconds(60),
        write_stall: seconds(10),
        lifetime: None,
        expiry_grace: Duration::ZERO,
        drain: seconds(30),
        resolve_interval: seconds(15),
        link_connect: seconds(5),
        upstream_connect: seconds(5),
        link_ping: seconds(5),
        link_stall: seconds(10),
        link_retry_min: Duration::from_millis(100),
        link_retry_max: seconds(5),
    }
}
