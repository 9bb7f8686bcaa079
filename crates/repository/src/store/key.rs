//! The names of objects.

use std::fmt;
use std::str::FromStr;

/// The longest key in bytes. S3 takes 1,024 with the repository's prefix.
pub const MAX_KEY_BYTES: usize = 900;
/// The longest part between two slashes in bytes: file systems take 255, and a temporary name adds to it.
pub const MAX_NAME_BYTES: usize = 200;

/// The name of an object inside a repository: parts joined by `/`, relative to the repository's root.
///
/// Only letters, digits and `- _ . + = @` stand in it, no part begins with a dot, so that it means the same in a
/// directory and in every object store, needs no escaping anywhere, and never meets our hidden temporary files.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// A text that cannot name an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" cannot name an object: {reason}")]
pub struct InvalidKey {
    /// The refused text, escaped.
    pub text: String,
    /// Why.
    pub reason: &'static str,
}

impl Key {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidKey`] for anything but the alphabet above.
    pub fn new(text: impl Into<String>) -> Result<Key, InvalidKey> {
        let text = text.into();
        match flaw(&text) {
            None => Ok(Key(text)),
            Some(reason) => Err(InvalidKey {
                text: text.escape_default().to_string(),
                reason,
            }),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last slash.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The name of something inside the folder that this key names.
    ///
    /// # Errors
    /// [`InvalidKey`] when `part` is not usable or the whole gets too long.
    pub fn join(&self, part: &str) -> Result<Key, InvalidKey> {
        Key::new(format!("{}/{part}", self.0))
    }
}

fn flaw(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > MAX_KEY_BYTES {
        return Some("it is too long");
    }
    for part in text.split('/') {
        if part.is_empty() {
            return Some("it has an empty part");
        }
        if part.starts_with('.') {
            return Some("a part of it begins with a dot");
        }
        if part.len() > MAX_NAME_BYTES {
            return Some("a part of it is too long");
        }
        if !part
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.+=@".contains(&b))
        {
            return Some("only letters, digits and - _ . + = @ are allowed");
        }
    }
    None
}

/// A folder of keys: the empty text (the whole repository) or a key's text; a trailing slash does no harm.
pub(crate) fn folder(prefix: &str) -> Result<&str, InvalidKey> {
    let folder = prefix.strip_suffix('/').unwrap_or(prefix);
    match flaw(folder) {
        Some(reason) if !folder.is_empty() => Err(InvalidKey {
            text: prefix.escape_default().to_string(),
            reason,
        }),
        _ => Ok(folder),
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Key, InvalidKey> {
        Key::new(text)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked() {
        for good in [
            "leeward.json",
            "main/backups/20261122T023000Z-k7q2/packs/1.pack",
            "a+b=c@d/_x",
        ] {
            assert_eq!(
                Key::new(good).map(|key| key.to_string()).as_deref(),
                Ok(good)
            );
        }
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for bad in [
            "", "/a", "a/", "a//b", ".a", "a/..", "a b", "a\n", "ä", "a\\b", "a%20", &long,
        ] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn folders_may_be_empty_or_end_with_a_slash() {
        assert_eq!(folder(""), Ok(""));
        assert_eq!(folder("main/"), Ok("main"));
        assert_eq!(folder("main/backups"), Ok("main/backups"));
        assert!(folder("../x").is_err());
        assert!(folder("main//").is_err());
    }
}
