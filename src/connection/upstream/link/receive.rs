//! Frames from the backend: first the handshake's, then those of sessions and of the link.

use super::event::{Event, Failure};
use super::sessions::Table;
use super::{CLOSING_KEPT, Link, REFUSAL_LINGER, State};
use crate::base::secret::Secret;
use crate::base::time::Instant;
use crate::counters::{Counters, LINK_RTT};
use crate::protocol::link::{
    Accept, Challenge, Close, Credit, Expire, Frame, GoAway, Kind, LinkError, LinkReader, Ping,
    Pong, Proof, ReceiveWindow, RefusalCode, Refused, Reject, SendCredit, features,
};
use crate::protocol::revocation::Revocation;

/// What may wait beyond `link_output_max` for CLOSE, CREDIT and what else is never refused: as
/// many times that limit in all.
const OUTPUT_OVERFLOW: usize = 2;

impl Link {
    /// Takes bytes from the backend: moves `input` on by one frame (or less, when a frame is
    /// incomplete) and says what it means; `None` when all input is used. The reader is the
    /// caller's, because events borrow from it.
    pub fn receive<'a, 'i: 'a>(
        &mut self,
        reader: &'a mut LinkReader,
        input: &mut &'i [u8],
        now: Instant,
        secret: Option<&Secret>,
        counters: &Counters,
    ) -> Result<Option<Event<'a>>, Failure> {
        self.clock = now;
        if self.output.len() > self.output_max * OUTPUT_OVERFLOW {
            return Err(Failure::NotReading);
        }
        if let State::Refusing { .. } = self.state {
            *input = &[];
            return Ok(None);
        }
        let frame = match reader.next(input) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(error) if self.is_ready() => return Err(error.into()),
            Err(error) => return self.refuse(error.into(), now).map(Some),
        };
        if self.is_ready() {
            return self.act_on(&frame, now, counters).map(Some);
        }
        let event = self.shake_hands(frame.header.kind, frame.payload, now, secret);
        event.or_else(|failure| self.refuse(failure, now)).map(Some)
    }

    fn act_on<'a>(
        &mut self,
        frame: &Frame<'a>,
        now: Instant,
        counters: &Counters,
    ) -> Result<Event<'a>, Failure> {
        let (header, payload) = (frame.header, frame.payload);
        self.unknown_session_frames.frame();
        let mut table = Table {
            sessions: &mut self.sessions,
            open_sessions: &mut self.open_sessions,
            credit: &mut self.credit,
            window: &mut self.window,
            unknown_session_frames: &mut self.unknown_session_frames,
            stall: &mut self.stall,
            output: self.output.frames(),
            counters,
            message_max: self.ours.message_max,
        };
        let event = match header.kind {
            Kind::Data => table.data(header.session, header.flags, payload)?,
            Kind::Credit => table.credit(header.session, Credit::decode(payload)?.bytes, now)?,
            Kind::Close => table.close(header.session, Close::decode(payload)?)?,
            Kind::Ping => {
                let pong = Pong { opaque: Ping::decode(payload)?.opaque };
                self.output.append_pong(|out| pong.encode(out));
                Event::Routine
            }
            Kind::Pong => {
                let sent = Pong::decode(payload)?.opaque;
                if std::mem::take(&mut self.pinged) {
                    self.warned = false;
                    self.proved = now;
                    counters.observe(LINK_RTT, now.since(Instant::from_nanos(sent)));
                }
                Event::Routine
            }
            Kind::GoAway => {
                GoAway::decode(payload)?;
                self.state = State::Ready { leaving: true };
                Event::Routine
            }
            kind if kind.feature() & !self.features != 0 => {
                return Err(LinkError::Unexpected { kind }.into());
            }
            Kind::Accept => table.accept(header.session, Accept::decode(payload)?)?,
            Kind::Reject => table.reject(header.session, Reject::decode(payload)?)?,
            Kind::Expire => table.expire(header.session, Expire::decode(payload)?)?,
            Kind::Revoke => Event::Revoke(Revocation::decode(payload)?),
            kind => return Err(LinkError::Unexpected { kind }.into()),
        };
        Ok(event)
    }

    /// Answers a handshake that cannot succeed, so that the log at the other end has the reason
    /// too. A refusal of the backend's own is not answered.
    fn refuse(&mut self, why: Failure, now: Instant) -> Result<Event<'static>, Failure> {
        let code = match &why {
            Failure::WrongProof(code) => *code,
            Failure::Protocol(LinkError::NoCommonVersion { .. }) => RefusalCode::Version,
            Failure::Protocol(_) => RefusalCode::Malformed,
            _ => return Err(why),
        };
        Refused::new(code).encode(self.output.frames());
        self.refused = Some(why);
        self.state = State::Refusing { deadline: now + REFUSAL_LINGER };
        Ok(Event::Routine)
    }

    /// Takes the frame that the handshake is waiting for.
    fn shake_hands(
        &mut self,
        kind: Kind,
        payload: &[u8],
        now: Instant,
        secret: Option<&Secret>,
    ) -> Result<Event<'static>, Failure> {
        match self.state {
            State::AwaitingChallenge { deadline } => {
                let challenge = expect(kind, Kind::Challenge, payload)?;
                let decoded = Challenge::decode(challenge)?;
                if decoded.features & !features::SUPPORTED != 0 {
                    return Err(
                        LinkError::BadField { kind: Kind::Challenge, field: "features" }.into()
                    );
                }
                if !decoded.proof.verify_backend(secret, &self.hello, challenge) {
                    return Err(Failure::WrongProof(match (secret, decoded.proof) {
                        (Some(_), Proof::Absent) => RefusalCode::AuthenticationRequired,
                        (None, _) => RefusalCode::AuthenticationNotConfigured,
                        (Some(_), Proof::Hmac(_)) => RefusalCode::WrongKey,
                    }));
                }
                self.proved_key = secret.is_some();
                let proof = match secret {
                    Some(key) => Proof::of_gateway(key, &self.hello, challenge),
                    None => Proof::Absent,
                };
                proof.encode(self.output.frames());
                self.peer = decoded.limits;
                self.features = decoded.features;
                self.state = State::AwaitingReady { deadline };
                Ok(Event::Routine)
            }
            State::AwaitingReady { .. } => {
                expect(kind, Kind::Ready, payload)?;
                self.credit = SendCredit::new(self.peer.link_window);
                self.window = ReceiveWindow::new(self.ours.link_window);
                self.attempts = 0;
                self.proved = now;
                // Not at the first close, which comes among the messages of others.
                self.closing.reserve(CLOSING_KEPT);
                self.state = State::Ready { leaving: false };
                Ok(Event::Ready)
            }
            State::Down { .. }
            | State::Connecting { .. }
            | State::Refusing { .. }
            | State::Ready { .. } => {
                unreachable!("no handshake is under way")
            }
        }
    }
}

/// During the handshake exactly one kind is due; REFUSED has an error of its own, for the log.
fn expect(found: Kind, due: Kind, payload: &[u8]) -> Result<&[u8], Failure> {
    if found == due {
        return Ok(payload);
    }
    if found == Kind::Refused {
        let code = Refused::decode(payload)?.code;
        return Err(Failure::Refused { hint: code.hint(), code: code.code() });
    }
    Err(LinkError::Unexpected { kind: found }.into())
}
