//! What repeats is counted: which lines are said, and when their number is. Here since `overlay` knows no clock, its tests neither.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use twill_agent::overlay::repeats::Repeats;

/// Lines at these times (ms): which were said, and each count with its time.
fn run(few: u32, lines: &[u64], until: u64) -> (Vec<u64>, Vec<(u64, u64)>) {
    run_with(Repeats::new(few), lines, until)
}

fn run_with(mut repeats: Repeats, lines: &[u64], until: u64) -> (Vec<u64>, Vec<(u64, u64)>) {
    let began = Instant::now();
    let at = |ms| began + Duration::from_millis(ms);
    let (mut said, mut counts) = (Vec::new(), Vec::new());
    let mut lines = lines.iter().copied().peekable();
    for ms in 0..=until {
        while lines.next_if_eq(&ms).is_some() {
            if repeats.admit(at(ms)) {
                said.push(ms);
            }
        }
        if repeats.due().is_some_and(|due| due <= at(ms)) {
            counts.extend(repeats.count(at(ms)).map(|count| (ms, count)));
        }
    }
    (said, counts)
}

#[test]
fn a_record_written_5000_times_in_5_s_makes_few_lines() {
    let (said, counts) = run(10, &(0..5_000).collect::<Vec<_>>(), 200_000);
    assert_eq!(said, (0..10).collect::<Vec<_>>());
    assert_eq!(counts, [(1_010, 1_001), (3_010, 2_000), (7_010, 1_989)]);
}

#[test]
fn few_lines_are_all_said_and_after_a_rest_again() {
    let lines: Vec<u64> = (0..200).map(|line| line * 1_100).collect();
    assert_eq!(run(10, &lines, 220_000), (lines.clone(), vec![]));
    let (said, counts) = run(2, &[0, 1, 2, 50_000, 50_001], 60_000);
    assert_eq!((said, counts), (vec![0, 1, 50_000, 50_001], vec![(1_002, 1)]));
}

#[test]
fn a_slow_fight_is_one_line_a_minute_as_well() {
    let lines: Vec<u64> = (0..60).map(|line| line * 5_000).collect();
    let (said, counts) = run_with(Repeats::in_a_minute(3), &lines, 600_000);
    assert_eq!(
        (said, counts),
        (vec![0, 5_000, 10_000], vec![(75_000, 13), (135_000, 12), (195_000, 12), (255_000, 12), (315_000, 8)])
    );
}

#[test]
fn a_fight_without_end_is_one_line_a_minute() {
    let lines: Vec<u64> = (0..6_000).map(|line| line * 100).collect();
    let (said, counts) = run(10, &lines, 600_000);
    assert_eq!(said.len(), 10);
    let last: Vec<u64> = counts.iter().rev().take(3).map(|(_, count)| *count).collect();
    assert_eq!(last, [600; 3]);
}

proptest! {
    #[test]
    fn each_line_is_said_or_counted(few in 1u32..5, gaps in prop::collection::vec(0u64..3_000, 0..60)) {
        let lines: Vec<u64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
        let (said, counts) = run(few, &lines, lines.last().unwrap_or(&0) + 130_000);
        prop_assert_eq!(said.len() as u64 + counts.iter().map(|(_, count)| count).sum::<u64>(), lines.len() as u64);
        for window in said.windows(few as usize + 1) {
            prop_assert!(window[few as usize] - window[0] >= 1_000, "{:?}", said);
        }
        for pair in counts.windows(2) {
            prop_assert!(pair[1].0 - pair[0].0 >= 1_000, "{:?}", counts);
        }
    }
}
