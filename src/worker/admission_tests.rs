use std::net::Ipv4Addr;

use super::*;
use crate::settings::load::test_settings;

fn allowance() -> Allowance {
    Allowance {
        connections_max: 1000,
        explain_reserve: 20,
        unauthenticated_max: 100,
        early_drop_start: 80,
        anonymous_max: 50,
        early_drop_rate: 30,
        prefix_share: 10,
        tls_handshakes: 100,
        penalty: PenaltyRule { fades: Duration::from_secs(1), burst: 5, prefixes_max: 100 },
    }
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(1) + Duration::from_millis(millis)
}

fn of(text: &str) -> Prefixes {
    Prefixes::of(text.parse().unwrap())
}

/// `count` connections of one address, and the rest up to `total` of as many others.
fn crowd(one: &str, count: u32, total: u32) -> Admission {
    let mut admission = Admission::new(allowance(), at(0));
    for number in 0..total {
        let owner = Key { slot: number, generation: 0 };
        let prefixes = match number < count {
            true => of(one),
            false => Prefixes::of(std::net::Ipv4Addr::from(0x0a00_0000 + number).into()),
        };
        admission.shares.add(owner, &prefixes, at(u64::from(number)));
    }
    admission
}

const HEAVY: &str = "192.0.2.1";
const OTHER: &str = "198.51.100.7";

#[test]
fn limits_are_divided() {
    let mut limits = test_settings().limits;
    limits.connections_max = 1000;
    limits.unauthenticated_max = 101;
    limits.anonymous_max = 41;
    limits.early_drop_start = 50;
    limits.prefix_share = 9;
    limits.prefixes_max = 1000;
    limits.prefix_failures_burst = 7;
    limits.prefix_failures_per_minute = 120;
    let share = Allowance::new(&limits, 2, u32::MAX);
    let expected = Allowance {
        connections_max: 500,
        explain_reserve: 31,
        unauthenticated_max: 50,
        early_drop_start: 25,
        anonymous_max: 20,
        early_drop_rate: limits.early_drop_rate.into(),
        prefix_share: 5,
        tls_handshakes: TLS_HANDSHAKES_PER_WORKER,
        penalty: PenaltyRule { fades: Duration::from_secs(1), burst: 4, prefixes_max: 500 },
    };
    assert_eq!(share, expected);
    limits.tls_handshakes_per_second = Some(301);
    limits.connections_per_worker = Some(400);
    let share = Allowance::new(&limits, 2, 300);
    assert_eq!((share.tls_handshakes, share.connections_max), (150, 300), "descriptors cap");
    let share = Allowance::new(&limits, 65_535, 0);
    assert_eq!((share.connections_max, share.unauthenticated_max), (1, 1), "never none at all");
}

#[test]
fn who_is_dropped_early() {
    // of one address, in all -> from which draw on a newcomer of it, or of another, may enter
    for (count, total, one, other) in [
        (0, 79, 0, 0),
        (79, 79, 0, 0),
        (9, 80, 0, 0),
        (10, 80, 3000, 0),
        (80, 80, 3000, 0),
        (10, 90, 6500, 0),
        (10, 99, 9650, 0),
        (10, 100, 10_000, 0),
        (9, 100, 0, 0),
    ] {
        let admission = crowd(HEAVY, count, total);
        for (who, from) in [(HEAVY, one), (OTHER, other)] {
            let dropped = |draw| admission.early_drop(&of(who), draw, at(0)).is_some();
            assert!(from == 0 || dropped(from - 1), "{count} of {total}, {who}, {from} - 1");
            assert!(from == DRAWS || !dropped(from), "{count} of {total}, {who}, {from}");
        }
    }
}

#[test]
fn a_penalty_counts_under_pressure_only() {
    for (total, expected) in [(79, Decision::Admit), (80, Decision::Drop(Metric::EarlyDropPenalty))]
    {
        let mut admission = crowd(HEAVY, 0, total);
        let rule = allowance().penalty;
        for _ in 0..6 {
            admission.penalties.failed(&of(OTHER), &rule, at(0));
        }
        assert_eq!(admission.judge(&of(OTHER), 0, DRAWS - 1, at(0)), expected);
        assert_eq!(admission.judge(&of(OTHER), 0, DRAWS - 1, at(1001)), Decision::Admit, "faded");
    }
}

#[test]
fn what_becomes_of_a_newcomer() {
    use Decision::*;
    let key = |slot| Key { slot, generation: 0 };
    let judge =
        |admission: &Admission, connections| admission.judge(&of(OTHER), connections, 0, at(0));
    let calm = crowd(HEAVY, 3, 10);
    assert_eq!(judge(&calm, 10), Admit);
    assert_eq!(judge(&calm, 979), Admit);
    assert_eq!(judge(&calm, 980), AdmitInPlaceOf(Victim::Oldest(key(0))), "strangers give way");
    assert_eq!(judge(&calm, 1000), Drop(Metric::AcceptRefused), "every place is taken");
    let mut none = crowd(HEAVY, 0, 0);
    assert_eq!(judge(&none, 980), Explain, "no authenticated one goes");
    none.explained.add(key(1), &of(HEAVY), at(0));
    assert_eq!(judge(&none, 981), Explain);
    none.explained.add(key(2), &of(OTHER), at(0));
    assert_eq!(judge(&none, 982), Drop(Metric::AcceptRefused), "one of each address");
    let mut full = crowd(HEAVY, 0, 100);
    assert_eq!(judge(&full, 100), AdmitInPlaceOf(Victim::Oldest(key(0))));
    full.shares.refuse(key(40));
    assert_eq!(judge(&full, 100), AdmitInPlaceOf(Victim::Refused(key(40))));
    let mut heavy = crowd(HEAVY, 7, 100);
    heavy.shares.refuse(key(40));
    assert_eq!(judge(&heavy, 100), AdmitInPlaceOf(Victim::Oldest(key(0))), "of the heaviest");
    heavy.shares.refuse(key(5));
    assert_eq!(judge(&heavy, 100), AdmitInPlaceOf(Victim::Refused(key(5))));
    heavy.pressure = MemoryPressure::StopAccepting;
    assert_eq!(judge(&heavy, 100), Drop(Metric::MemoryRefusals));
    let mut none = Admission::new(Allowance { unauthenticated_max: 0, ..allowance() }, at(0));
    none.allowance.early_drop_start = 0;
    assert_eq!(judge(&none, 0), Drop(Metric::AcceptRefused), "a cap of nothing lets nobody in");
}

#[test]
fn visitors_share_their_places_by_prefix() {
    let key = |slot| Key { slot, generation: 0 };
    let mut admission = crowd(HEAVY, 0, 0);
    let address = |number: u32| Prefixes::of(Ipv4Addr::from(0x0a00_0000 + number).into());
    // 47 of as many addresses and three of one.
    for slot in 0..50 {
        let whose = if slot < 47 { address(slot) } else { of(HEAVY) };
        assert!(admission.admit_visitor(&whose));
        admission.visitors.add(key(slot), &whose, at(slot.into()));
    }
    // A newcomer of the crowd's own address is refused, one of another takes a place of it.
    assert!(!admission.admit_visitor(&of(HEAVY)) && admission.ousted.is_empty());
    assert!(admission.admit_visitor(&of(OTHER)));
    assert_eq!((&admission.ousted[..], admission.visitors.len()), (&[key(47)][..], 49));
    admission.visitors.add(key(50), &of(OTHER), at(50));
    // Two of one address: another's second would be as many.
    assert!(!admission.admit_visitor(&of(OTHER)) && !admission.admit_visitor(&of(HEAVY)));
    assert!(admission.admit_visitor(&of("203.0.113.9")));
    assert_eq!(admission.ousted[1..], [key(48)]);
    admission.visitors.add(key(51), &of("203.0.113.9"), at(51));
    // All hold alike: no visitor gives way, or those that are ousted would come back in turn.
    assert!(!admission.admit_visitor(&of("203.0.113.10")));
    assert_eq!((admission.ousted.len(), admission.visitors.len()), (2, 50));
}

#[test]
fn visitors_give_way_after_strangers_and_before_a_newcomer_is_refused() {
    use Decision::*;
    let key = |slot| Key { slot, generation: 0 };
    let judge =
        |admission: &Admission, connections| admission.judge(&of(OTHER), connections, 0, at(0));
    let mut admission = crowd(HEAVY, 3, 3);
    admission.visitors.add(key(7), &of(OTHER), at(1));
    admission.visitors.add(key(8), &of(HEAVY), at(2));
    admission.visitors.add(key(9), &of(HEAVY), at(3));
    assert_eq!(judge(&admission, 979), Admit);
    assert_eq!(judge(&admission, 980), AdmitInPlaceOf(Victim::Oldest(key(0))), "a stranger");
    (0..3).for_each(|slot| assert!(admission.shares.remove(key(slot)).is_some()));
    assert_eq!(judge(&admission, 980), AdmitInPlaceOfVisitor(key(8)), "of the heaviest prefix");
    assert_eq!(judge(&admission, 1000), Drop(Metric::AcceptRefused), "every place is taken");
    (7..10).for_each(|slot| assert!(admission.visitors.remove(key(slot)).is_some()));
    assert_eq!(judge(&admission, 980), Explain, "those with an identity stay");
}

#[test]
fn handshakes_are_counted_and_half_of_them_kept_for_the_unsuspected() {
    let mut admission = crowd(HEAVY, 10, 10);
    let taken = |admission: &mut Admission, who: &str, now| {
        (0..1000).filter(|_| admission.take_handshake(&of(who), now)).count()
    };
    assert_eq!(taken(&mut admission, HEAVY, at(0)), 50);
    assert_eq!(taken(&mut admission, OTHER, at(0)), 50);
    assert_eq!(taken(&mut admission, OTHER, at(0)), 0);
    // 30 come back, but the crowd's half of the bucket is still empty.
    assert_eq!(taken(&mut admission, HEAVY, at(300)), 0);
    assert_eq!(taken(&mut admission, OTHER, at(300)), 30);
}

#[test]
fn every_cause_before_authentication_is_a_failure_of_somebody_or_not() {
    let failures = Cause::ALL.iter().filter(|cause| is_failure(**cause)).count();
    assert_eq!((failures, is_failure(Cause::OverCapacity)), (23, false), "an eviction is ours");
    assert!(!is_failure(Cause::ClientGone) && !is_failure(Cause::HealthCheck));
    assert!(is_failure(Cause::HandshakeTimedOut) && is_failure(Cause::BadSignature));
}
