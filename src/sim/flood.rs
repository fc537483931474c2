//! An adversary: many connections from few addresses, that come again as soon as they are
//! thrown out, while honest clients authenticate. None of those may notice.

use std::net::Ipv4Addr;

use super::behaviour::Behaviour;
use super::behaviour::Plan;
use super::net::{MILLIS, SECONDS};
use super::scenario::Scenario;
use super::tokens::{Carriage, TokenKind};
use crate::base::random::Random;

/// Addresses that the adversary has.
const ADDRESSES: u64 = 3;
/// Connections that he keeps open, or tries to.
const FLOODERS: u64 = 60;
/// Honest clients; each makes several connections.
const HONEST: usize = 12;
/// The cap that he tries to fill: above what the honest need together, below what he has.
const CAP: u32 = 30;

impl Scenario {
    /// A flood, and nothing else that goes wrong.
    pub fn flood(seed: u64) -> Self {
        let mut random = Random::from_number(seed ^ 0xf100d);
        let mut scenario = Scenario::quiet(HONEST, 5, 2000);
        scenario.caps = (10_000, CAP);
        scenario.tls = random.chance(1, 4);
        scenario.proxy = random.chance(1, 4);
        scenario.chaos = 4 * SECONDS;
        scenario.floods = true;
        for client in &mut scenario.clients {
            client.carriage = Carriage::ALL[random.below(Carriage::ALL.len() as u64) as usize];
            client.lives = 20;
            client.begins = SECONDS + random.below(SECONDS);
        }
        scenario.clients.extend((0..FLOODERS).map(|_| flooder(&mut random, scenario.proxy)));
        scenario
    }
}

fn flooder(random: &mut Random, proxied: bool) -> Plan {
    let behaviour = match random.below(3) {
        // Only who says where he comes from is of an address of his own behind a balancer.
        0 if !proxied => Behaviour::SilentAtStart,
        0 | 1 => Behaviour::HalfHead,
        _ => Behaviour::Lingerer(TokenKind::BAD[0]),
    };
    Plan {
        behaviour,
        carriage: Carriage::Authorization,
        messages: 0,
        size_max: 100,
        window: 1,
        pause: 0,
        lives: u16::MAX,
        begins: SECONDS + random.below(200 * MILLIS),
        brief: false,
        floods_from: Some(Ipv4Addr::new(203, 0, 113, random.below(ADDRESSES) as u8)),
    }
}
