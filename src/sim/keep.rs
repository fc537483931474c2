//! What is left of a seed's world when a failure is made smaller.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::str::FromStr;

use super::faults::{Fault, Faults};
use super::net::MILLIS;
use super::scenario::Scenario;

/// A part of a seed's world: by default all of it.
///
/// Written as `clients=0.3.7,off=send_short.reload,chaos=1200`; each part may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The clients that are there, by their numbers in the whole world, rising.
    pub clients: Option<Vec<usize>>,
    /// Faults that do not happen.
    pub off: Vec<Fault>,
    /// How long misfortunes happen, in milliseconds.
    pub chaos: Option<u64>,
}

impl Keep {
    /// Takes the rest away.
    pub fn apply(&self, scenario: &mut Scenario, faults: &mut Faults) {
        if let Some(kept) = &self.clients {
            let mut index = 0;
            scenario.clients.retain(|_| {
                index += 1;
                kept.contains(&(index - 1))
            });
        }
        for fault in &self.off {
            faults.set(*fault, 0);
        }
        if let Some(chaos) = self.chaos {
            scenario.chaos = chaos * MILLIS;
        }
    }
}

impl Display for Keep {
    fn fmt(&self, f: &mut Formatter<'_>) -> Formatted {
        let mut parts = Vec::new();
        if let Some(clients) = &self.clients {
            let numbers: Vec<String> = clients.iter().map(usize::to_string).collect();
            parts.push(format!("clients={}", numbers.join(".")));
        }
        if !self.off.is_empty() {
            let labels: Vec<&str> = self.off.iter().map(|fault| fault.label()).collect();
            parts.push(format!("off={}", labels.join(".")));
        }
        if let Some(chaos) = self.chaos {
            parts.push(format!("chaos={chaos}"));
        }
        f.write_str(&parts.join(","))
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut keep = Keep::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("no `=` in {part:?}"))?;
            let mut values = value.split('.').filter(|value| !value.is_empty());
            let number = |text: &str| text.parse().map_err(|_| format!("no number: {text:?}"));
            match name {
                "clients" => {
                    let clients: Result<_, String> =
                        values.map(|text| number(text).map(|it: u64| it as usize)).collect();
                    keep.clients = Some(clients?);
                }
                "off" => {
                    let fault = |label: &str| {
                        Fault::from_label(label).ok_or_else(|| format!("no fault {label:?}"))
                    };
                    keep.off = values.map(fault).collect::<Result<_, String>>()?;
                }
                "chaos" => keep.chaos = Some(number(values.next().unwrap_or_default())?),
                other => return Err(format!("neither clients, off nor chaos: {other:?}")),
            }
        }
        Ok(keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_back_as_written() {
        let keep = Keep {
            clients: Some(vec![0, 3, 17]),
            off: vec![Fault::SendShort, Fault::Reload],
            chaos: Some(1200),
        };
        for (keep, text) in [
            (Keep::default(), ""),
            (Keep { clients: Some(Vec::new()), ..Keep::default() }, "clients="),
            (keep, "clients=0.3.17,off=send_short.reload,chaos=1200"),
        ] {
            assert_eq!(keep.to_string(), text);
            assert_eq!(text.parse(), Ok(keep));
        }
        for (text, why) in [
            ("clients", "no `=` in \"clients\""),
            ("chaos=soon", "no number: \"soon\""),
            ("off=rain", "no fault \"rain\""),
            ("on=rain", "neither clients, off nor chaos: \"on\""),
        ] {
            assert_eq!(text.parse::<Keep>(), Err(why.to_owned()));
        }
    }
}
