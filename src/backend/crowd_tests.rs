//! Clients and strangers that take more of the shared room than their part.

use super::*;

/// Opens a session of `subject`.
async fn open_as(gateway: &mut Gateway, id: SessionId, subject: &str) {
    let mut out = Vec::new();
    let subject = Some(subject).filter(|subject| !subject.is_empty());
    assert!(Open { subject, ..Open::new("/") }.encode(id, 1 << 16, &mut out));
    gateway.write(&out).await;
}

/// The answer that is no CREDIT: an echo, or a CLOSE with its label.
async fn outcome(gateway: &mut Gateway) -> (SessionId, Result<usize, String>) {
    let (header, payload) = gateway.answer().await.expect("the link lives");
    let what = match header.kind {
        Kind::Data => Ok(payload.len()),
        Kind::Close => Err(Close::decode(&payload).unwrap().label.to_owned()),
        kind => panic!("unexpected {kind:?}"),
    };
    (header.session, what)
}

/// One subject leaves a large message unfinished on each of many connections.
#[tokio::test]
async fn who_holds_most_of_the_room_gives_way() {
    for by_sessions in [true, false] {
        let builder = Backend::builder().assembly_max(400_000);
        let (address, _stopper) = echo_backend(builder, "127.0.0.1:0", by_sessions).await;
        let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
        let eve: Vec<SessionId> = (0..13).map(|slot| SessionId::new(slot, 1)).collect();
        for id in &eve {
            open_as(&mut gateway, *id, "eve").await;
            gateway.data(*id, data_flags::FIRST, &[0; 30_000]).await;
        }
        // 390,000 of 400,000 bytes are taken by many small pieces, none larger than honest ones.
        for (slot, size) in [(100, 5_000), (101, 30_000), (102, 60_000)] {
            let honest = SessionId::new(slot, 1);
            open_as(&mut gateway, honest, "ada").await;
            gateway.data(honest, data_flags::FIRST, &vec![1; size - 10]).await;
            gateway.data(honest, data_flags::FIN, &[1; 10]).await;
            loop {
                match outcome(&mut gateway).await {
                    (id, Ok(length)) => {
                        assert_eq!((id, length), (honest, size));
                        break;
                    }
                    (id, Err(label)) => {
                        assert!(eve.contains(&id), "{id:?} paid for eve");
                        assert_eq!(label, "over_capacity");
                        gateway.close(id, 1013).await;
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn the_sender_gives_way_where_it_holds_most() {
    let builder = Backend::builder().assembly_max(100_000);
    let (address, _stopper) = echo_backend(builder, "127.0.0.1:0", true).await;
    let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
    for (id, size) in [(A, 40_000), (B, 62_000)] {
        open_as(&mut gateway, id, "").await;
        gateway.data(id, data_flags::FIRST, &vec![0; size]).await;
    }
    assert_eq!(outcome(&mut gateway).await, (B, Err("over_capacity".into())));
    gateway.data(A, data_flags::FIN, b"end").await;
    assert_eq!(outcome(&mut gateway).await, (A, Ok(40_003)));
}

#[tokio::test]
async fn a_message_that_is_never_finished_ends_its_session() {
    let builder = Backend::builder().unfinished_max(Duration::from_millis(1));
    let (address, _stopper) = echo_backend(builder, "127.0.0.1:0", true).await;
    let mut gateway = Gateway::connect(&address, hello(), None).await.ok().unwrap();
    gateway.open(A, "/").await;
    gateway.open(B, "/").await;
    gateway.data(A, data_flags::FIRST, b"never").await;
    gateway.data(B, WHOLE, b"whole").await;
    assert_eq!(outcome(&mut gateway).await, (B, Ok(5)));
    let late = timeout(Duration::from_secs(11), async {
        loop {
            if let Some((header, _)) = gateway.frames.pop_front() {
                if header.kind == Kind::Close {
                    return header.session;
                }
                continue;
            }
            let mut buffer = vec![0; 4096];
            let read = gateway.wire.read(&mut buffer).await.unwrap();
            let mut bytes = &buffer[..read];
            while let Some(frame) = gateway.reader.next(&mut bytes).unwrap() {
                gateway.frames.push_back((frame.header, frame.payload.to_vec()));
            }
        }
    });
    assert_eq!(late.await.expect("closed at a tick"), A);
}

#[tokio::test]
async fn connections_that_say_nothing_keep_no_gateway_out() {
    let builder = Backend::builder().handshakes_max(4);
    let (address, _stopper) = echo_backend(builder, "127.0.0.1:0", true).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(Gateway::raw(&address).await);
    }
    let mut gateway = Gateway::connect(&address, hello(), None).await.expect("a link");
    gateway.open(A, "/").await;
    gateway.data(A, WHOLE, b"hello").await;
    assert_eq!(outcome(&mut gateway).await, (A, Ok(5)));
    // The oldest were told, and ended; a link that is up is no handshake and stays.
    let (header, payload) = silent[0].frame().await.expect("told why");
    assert_eq!(header.kind, Kind::Refused);
    assert_eq!(Refused::decode(&payload).unwrap().code.code(), 9);
    assert!(silent[0].frame().await.is_none());
    for _ in 0..8 {
        silent.push(Gateway::raw(&address).await);
    }
    gateway.data(A, WHOLE, b"still here").await;
    assert_eq!(outcome(&mut gateway).await, (A, Ok(10)));
}
