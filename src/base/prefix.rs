//! The address prefixes that shares and penalties are counted by.

use std::net::IpAddr;

/// How wide a prefix is. One customer of an access provider holds an IPv4 address or an IPv6
/// network from /64 to /48 (RFC 6177), and can appear under every address of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// One IPv4 address.
    Ipv4,
    /// An IPv6 /64.
    Ipv6Of64,
    /// An IPv6 /56.
    Ipv6Of56,
    /// An IPv6 /48.
    Ipv6Of48,
}

impl Level {
    /// Number of levels.
    pub const COUNT: usize = 4;

    /// How many times the share of one address a prefix of this width may use: it may belong
    /// to several customers, but not to as many as it has /64 networks.
    pub const fn allowance(self) -> u32 {
        match self {
            Level::Ipv4 | Level::Ipv6Of64 => 1,
            Level::Ipv6Of56 => 4,
            Level::Ipv6Of48 => 16,
        }
    }
}

/// One prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    level: Level,
    /// The leading bits that count; the others are 0.
    bits: u64,
}

impl Prefix {
    /// How wide it is.
    pub const fn level(&self) -> Level {
        self.level
    }
}

/// The prefixes of one address, the narrowest first; none for an unknown address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefixes([Option<Prefix>; Prefixes::MAX]);

impl Prefixes {
    /// Most prefixes of one address.
    pub const MAX: usize = 3;

    /// The prefixes of an address. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(ip) => {
                let bits = u64::from(u32::from(ip));
                Prefixes([Some(Prefix { level: Level::Ipv4, bits }), None, None])
            }
            IpAddr::V6(ip) => {
                let bits = (u128::from(ip) >> 64) as u64;
                let wide =
                    |level, dropped: u32| Some(Prefix { level, bits: bits >> dropped << dropped });
                Prefixes([
                    wide(Level::Ipv6Of64, 0),
                    wide(Level::Ipv6Of56, 8),
                    wide(Level::Ipv6Of48, 16),
                ])
            }
        }
    }

    /// Each of them, the narrowest first.
    pub fn iter(&self) -> impl Iterator<Item = Prefix> {
        self.0.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_together() {
        let of = |text: &str| Prefixes::of(text.parse().unwrap());
        // one address, another -> how many of their prefixes are the same
        for (one, other, shared) in [
            ("192.0.2.1", "192.0.2.1", 1),
            ("192.0.2.1", "192.0.2.2", 0),
            ("192.0.2.1", "::ffff:192.0.2.1", 1),
            ("2001:db8::1", "2001:db8::ffff:1", 3),
            ("2001:db8::1", "2001:db8:0:1::1", 2),
            ("2001:db8::1", "2001:db8:0:100::1", 1),
            ("2001:db8::1", "2001:db8:1::1", 0),
            ("2001:db8::1", "192.0.2.1", 0),
            ("::", "0.0.0.0", 0),
        ] {
            let others: Vec<_> = of(other).iter().collect();
            let same = of(one).iter().filter(|prefix| others.contains(prefix)).count();
            assert_eq!(same, shared, "{one} and {other}");
        }
        assert_eq!(Prefixes::default().iter().count(), 0);
    }
}
