//! When restores are a fight with another program, on a clock that the test moves.

use std::time::{Duration, Instant};

use twill_agent::overlay::restores::Restores;

/// So many in a minute are none yet.
const FEW: u32 = 10;

#[test]
fn many_restores_are_a_fight_until_it_is_calm() {
    let (mut restores, mut now) = (Restores::default(), Instant::now());
    for _ in 0..FEW {
        restores.restored(now);
        assert!(!restores.is_fight() && restores.due().is_none());
        now += Duration::from_secs(1);
    }
    for _ in 0..200 {
        restores.restored(now);
        now += Duration::from_secs(9);
        restores.wake(now);
        assert!(restores.is_fight(), "also when they come slowly");
    }
    now += Duration::from_secs(1);
    assert_eq!(restores.due(), Some(now));
    restores.wake(now);
    assert!(!restores.is_fight() && restores.due().is_none());
    assert_eq!(restores.total(), u64::from(FEW) + 200);
}

#[test]
fn few_restores_a_minute_are_no_fight() {
    let (mut restores, mut now) = (Restores::default(), Instant::now());
    for _ in 0..100 {
        restores.restored(now);
        assert!(!restores.is_fight());
        now += Duration::from_secs(60) / FEW;
    }
}
