//! Moments as people write them: "2026-11-22 03:00 Europe/Vienna", "10 minutes ago", "yesterday 23:15".
//!
//! What could mean two moments is refused, with both: an hour that a change of clocks brings twice, an abbreviation that
//! several zones share.

use std::fmt;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Span, Timestamp, Zoned};
use leeward_engine::moment::utc;
use leeward_pgformat::TimestampTz;

/// A moment, and how it was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    timestamp: Timestamp,
    /// The zone to show it in: the one that was written, else the host's.
    zone: TimeZone,
    /// No zone was written, and one was needed.
    assumed: bool,
}

/// Why a text is no moment, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoMoment {
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead, as a sentence.
    pub hint: String,
}

const EXAMPLES: &str = "Write it as \"2026-11-22 03:00 Europe/Vienna\", \"2026-11-22T03:00:00Z\", \"2026-11-22 03:00:00.5+01\", \"yesterday 23:15\" or \"10 minutes ago\".";

fn wrong(problem: impl Into<String>) -> NoMoment {
    NoMoment {
        problem: problem.into(),
        hint: EXAMPLES.to_owned(),
    }
}

impl Moment {
    /// Reads what a person wrote; `now` is the present moment in the host's zone.
    ///
    /// # Errors
    /// What could not be understood, with what to write instead.
    pub fn parse(text: &str, now: &Zoned) -> Result<Self, NoMoment> {
        let text = text.trim();
        let lower = text.to_ascii_lowercase();
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if lower == "now" {
            return Ok(Self::exact(now.timestamp(), now));
        }
        if lower.ends_with(" ago") {
            return ago(&lower, now);
        }
        let (date, rest) = if let Some(rest) = lower.strip_prefix("today") {
            (now.date(), &text[text.len() - rest.len()..])
        } else if let Some(rest) = lower.strip_prefix("yesterday") {
            let date = now.date().yesterday();
            let date = date.map_err(|e| wrong(e.to_string()))?;
            (date, &text[text.len() - rest.len()..])
        } else {
            date(text)?
        };
        let rest = rest.trim_start_matches(['T', 't']).trim_start();
        if rest.is_empty() {
            return Err(NoMoment {
                problem: "it names a day and no time of day".to_owned(),
                hint: format!("Add one: \"{text} 03:00\"."),
            });
        }
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.'))
            .unwrap_or(rest.len());
        let time = time(&rest[..digits])?;
        let zone = zone(rest[digits..].trim())?;
        let at = date.to_datetime(time);
        let assumed = zone.is_none();
        let zone = zone.unwrap_or_else(|| now.time_zone().clone());
        Ok(Self {
            timestamp: unambiguous(at, &zone)?,
            zone,
            assumed,
        })
    }

    fn exact(timestamp: Timestamp, now: &Zoned) -> Self {
        // The server's clock counts microseconds.
        let micros = timestamp.as_microsecond();
        Self {
            timestamp: Timestamp::from_microsecond(micros).unwrap_or(timestamp),
            zone: now.time_zone().clone(),
            assumed: false,
        }
    }

    /// As the server counts.
    pub fn timestamp(&self) -> TimestampTz {
        TimestampTz::from_unix_micros(self.timestamp.as_microsecond())
    }

    /// Whether the host's zone was taken because none was written.
    pub fn assumed_zone(&self) -> bool {
        self.assumed
    }
}

impl fmt::Display for Moment {
    /// In UTC, and in the zone it was meant in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&utc(self.timestamp()))?;
        let local = self.timestamp.to_zoned(self.zone.clone());
        let is_utc = |name: &str| name.rsplit('/').next() == Some("UTC");
        if local.offset() == Offset::UTC && self.zone.iana_name().is_none_or(is_utc) {
            return Ok(());
        }
        let name = self.zone.iana_name().map_or_else(
            || format!("at {}", local.strftime("%:z")),
            |name| format!("in {name}"),
        );
        write!(f, " ({} {name})", local.strftime("%Y-%m-%d %H:%M:%S%.f"))
    }
}

/// The present moment in the host's zone.
pub fn now() -> Zoned {
    Timestamp::now().to_zoned(TimeZone::system())
}

/// "10 minutes ago", "1h30m ago", "2 days ago".
fn ago(text: &str, now: &Zoned) -> Result<Moment, NoMoment> {
    let span: Span = text
        .parse()
        .map_err(|_| wrong(format!("\"{text}\" is not so long ago as anything")))?;
    // Parsed with its "ago", a span is negative.
    let then = now
        .checked_add(span)
        .map_err(|_| wrong(format!("\"{text}\" is too long ago")))?;
    Ok(Moment::exact(then.timestamp(), now))
}

/// A calendar date at the beginning of `text`, and what follows it.
fn date(text: &str) -> Result<(Date, &str), NoMoment> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '-'))
        .unwrap_or(text.len());
    let (written, rest) = text.split_at(end);
    let shape: Vec<usize> = written.split('-').map(str::len).collect();
    if shape != [4, 2, 2] {
        return Err(match rest.chars().next() {
            Some(':') => NoMoment {
                problem: "it names a time and no day".to_owned(),
                hint: format!(
                    "Write \"today {text}\", \"yesterday {text}\", or the date before it."
                ),
            },
            Some('/' | '.') => NoMoment {
                problem: "dates are written year-month-day".to_owned(),
                hint: EXAMPLES.to_owned(),
            },
            _ if text.parse::<Span>().is_ok() => NoMoment {
                problem: "it is a length of time".to_owned(),
                hint: format!("Write \"{text} ago\"."),
            },
            _ => wrong("it does not begin with a date, \"today\" or \"yesterday\""),
        });
    }
    let date = written
        .parse()
        .map_err(|_| wrong(format!("there is no day {written}")))?;
    Ok((date, rest))
}

/// Hours and minutes, perhaps seconds, perhaps a fraction of them.
fn time(text: &str) -> Result<Time, NoMoment> {
    let no_time = || wrong(format!("\"{text}\" is not a time of day"));
    let (clock, fraction) = match text.split_once('.') {
        Some((clock, fraction)) => (clock, fraction),
        None => (text, ""),
    };
    if fraction.len() > 6 {
        return Err(wrong(format!(
            "\"{text}\" is finer than the server's clock, which counts microseconds"
        )));
    }
    let parts: Vec<&str> = clock.split(':').collect();
    let number = |part: &str| -> Result<i8, NoMoment> {
        if !(1..=2).contains(&part.len()) {
            return Err(no_time());
        }
        part.parse().map_err(|_| no_time())
    };
    let (hour, minute, second) = match parts.as_slice() {
        [hour, minute] if !text.contains('.') => (number(hour)?, number(minute)?, 0),
        [hour, minute, second] => (number(hour)?, number(minute)?, number(second)?),
        _ => return Err(no_time()),
    };
    if text.contains('.') && fraction.is_empty() {
        return Err(no_time());
    }
    let nanosecond: i32 = format!("{fraction:0<9}").parse().map_err(|_| no_time())?;
    Time::new(hour, minute, second, nanosecond).map_err(|_| no_time())
}

/// The zone that was written; `None` where none was.
fn zone(text: &str) -> Result<Option<TimeZone>, NoMoment> {
    if text.is_empty() {
        return Ok(None);
    }
    if ["z", "utc", "gmt"].contains(&text.to_ascii_lowercase().as_str()) {
        return Ok(Some(TimeZone::UTC));
    }
    if text.starts_with(['+', '-']) {
        return offset(text)
            .map(|offset| Some(offset.to_time_zone()))
            .ok_or_else(|| {
                wrong(format!(
                    "\"{text}\" is not an offset from UTC; write +01, +01:00 or +0100"
                ))
            });
    }
    if !text.contains('/') {
        return Err(NoMoment {
            problem: format!("\"{text}\" may be several zones"),
            hint: "Write a zone's full name, as Europe/Vienna or America/New_York, or an offset, as +01:00; UTC and GMT may stand alone.".to_owned(),
        });
    }
    TimeZone::get(text).map(Some).map_err(|_| NoMoment {
        problem: format!("there is no time zone \"{text}\""),
        hint: "Zones are written as Europe/Vienna or America/New_York; an offset as +01:00 will do too.".to_owned(),
    })
}

/// `+01`, `+01:00`, `+0100`; east is positive, as everywhere but in POSIX.
fn offset(text: &str) -> Option<Offset> {
    let (sign, digits) = text.split_at_checked(1)?;
    let (hours, minutes) = match digits.len() {
        2 => (digits, "0"),
        4 => digits.split_at(2),
        5 => digits
            .split_once(':')
            .filter(|(hours, _)| hours.len() == 2)?,
        _ => return None,
    };
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(hours) || !all_digits(minutes) {
        return None;
    }
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    // The server knows no offset from 16 hours on (MAX_TZDISP_HOUR, datatype/timestamp.h).
    if minutes > 59 || hours > 15 {
        return None;
    }
    let seconds = (hours * 60 + minutes) * 60;
    Offset::from_seconds(if sign == "-" { -seconds } else { seconds }).ok()
}

/// The one moment at which clocks in `zone` show `at`.
fn unambiguous(at: DateTime, zone: &TimeZone) -> Result<Timestamp, NoMoment> {
    let shown = at.strftime("%Y-%m-%d %H:%M:%S%.f");
    let name = zone.iana_name().unwrap_or("the host's zone");
    let with = |offset: Offset| format!("\"{shown}{offset}\"");
    let found = zone.to_ambiguous_timestamp(at);
    match found.offset() {
        AmbiguousOffset::Unambiguous { .. } => found
            .unambiguous()
            .map_err(|_| wrong(format!("{shown} lies outside the calendar"))),
        AmbiguousOffset::Fold { before, after } => Err(NoMoment {
            problem: format!("{shown} comes twice in {name}, where clocks went back"),
            hint: format!(
                "Write {} for the first, {} for the second.",
                with(before),
                with(after)
            ),
        }),
        AmbiguousOffset::Gap { before, after } => {
            let told = |offset: Offset| {
                let meant = offset.to_timestamp(at).ok()?;
                Some(
                    meant
                        .to_zoned(zone.clone())
                        .strftime("%H:%M:%S%.f")
                        .to_string(),
                )
            };
            let (late, early) = (
                told(before).unwrap_or_default(),
                told(after).unwrap_or_default(),
            );
            Err(NoMoment {
                problem: format!("{shown} never was in {name}, where clocks went forward"),
                hint: format!(
                    "Write {}, which clocks there showed as {early}, or {}, which they showed as {late}.",
                    with(after),
                    with(before)
                ),
            })
        }
    }
}

/// The length of time from `earlier` to `later`, in one word or two.
pub fn length(earlier: TimestampTz, later: TimestampTz) -> String {
    let seconds = later.0.saturating_sub(earlier.0).max(0) / 1_000_000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Sunday at noon in Vienna.
    fn noon() -> Zoned {
        "2026-11-22T12:00:00[Europe/Vienna]".parse().expect("now")
    }

    fn read(text: &str) -> Moment {
        Moment::parse(text, &noon()).unwrap_or_else(|e| panic!("{text}: {e:?}"))
    }

    fn refused(text: &str) -> NoMoment {
        Moment::parse(text, &noon()).expect_err(text)
    }

    #[test]
    fn usual_spellings() {
        for (text, moment) in [
            ("2026-11-22 03:00 Europe/Vienna", "2026-11-22 02:00:00 UTC"),
            ("2026-11-22T03:00:00Z", "2026-11-22 03:00:00 UTC"),
            ("2026-11-22 03:00 utc", "2026-11-22 03:00:00 UTC"),
            ("2026-11-22 03:00:07 GMT", "2026-11-22 03:00:07 UTC"),
            ("2026-11-22 03:00+01", "2026-11-22 02:00:00 UTC"),
            ("2026-11-22 03:00 +01:30", "2026-11-22 01:30:00 UTC"),
            ("2026-11-22T03:00:00-0130", "2026-11-22 04:30:00 UTC"),
            ("2026-11-22 03:00:00.5+01", "2026-11-22 02:00:00.5 UTC"),
            (
                "2026-11-22 03:00:00.123456+00",
                "2026-11-22 03:00:00.123456 UTC",
            ),
            (
                " 2026-07-01 3:05 America/New_York ",
                "2026-07-01 07:05:00 UTC",
            ),
            ("2026-11-22 03:00", "2026-11-22 02:00:00 UTC"),
            ("today 02:00", "2026-11-22 01:00:00 UTC"),
            ("Yesterday 23:15", "2026-11-21 22:15:00 UTC"),
            ("yesterday 23:15 UTC", "2026-11-21 23:15:00 UTC"),
            ("now", "2026-11-22 11:00:00 UTC"),
            ("10 minutes ago", "2026-11-22 10:50:00 UTC"),
            ("1h30m ago", "2026-11-22 09:30:00 UTC"),
            ("90s ago", "2026-11-22 10:58:30 UTC"),
            ("2 days ago", "2026-11-20 11:00:00 UTC"),
        ] {
            assert_eq!(utc(read(text).timestamp()), moment, "{text}");
        }
    }

    #[test]
    fn what_is_shown_can_be_written() {
        for text in ["2026-11-22 03:00:00.000001 UTC", "2026-01-01 00:00:00 UTC"] {
            assert_eq!(utc(read(text).timestamp()), text);
        }
    }

    #[test]
    fn a_day_ago_is_the_same_time_of_day() {
        let after_the_change: Zoned = "2026-10-25T12:00:00[Europe/Vienna]".parse().expect("now");
        let moment = Moment::parse("1 day ago", &after_the_change).expect("a moment");
        assert_eq!(utc(moment.timestamp()), "2026-10-24 10:00:00 UTC");
    }

    #[test]
    fn the_zone_is_said() {
        let moment = read("2026-11-22 03:00");
        assert!(moment.assumed_zone());
        assert_eq!(
            moment.to_string(),
            "2026-11-22 02:00:00 UTC (2026-11-22 03:00:00 in Europe/Vienna)"
        );
        assert!(!read("2026-11-22 03:00Z").assumed_zone());
        assert!(!read("10 minutes ago").assumed_zone());
        assert_eq!(
            read("2026-11-22 03:00+05:30").to_string(),
            "2026-11-21 21:30:00 UTC (2026-11-22 03:00:00 at +05:30)"
        );
        assert_eq!(
            read("2026-11-22 03:00Z").to_string(),
            "2026-11-22 03:00:00 UTC"
        );
    }

    #[test]
    fn changes_of_clocks() {
        let twice = refused("2026-10-25 02:30 Europe/Vienna");
        assert!(twice.problem.contains("twice"), "{twice:?}");
        for both in ["02:30:00+02\"", "02:30:00+01\""] {
            assert!(twice.hint.contains(both), "{twice:?}");
        }
        let never = refused("2026-03-29 02:30 Europe/Vienna");
        assert!(never.problem.contains("never"), "{never:?}");
        for both in [
            "02:30:00+02\", which clocks there showed as 01:30:00",
            "02:30:00+01\", which they showed as 03:30:00",
        ] {
            assert!(never.hint.contains(both), "{never:?}");
        }
        // An offset decides.
        assert_eq!(
            utc(read("2026-10-25 02:30:00+02").timestamp()),
            "2026-10-25 00:30:00 UTC"
        );
    }

    #[test]
    fn refused_with_a_way_out() {
        for (text, problem, hint) in [
            ("", "empty", "2026-11-22 03:00 Europe/Vienna"),
            ("2026-11-22", "no time of day", "\"2026-11-22 03:00\""),
            ("today", "no time of day", "\"today 03:00\""),
            ("03:00", "no day", "\"today 03:00\""),
            ("2026-11-22 03:00 CET", "several zones", "Europe/Vienna"),
            ("2026-11-22 03:00 EST", "several zones", "+01:00"),
            (
                "2026-11-22 03:00 Europe/Wien",
                "no time zone",
                "Europe/Vienna",
            ),
            ("22.11.2026 03:00", "year-month-day", "2026-11-22"),
            ("11/22/2026 03:00", "year-month-day", "2026-11-22"),
            ("2026-11-31 03:00", "no day 2026-11-31", ""),
            ("2026-11-22 25:00", "not a time of day", ""),
            ("2026-11-22 03:00:00.1234567", "microseconds", ""),
            ("2026-11-22 03:00 +1", "offset", ""),
            ("2026-11-22 03:00 +25:00", "offset", ""),
            ("2026-11-22 03:00:00.", "not a time of day", ""),
            ("10 minutes", "a length of time", "\"10 minutes ago\""),
            ("ten minutes ago", "ago", ""),
            ("noon", "does not begin with a date", ""),
        ] {
            let e = refused(text);
            assert!(e.problem.contains(problem), "{text}: {e:?}");
            assert!(e.hint.contains(hint), "{text}: {e:?}");
        }
    }

    #[test]
    fn lengths() {
        let at = |seconds: i64| TimestampTz(seconds * 1_000_000);
        for (seconds, text) in [
            (4, "4 s"),
            (600, "10 min"),
            (10_000, "2 h"),
            (864_000, "10 days"),
        ] {
            assert_eq!(length(at(0), at(seconds)), text);
        }
    }
}
