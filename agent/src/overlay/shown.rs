//! Text from outside, made fit for one line: escaped and cut to a readable length.
//!
//! Whoever may write to etcd, name an interface or answer a request chooses such a text. Printed as it is, it could end a
//! line and begin another one, move the cursor of a terminal, turn the direction of what follows, or fill a disk. What
//! counts as printable is what [`char::escape_debug`] leaves as it is.

use std::fmt::{self, Display, Write};

/// How many characters of a key, a value or a name are shown.
pub const READABLE: usize = 120;

/// How much longer a text may be before it is cut: room for the note about its length, so that a text that was shown once
/// is not cut again.
const SLACK: usize = 40;

/// Bytes as one printable line: control characters, line ends, changes of direction and bytes that are no UTF-8 are escaped,
/// and what is too long is cut and says how long it was. Escaping what was escaped before changes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    bytes: &'a [u8],
    most: usize,
}

impl<'a> Shown<'a> {
    /// At most [`READABLE`] characters of it.
    pub fn new(content: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self::up_to(READABLE, content)
    }

    /// At most so many characters of it.
    pub fn up_to(most: usize, content: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self { bytes: content.as_ref(), most }
    }

    /// The escaped pieces: each character, or byte that is none, by itself.
    fn pieces(&self) -> impl Iterator<Item = Piece> {
        let chunks = self.bytes.utf8_chunks();
        chunks.flat_map(|chunk| {
            let invalid = chunk.invalid().iter().map(|byte| Piece::Byte(*byte));
            chunk.valid().chars().map(Piece::Char).chain(invalid)
        })
    }
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_long = {
            let mut length = 0;
            self.pieces().any(|piece| {
                length += piece.width();
                length > self.most + SLACK
            })
        };
        let (mut left, mut pieces) = (self.most, self.pieces());
        while let Some(piece) = pieces.next().filter(|piece| !is_long || piece.width() <= left) {
            left = left.saturating_sub(piece.width());
            piece.write(f)?;
        }
        if is_long { write!(f, "... ({} bytes)", Thousands(self.bytes.len())) } else { Ok(()) }
    }
}

/// [`Shown`] as a text of its own: what an error keeps of a content.
pub fn shown(content: &(impl AsRef<[u8]> + ?Sized)) -> String {
    Shown::new(content).to_string()
}

#[derive(Debug, Clone, Copy)]
enum Piece {
    Char(char),
    Byte(u8),
}

impl Piece {
    /// A quote, an apostrophe and a backslash do no harm. The backslash stays for a second reason: an escaped text is escaped
    /// already.
    fn is_plain(c: char) -> bool {
        matches!(c, ' '..='~') || c.escape_debug().len() == 1
    }

    fn width(self) -> usize {
        match self {
            Self::Char(c) if Self::is_plain(c) => 1,
            Self::Char(c) => c.escape_debug().len(),
            Self::Byte(_) => 4,
        }
    }

    fn write(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Char(c) if Self::is_plain(c) => f.write_char(c),
            Self::Char(c) => write!(f, "{}", c.escape_debug()),
            Self::Byte(byte) => write!(f, "\\x{byte:02x}"),
        }
    }
}

/// A number with a comma before each three digits.
struct Thousands(usize);

impl Display for Thousands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_forge_a_line_is_escaped() {
        for (content, expected) in [
            ("10.5.7.0-24", "10.5.7.0-24"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\0"),
            ("\u{1b}[2J\u{9b}2J\u{7f}", "\\u{1b}[2J\\u{9b}2J\\u{7f}"),
            ("a\u{202e}b\u{2066}\u{200b}\u{feff}\u{2028}", "a\\u{202e}b\\u{2066}\\u{200b}\\u{feff}\\u{2028}"),
            ("Straße 7, Köln: \"x\" 'y' \\n", "Straße 7, Köln: \"x\" 'y' \\n"),
        ] {
            assert_eq!(shown(content), expected);
        }
        assert_eq!(shown(b"a\xff\xfe\xe2\x82b"), "a\\xff\\xfe\\xe2\\x82b");
    }

    #[test]
    fn what_is_long_is_cut_and_says_how_long_it_was() {
        let long = "x".repeat(1_400_000);
        assert_eq!(shown(&long), format!("{}... (1,400,000 bytes)", "x".repeat(READABLE)));
        assert_eq!(Shown::up_to(3, &long).to_string(), "xxx... (1,400,000 bytes)");
        let fits = "y".repeat(READABLE + SLACK);
        assert_eq!(shown(&fits), fits);
        // An escape is not cut in two.
        assert_eq!(Shown::up_to(5, &"\u{1b}".repeat(99)).to_string(), "... (99 bytes)");
        assert_eq!(Shown::up_to(7, &"\u{1b}".repeat(99)).to_string(), "\\u{1b}... (99 bytes)");
    }

    proptest! {
        #[test]
        fn it_is_one_printable_line_of_a_bounded_length(content: Vec<u8>, most in 0usize..300, times in 1usize..40) {
            let content = content.repeat(times);
            let text = Shown::up_to(most, &content).to_string();
            prop_assert!(text.chars().count() <= most + SLACK, "{text}");
            prop_assert!(text.chars().all(|c| !c.is_control() && Piece::is_plain(c) || "\"'\\".contains(c)), "{text:?}");
            prop_assert_eq!(Shown::up_to(most, &text).to_string(), text, "once more changes nothing");
        }

        #[test]
        fn any_text_is_one_printable_line(content: String) {
            let text = Shown::up_to(usize::MAX / 2, &content).to_string();
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            if content.chars().all(|c| matches!(c, ' '..='~')) {
                prop_assert_eq!(text, content);
            }
        }
    }
}
