//! Output: data to standard output, everything for people to standard error. Text from outside (names, paths, messages
//! of servers and stores, a repository's JSON) is escaped on its way.

use std::borrow::Cow;
use std::io::Write;

/// Writes data. A reader that has gone away is no failure.
pub fn data(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}

/// Writes lines for people; line breaks are kept, see [`escaped`].
pub fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{}", escaped_lines(text));
}

/// Returns text as it may stand in one line on a terminal: what would steer the terminal, break the line or reorder its letters
/// is shown as Rust writes it, `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// As [`escaped`], for text of several lines of our own.
fn escaped_lines(text: &str) -> String {
    let lines: Vec<Cow<'_, str>> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}

/// Controls, and what Unicode has to reorder, hide or break text.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_steers_a_terminal_or_breaks_a_line() {
        for (text, shown) in [
            (
                "orders \u{20ac} \u{65e5}\u{672c} \"x\" \\",
                "orders \u{20ac} \u{65e5}\u{672c} \"x\" \\",
            ),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\nerror: b\r\t", "a\\nerror: b\\r\\t"),
            ("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\u{0}"),
            ("exe.\u{202e}gpj", "exe.\\u{202e}gpj"),
        ] {
            assert_eq!(escaped(text), shown);
        }
        assert_eq!(escaped_lines("a\u{7}\nb"), "a\\u{7}\nb");
    }
}
