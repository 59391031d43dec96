//! Typed reading of a TOML document.

/// A type whose values are words of the file.
pub(super) trait Keyword: Sized {
    /// Every word.
    const WORDS: &'static [&'static str];

    /// The value that `word` stands for.
    fn from_word(word: &str) -> Option<Self>;
}
