//! Calendar dates in UTC.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of a day. POSIX time has no leap seconds.
pub const DAY: u64 = 86_400;

/// A day, displayed as `2026-11-21`. Dates compare in calendar order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    /// From 1970 on for a date of the clock, from 0 for one of a file.
    pub year: u64,
    /// From 1.
    pub month: u64,
    /// From 1.
    pub day: u64,
}

impl Date {
    /// The date at `time`, in UTC. A clock before 1970 is wrong and gives 1970-01-01.
    #[must_use]
    pub fn of(time: SystemTime) -> Self {
        let days = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY;
        // Years start on 1 March, from 0000-03-01, which makes the leap day the last of its year.
        // Eras of 400 years all have the same number of days.
        let day = days + 719_468;
        let (era, day) = (day / 146_097, day % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let date = day - (153 * month + 2) / 5 + 1;
        let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        Self { year: era * 400 + year + next_year, month, day: date }
    }

    /// Reads `YYYY-MM-DD`, with all digits. `None` for any other text or a day that does not exist.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else { return None };
        let number = |digits: &[u8]| {
            digits.iter().try_fold(0, |number, digit| {
                digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
            })
        };
        let (year, month, day) =
            (number(&[y1, y2, y3, y4])?, number(&[m1, m2])?, number(&[d1, d2])?);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let last = match month {
            2 if is_leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        (1..=last).contains(&day).then_some(Self { year, month, day })
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day } = self;
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_day_of_five_centuries_is_read_as_it_is_shown_and_comes_after_the_one_before() {
        let mut before = None;
        for day in 0..500 * 366 {
            let first = UNIX_EPOCH + Duration::from_secs(day * DAY);
            let date = Date::of(first);
            assert_eq!(Date::of(first + Duration::from_secs(DAY - 1)), date);
            assert_eq!(Date::parse(date.to_string().as_bytes()), Some(date), "{date}");
            assert!(before < Some(date), "{date}");
            before = Some(date);
        }
    }

    #[test]
    fn only_days_that_exist_are_dates() {
        for text in ["2024-02-29", "2000-02-29", "2025-12-31", "0000-01-01", "9999-12-31"] {
            assert_eq!(Date::parse(text.as_bytes()).map(|d| d.to_string()).as_deref(), Some(text));
        }
        for text in [
            "2025-02-29",
            "2100-02-29",
            "2025-02-30",
            "2025-04-31",
            "2025-06-31",
            "2025-09-31",
            "2025-11-31",
            "2025-13-01",
            "2025-00-10",
            "2025-01-00",
            "2025-01-32",
        ] {
            assert_eq!(Date::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_date_has_four_two_and_two_digits_and_nothing_else() {
        for text in [
            "",
            "-",
            "never",
            "2025",
            "2025-01",
            "25-01-01",
            "2025-1-1",
            "2025-01-1",
            "20250101",
            "2025/01/01",
            "02025-01-01",
            "+025-01-01",
            " 2025-01-01",
            "2025-01-01 ",
            "2025-01-01\r",
            "2025-01-01T00",
            "2025-01-0\u{661}",
        ] {
            assert_eq!(Date::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
