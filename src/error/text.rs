//! Text that came from another process: cut to a bound when it is taken in, and escaped when it is
//! displayed.

use std::fmt::{self, Display};

/// The most that is kept of one text from a worker, in bytes: a panic's message, a reason.
pub(crate) const TEXT_MAX: usize = 16 << 10;
/// The most that is kept of a backtrace, in bytes.
pub(crate) const BACKTRACE_MAX: usize = 64 << 10;
/// Stands where text was cut off.
pub(crate) const CUT: char = '\u{2026}';

/// Cuts a text to `most` bytes, the mark of the cut included.
pub(crate) fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(floor_char_boundary(text, most.saturating_sub(CUT.len_utf8())));
        if text.len() + CUT.len_utf8() <= most {
            text.push(CUT);
        }
        text.shrink_to_fit();
    }
}

/// The last boundary of a character that is not past `index`. (`str::floor_char_boundary` came with
/// Rust 1.91.)
pub(crate) fn floor_char_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0)
}

/// Displays a text with its control characters escaped, so that what a worker says cannot drive a
/// terminal. Line breaks and tabs stay: messages of several lines are common.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some((at, control)) = rest.char_indices().find(|(_, c)| is_escaped(*c)) {
            f.write_str(&rest[..at])?;
            write!(f, "{}", control.escape_default())?;
            rest = &rest[at + control.len_utf8()..];
        }
        f.write_str(rest)
    }
}

/// Control characters, and those that change the direction of the text around them.
fn is_escaped(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_character_and_marked() {
        for most in [0, 2, 3, 4, 5, 100] {
            let mut text = "\u{e9}".repeat(1000);
            cut(&mut text, most);
            assert!(text.len() <= most && text.len() + 4 > most, "{most}: {}", text.len());
            assert_eq!(text.ends_with(CUT), most >= 3, "{text}");
        }
        let mut text = "short".to_owned();
        cut(&mut text, 5);
        assert_eq!(text, "short");
    }

    #[test]
    fn controls_are_escaped_but_for_line_breaks_and_tabs() {
        let text = "a\x1b[31mb\r\n\tc\u{9b}\u{7f}\u{202e}\u{200f}\0\u{e9}";
        assert_eq!(
            Escaped(text).to_string(),
            "a\\u{1b}[31mb\\r\n\tc\\u{9b}\\u{7f}\\u{202e}\\u{200f}\\u{0}\u{e9}"
        );
    }
}
