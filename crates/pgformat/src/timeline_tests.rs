use proptest::prelude::*;

use super::*;

const TEXT: &str = "1\t0/3000000\tno recovery target specified\n\n# a comment\n 2\t16/B374D848\tat restore point \"x y\"\n";

fn history() -> TimelineHistory {
    TimelineHistory::parse(TEXT, TimelineId(5)).expect("history")
}

#[test]
fn reads_ancestors_and_reasons() {
    let entry = |timeline, lsn, reason: &str| TimelineHistoryEntry {
        timeline: TimelineId(timeline),
        switch_lsn: Lsn(lsn),
        reason: reason.to_owned(),
    };
    assert_eq!(
        history().entries,
        [
            entry(1, 0x300_0000, "no recovery target specified"),
            entry(2, 0x16_B374_D848, "at restore point \"x y\"")
        ]
    );
    assert_eq!(
        TimelineHistory::parse("1 0/10", TimelineId(2))
            .expect("no tab, no reason, no end of line")
            .entries,
        [entry(1, 0x10, "")]
    );
    assert_eq!(
        TimelineHistory::parse(b"1\t0/10\tM\xFCnchen\n", TimelineId(2))
            .expect("not UTF-8")
            .entries,
        [entry(1, 0x10, "M\u{FFFD}nchen")]
    );
}

#[test]
fn each_lsn_has_its_timeline() {
    let history = history();
    for (lsn, timeline) in [
        (0, 1),
        (0x2FF_FFFF, 1),
        (0x300_0000, 2),
        (0x16_B374_D847, 2),
        (0x16_B374_D848, 5),
        (u64::MAX, 5),
    ] {
        assert_eq!(
            history.timeline_of(Lsn(lsn)),
            TimelineId(timeline),
            "{}",
            Lsn(lsn)
        );
    }
    assert_eq!(
        TimelineHistory::without_ancestors(TimelineId(1)).timeline_of(Lsn(9)),
        TimelineId(1)
    );
}

#[test]
fn ranges_follow_each_other() {
    let ranges = history().ranges();
    let plain: Vec<_> = ranges
        .iter()
        .map(|range| (range.timeline.0, range.begin.0, range.end))
        .collect();
    let (first, second) = (Lsn(0x300_0000), Lsn(0x16_B374_D848));
    assert_eq!(
        plain,
        [
            (1, 0, Some(first)),
            (2, first.0, Some(second)),
            (5, second.0, None)
        ]
    );
}

#[test]
fn divergence_is_seen() {
    let history = history();
    assert!(history.descends_from(TimelineId(5), Lsn(u64::MAX)));
    assert!(
        history.descends_from(TimelineId(1), Lsn(0x300_0000)),
        "stopped exactly where the timeline was left"
    );
    assert!(
        !history.descends_from(TimelineId(1), Lsn(0x300_0001)),
        "went on after the promotion"
    );
    assert!(
        !history.descends_from(TimelineId(3), Lsn(1)),
        "a branch of its own"
    );
    assert!(
        history.contains(TimelineId(2))
            && history.contains(TimelineId(5))
            && !history.contains(TimelineId(4))
    );
    assert_eq!(history.switch_lsn(TimelineId(2)), Some(Lsn(0x16_B374_D848)));
    assert_eq!(history.switch_lsn(TimelineId(5)), None);
}

#[test]
fn refuses_with_line_and_reason() {
    for (text, line, reason) in [
        ("x\t0/1\n", 1, "\"x\" is not a timeline number"),
        ("1\n", 1, "\"\" is not a switch point LSN"),
        ("\n1\t0-1\n", 2, "\"0-1\" is not a switch point LSN"),
        (
            "1\t0/1\n1\t0/2\n",
            2,
            "timeline 1 does not come after timeline 1",
        ),
        (
            "1\t0/2\n2\t0/1\n",
            2,
            "timeline 2 was left at 0/1, before it began at 0/2",
        ),
        (
            "5\t0/1\n",
            1,
            "timeline 5 cannot be an ancestor of timeline 5",
        ),
    ] {
        assert_eq!(
            TimelineHistory::parse(text, TimelineId(5)),
            Err(FormatError::TimelineHistory {
                timeline: TimelineId(5),
                line,
                reason: reason.to_owned()
            })
        );
    }
}

proptest! {
    #[test]
    fn the_range_and_the_timeline_of_an_lsn_agree(steps in prop::collection::vec(0..1000_u64, 0..6), lsn in 0..6000_u64) {
        let mut switch_lsn = 0;
        let mut text = String::new();
        for (index, step) in steps.iter().enumerate() {
            switch_lsn += step;
            text += &format!("{}\t{}\treason\n", index + 1, Lsn(switch_lsn));
        }
        let history = TimelineHistory::parse(&text, TimelineId(100)).expect("history");
        let inside: Vec<_> = history.ranges().into_iter()
            .filter(|range| range.begin <= Lsn(lsn) && range.end.is_none_or(|end| Lsn(lsn) < end))
            .map(|range| range.timeline).collect();
        prop_assert_eq!(inside, vec![history.timeline_of(Lsn(lsn))]);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[0-9A-F/\t\n #x]{0,60}") {
        let _ = TimelineHistory::parse(text, TimelineId(7));
    }
}
