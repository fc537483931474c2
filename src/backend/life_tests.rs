//! Fresh tokens, expiries and revocations, as an author sees and says them.

use super::*;
use crate::protocol::link::{Expire, Reauth};

fn reauth(id: SessionId, token_id: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let reauth = Reauth {
        subject: Some("ada"),
        token_id: Some(token_id),
        expires: Some(UnixTime::from_seconds(500)),
        claims: br#"{"sub":"ada","role":"admin"}"#,
    };
    assert!(reauth.encode(id, 65_536, &mut out));
    out
}

fn revocation(subject: &str) -> Revocation {
    let target = Target::new(Some(subject), None, None).unwrap();
    Revocation { target, lapses: UnixTime::from_seconds(900) }
}

#[tokio::test]
async fn a_session_says_what_the_fresh_token_says() {
    let mut backend = Backend::bind("127.0.0.1:0").await.unwrap();
    backend.start();
    let mut gateway = Gateway::connect(backend.address(), hello(), None).await.ok().unwrap();
    gateway.open(A, "/a?b").await;
    let mut session = backend.accept().await.unwrap();
    assert_eq!((session.renewals(), session.identity().expires), (0, None));
    for token in ["t2", "t3"] {
        gateway.write(&reauth(A, token)).await;
    }
    gateway.data(A, WHOLE | TEXT, b"hello").await;
    assert_eq!(session.next().await, Some(Message::text("hello")));
    let identity = session.identity();
    assert_eq!((identity.token_id.as_deref(), identity.path.as_str()), (Some("t3"), "/a?b"));
    assert_eq!(identity.expires, Some(UnixTime::from_seconds(500)));
    assert_eq!(&identity.claims[..], br#"{"sub":"ada","role":"admin"}"#);
    assert_eq!(session.renewals(), 2);
    // And the author sets an end of its own.
    session.expire(UnixTime::from_seconds(7)).unwrap();
    let (header, payload) = gateway.answer().await.unwrap();
    assert_eq!((header.kind, header.session), (Kind::Expire, A));
    assert_eq!(Expire::decode(&payload), Ok(Expire { expires: UnixTime::from_seconds(7) }));
    session.close(1000, "");
    assert_eq!(session.expire(UnixTime::from_seconds(8)), Err(TellError::Closed));
}

struct Watcher(tokio::sync::mpsc::UnboundedSender<Option<String>>);

impl Handler for Watcher {
    fn open(&mut self, session: &mut SessionHandle<'_>, _: &Identity) {
        session.expire(UnixTime::from_seconds(7)).unwrap();
    }

    fn message(&mut self, _: &mut SessionHandle<'_>, _: MessageRef<'_>) {}

    fn reauthenticated(&mut self, session: &mut SessionHandle<'_>, renewal: &Renewal) {
        session.send(MessageRef::Text("welcome back"));
        self.0.send(renewal.token_id.clone()).unwrap();
    }

    fn closed(&mut self, _: SessionId, _: &Ended) {}
}

#[tokio::test]
async fn a_handler_hears_of_it() {
    let backend = Backend::bind("127.0.0.1:0").await.unwrap();
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut gateway = {
        let address = backend.address().to_owned();
        tokio::spawn(backend.serve(move || Watcher(sender.clone())));
        Gateway::connect(&address, hello(), None).await.ok().unwrap()
    };
    gateway.open(A, "/").await;
    assert_eq!(gateway.answer().await.unwrap().0.kind, Kind::Expire);
    gateway.write(&reauth(A, "t2")).await;
    assert_eq!(gateway.answer().await.unwrap().1, b"welcome back");
    assert_eq!(heard.recv().await, Some(Some("t2".into())));
}

#[tokio::test]
async fn every_gateway_hears_of_a_revocation_once() {
    let mut backend = Backend::bind("127.0.0.1:0").await.unwrap();
    backend.start();
    let (address, revoker) = (backend.address().to_owned(), backend.revoker());
    assert_eq!(revoker.revoke(&revocation("eve")), Err(TellError::Closed));
    let mut gateways = Vec::new();
    for (instance, worker) in [(1, 0), (1, 1), (2, 0)] {
        let hello = Hello { instance: [instance; 16], worker, ..hello() };
        gateways.push(Gateway::connect(&address, hello, None).await.ok().unwrap());
    }
    assert_eq!(revoker.revoke(&revocation("eve")), Ok(2));
    let mut heard = 0;
    for gateway in &mut gateways {
        let mut ping = Vec::new();
        Ping { opaque: 1 }.encode(&mut ping);
        gateway.write(&ping).await;
        while let Some((header, payload)) = gateway.answer().await {
            if header.kind == Kind::Pong {
                break;
            }
            assert_eq!(Revocation::decode(&payload), Ok(revocation("eve")));
            heard += 1;
        }
    }
    assert_eq!(heard, 2);
}

#[tokio::test]
async fn a_gateway_without_the_feature_is_told_nothing() {
    let mut backend = Backend::bind("127.0.0.1:0").await.unwrap();
    backend.start();
    let old = Hello { features: 0, ..hello() };
    let mut gateway = Gateway::connect(backend.address(), old, None).await.ok().unwrap();
    gateway.open(A, "/").await;
    let session = backend.accept().await.unwrap();
    assert_eq!(session.expire(UnixTime::from_seconds(7)), Err(TellError::Unsupported));
    assert_eq!(backend.revoker().revoke(&revocation("eve")), Err(TellError::Unsupported));
    // And has nothing to say of it either.
    gateway.write(&reauth(A, "t2")).await;
    assert!(gateway.is_dropped().await);
}

#[tokio::test]
async fn what_only_backends_say_ends_the_link() {
    let mut backend = Backend::bind("127.0.0.1:0").await.unwrap();
    backend.start();
    let mut revoke = Vec::new();
    revocation("eve").encode(&mut revoke);
    let mut expire = Vec::new();
    Expire { expires: UnixTime::from_seconds(1) }.encode(A, &mut expire);
    for bytes in [revoke, expire] {
        let mut gateway = Gateway::connect(backend.address(), hello(), None).await.ok().unwrap();
        gateway.open(A, "/").await;
        gateway.write(&bytes).await;
        assert!(gateway.is_dropped().await);
    }
}
