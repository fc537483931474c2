//! What a client takes from the gateway: the response, then frames, each of which must be right.

use tungstenite::handshake::derive_accept_key;

use super::{Client, Phase, is_text};
use crate::sim::behaviour::Behaviour;
use crate::sim::frames::{self, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};
use crate::sim::messages::{self, Series};
use crate::sim::net::Net;

impl Client {
    pub(super) fn take_input(&mut self, net: &mut Net) -> Result<(), String> {
        if self.phase == Phase::Asking && !self.take_response(net)? {
            return Ok(());
        }
        while let Some(frame) = frames::decode(&mut self.input)? {
            if self.close_received.is_some() {
                return Err("a frame after the close frame".into());
            }
            self.take_frame(net, frame)?;
        }
        Ok(())
    }

    /// Reads the answer to the request; true once it is a 101 and frames follow.
    fn take_response(&mut self, net: &mut Net) -> Result<bool, String> {
        let Some(end) = self.input.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Ok(false);
        };
        let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        if !status.starts_with("HTTP/1.1 101 ") {
            let allowed = self.plan.behaviour != Behaviour::SilentAtStart
                && (!self.plan.behaviour.is_honest() || !self.is_final);
            return if allowed && status.starts_with("HTTP/1.1 ") {
                Ok(false)
            } else {
                Err(format!("answered {status:?}"))
            };
        }
        let accept = derive_accept_key(self.key.as_bytes());
        let field = |name: &str| {
            head.split("\r\n").filter_map(|line| line.split_once(':')).find_map(|(field, value)| {
                field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        if field("sec-websocket-accept").as_deref() != Some(accept.as_str()) {
            return Err(format!("wrong Sec-WebSocket-Accept in {head:?}"));
        }
        let protocol = field("sec-websocket-protocol");
        if protocol.as_deref().is_some_and(|value| value.contains("bearer")) {
            return Err(format!("the token came back: {head:?}"));
        }
        self.input.drain(..end + 4);
        self.phase = Phase::Upgraded;
        self.send_at = net.now;
        Ok(true)
    }

    fn take_frame(&mut self, net: &mut Net, frame: frames::Frame) -> Result<(), String> {
        let silent = self.plan.behaviour == Behaviour::SilentWhenOpen;
        match frame.opcode {
            PING if !silent && !self.close_sent => {
                self.put_frame(net, PONG, true, &frame.payload);
                Ok(())
            }
            PING => Ok(()),
            PONG => {
                self.pongs += 1;
                // Answers may be left out for older pings, but never made up (RFC 6455 §5.5.3).
                while let Some(ping) = self.pings.pop_front() {
                    if ping == frame.payload {
                        return Ok(());
                    }
                }
                Err(format!("a pong to no ping: {:?}", frame.payload))
            }
            CLOSE => self.take_close(net, &frame.payload),
            opcode => self.take_data(net, opcode, frame.fin, frame.payload),
        }
    }

    fn take_close(&mut self, net: &mut Net, payload: &[u8]) -> Result<(), String> {
        let code = match payload {
            [] => 1005,
            [high, low, reason @ ..] => {
                if std::str::from_utf8(reason).is_err() {
                    return Err("close reason is not UTF-8".into());
                }
                u16::from_be_bytes([*high, *low])
            }
            _ => return Err("close payload of one byte".into()),
        };
        if self.message.is_some() && self.is_final && !self.close_sent {
            return Err("closed within a message".into());
        }
        net.note("close frame", self.index as u64, u64::from(code));
        self.close_received = Some(code);
        let stays = matches!(self.plan.behaviour, Behaviour::Lingerer(_));
        if !self.close_sent && !stays {
            self.close_sent = true;
            self.put_frame(net, CLOSE, true, payload);
        }
        Ok(())
    }

    fn take_data(
        &mut self,
        net: &mut Net,
        opcode: u8,
        fin: bool,
        payload: Vec<u8>,
    ) -> Result<(), String> {
        if self.explained {
            return Err("a message after the explanation of a close".into());
        }
        let (kind, message) = match (self.message.take(), opcode) {
            (None, TEXT | BINARY) => (opcode, payload),
            (Some((kind, mut message)), CONTINUATION) => {
                message.extend_from_slice(&payload);
                (kind, message)
            }
            _ => return Err(format!("opcode {opcode} out of sequence")),
        };
        if !fin {
            self.message = Some((kind, message));
            return Ok(());
        }
        if !self.plan.behaviour.is_valid() {
            return self.take_explanation(kind, &message);
        }
        match messages::parse(&message) {
            // Why the gateway is about to close: it may lose its backend, or be drained.
            None if message.starts_with(b"{\"type\":\"close\"") => {
                self.explained = true;
                self.take_explanation(kind, &message)
            }
            None if message.starts_with(b"{\"type\":\"authenticated\"") => Ok(()),
            None => Err(format!("a message with a wrong byte, {} long", message.len())),
            Some((_, author, _)) if author != self.author => {
                Err(format!("a message of {author:?} came to {:?}", self.author))
            }
            Some((Series::Push, _, number)) => {
                let expected = self.pushed;
                self.pushed += 1;
                net.check.messages_down += 1;
                in_order("push", number, expected)
            }
            Some((Series::Echo, _, number)) => {
                let expected = self.echoed;
                self.echoed += 1;
                net.check.messages_down += 1;
                let misread = u32::from(self.misreads && number == 2);
                let text = kind == TEXT;
                if text != is_text(number) {
                    return Err(format!("echo {number} came back as the other type"));
                }
                in_order("echo", number ^ misread, expected)
            }
        }
    }

    fn take_explanation(&mut self, kind: u8, message: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(message).map_err(|_| "explanation is not UTF-8")?;
        if kind == TEXT && text.starts_with('{') && text.contains("\"reconnect\"") {
            Ok(())
        } else {
            Err(format!("a message to an unauthenticated client: {text:?}"))
        }
    }
}

fn in_order(what: &str, number: u32, expected: u32) -> Result<(), String> {
    match number.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(format!("{what} {number} twice, expected {expected}")),
        std::cmp::Ordering::Greater => Err(format!("{what} {expected} lost, {number} came")),
    }
}
