//! What a client says once it is upgraded.

use super::{Client, Phase, is_text};
use crate::sim::behaviour::Behaviour;
use crate::sim::faults::Fault;
use crate::sim::frames::{self, BINARY, CLOSE, CONTINUATION, PING, TEXT};
use crate::sim::messages::{self, Series};
use crate::sim::net::{MILLIS, Net, Side};
use crate::sim::tokens::{Carriage, REAUTHENTICATE, TokenKind, Tokens};

impl Client {
    pub(super) fn converse(&mut self, net: &mut Net, tokens: &Tokens) {
        if self.plan.behaviour == Behaviour::SilentAfterUpgrade || self.close_sent {
            return;
        }
        if self.plan.carriage == Carriage::FirstMessage && !self.token_sent {
            self.token_sent = true;
            let token = self.mint(net, tokens);
            self.put_frame(net, TEXT, true, token.as_bytes());
        }
        let pending = self.out.len() + self.wire.len() - self.written;
        match self.plan.behaviour {
            Behaviour::SilentWhenOpen => {}
            Behaviour::FrameBreaker => {
                self.break_a_rule(net);
                self.close_sent = true;
            }
            Behaviour::Refused(_) | Behaviour::Lingerer(_) => {
                // Impatient: a message that must never reach a backend.
                if self.sent == 0 {
                    self.put_message(net);
                }
            }
            Behaviour::NeverReads => {
                if pending < 4096 && self.sent < 500 {
                    self.put_message(net);
                    self.wake(net, 3 * MILLIS);
                }
            }
            _ => {
                self.exchange(net);
                self.reauthenticate(net, tokens);
            }
        }
    }

    fn exchange(&mut self, net: &mut Net) {
        while self.sent < self.plan.messages
            && self.sent.saturating_sub(self.echoed) < self.plan.window
            && net.now >= self.send_at
        {
            self.put_message(net);
            self.send_at = net.now + net.random.below(2 * self.plan.pause + 1);
            if self.send_at > net.now {
                self.wake(net, self.send_at - net.now);
            }
            let pinger = self.plan.behaviour == Behaviour::Pinger;
            if net.random.chance(if pinger { 1 } else { 0 }, 2) {
                self.put_ping(net);
            }
        }
        let all = self.echoed == self.plan.messages;
        if self.plan.behaviour == Behaviour::HalfCloser {
            let all_sent =
                self.sent == self.plan.messages && self.out.is_empty() && self.wire.is_empty();
            if let Some(conn) = self.conn.filter(|_| all_sent) {
                net.shutdown(conn, Side::Remote);
            }
        } else if all {
            self.close_sent = true;
            self.put_frame(net, CLOSE, true, &1000u16.to_be_bytes());
        }
    }

    /// Presents a fresh token, between messages: its own, or one that is not.
    fn reauthenticate(&mut self, net: &mut Net, tokens: &Tokens) {
        let may = !self.close_sent && !self.plan.brief && self.phase == Phase::Upgraded;
        if !may
            || self.judged_elsewhere
            || (self.plan.carriage == Carriage::FirstMessage && !self.token_sent)
        {
            return;
        }
        let mut author = self.author;
        if net.fault(Fault::ReauthenticatedOther) {
            author.client ^= 1;
        } else if !net.fault(Fault::Reauthenticated) {
            return;
        }
        let (token, _) = tokens.mint(TokenKind::Good, author, net.wall_millis());
        let message = format!(r#"{REAUTHENTICATE}"token":"{token}"}}"#);
        // In pieces that may end within the prefix.
        let cut = net.random.below(2 * REAUTHENTICATE.len() as u64) as usize;
        let (first, rest) = message.as_bytes().split_at(cut);
        self.put_frame(net, TEXT, false, first);
        self.put_frame(net, CONTINUATION, true, rest);
    }

    fn put_message(&mut self, net: &mut Net) {
        let size = match net.random.below(10) {
            0..=6 => net.random.below(200),
            7..=8 => net.random.below(5000),
            _ => net.random.below(self.plan.size_max as u64),
        };
        let size = (size as usize).min(self.plan.size_max);
        let number = self.sent;
        let message = messages::build(Series::Echo, self.author, number, size);
        let opcode = if is_text(number) { TEXT } else { BINARY };
        self.sent += 1;
        if self.plan.behaviour != Behaviour::Fragmenter {
            return self.put_frame(net, opcode, true, &message);
        }
        let mut rest = &message[..];
        let mut opcode = opcode;
        for piece in 0.. {
            let least = if piece < 8 { 0 } else { rest.len() as u64 };
            let cut = (least + net.random.below(rest.len() as u64 + 1)).min(rest.len() as u64);
            let (now, later) = rest.split_at(cut as usize);
            let fin = later.is_empty() && net.random.chance(3, 4) || piece > 9;
            let now = if fin { rest } else { now };
            self.put_frame(net, opcode, fin, now);
            if fin {
                break;
            }
            if net.random.chance(1, 4) {
                self.put_ping(net);
            }
            rest = later;
            opcode = CONTINUATION;
        }
    }

    fn put_ping(&mut self, net: &mut Net) {
        if self.pings.len() > 100 {
            return;
        }
        let payload = net.random.number().to_be_bytes();
        let length = net.random.below(9) as usize;
        self.put_frame(net, PING, true, &payload[..length]);
        self.pings.push_back(payload[..length].to_vec());
        self.pings_sent += 1;
    }

    pub(super) fn put_frame(&mut self, net: &mut Net, opcode: u8, fin: bool, payload: &[u8]) {
        let key = (net.random.number() as u32).to_be_bytes();
        frames::encode(opcode, fin, payload, key, &mut self.out);
    }

    fn break_a_rule(&mut self, net: &mut Net) {
        let broken: &[u8] = match net.random.below(6) {
            0 => b"\x81\x05Hello",
            1 => b"\xc1\x80\0\0\0\0",
            2 => b"\x83\x80\0\0\0\0",
            3 => b"\x80\x80\0\0\0\0",
            4 => b"\x09\x80\0\0\0\0",
            _ => b"\x81\xff\xff\0\0\0\0\0\0\0\0\0\0\0",
        };
        self.out.extend_from_slice(broken);
    }
}
