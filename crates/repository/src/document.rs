//! The small JSON documents of a repository. Each ends in a member `checksum` over every byte before its line, so that
//! a flipped bit anywhere is found, and the whole is still plain JSON. Drawn in `docs/format.md`.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::hash::Hash;
use crate::repository_error::RepositoryError;
use crate::store::SMALL_OBJECT_BYTES_LIMIT;
use crate::summary::FORMAT_VERSION;

const CHECKSUM_START: &str = "  \"checksum\": \"";
const CHECKSUM_END: &str = "\"\n}\n";

/// The document as text, with its checksum. `object` is its name for messages.
pub(crate) fn encode<T: Serialize>(object: &str, document: &T) -> Result<Bytes, RepositoryError> {
    let unwritable = |problem: String| RepositoryError::Unwritable {
        object: object.to_owned(),
        problem,
    };
    let mut text =
        serde_json::to_string_pretty(document).map_err(|error| unwritable(error.to_string()))?;
    let members = text
        .strip_suffix("\n}")
        .ok_or_else(|| unwritable("not a JSON object".to_owned()))?
        .len();
    text.truncate(members);
    text.push_str(",\n");
    let hash = Hash::of(text.as_bytes());
    text.push_str(&format!("{CHECKSUM_START}{hash}{CHECKSUM_END}"));
    if text.len() as u64 > SMALL_OBJECT_BYTES_LIMIT {
        return Err(unwritable(format!(
            "it would have {} bytes, at most {SMALL_OBJECT_BYTES_LIMIT}",
            text.len()
        )));
    }
    Ok(text.into())
}

/// The document in `bytes`, if its checksum holds and its format is one we know.
pub(crate) fn decode<T: DeserializeOwned>(
    object: &str,
    bytes: &[u8],
) -> Result<T, RepositoryError> {
    #[derive(serde::Deserialize)]
    struct Version {
        format_version: u32,
    }
    let damaged = |problem: String| RepositoryError::damaged(object, "text", problem);
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not UTF-8".to_owned()))?;
    let (body, stored) = text
        .strip_suffix(CHECKSUM_END)
        .and_then(|text| text.rsplit_once(CHECKSUM_START))
        .ok_or_else(|| damaged("it does not end in its checksum".to_owned()))?;
    let found = Hash::of(body.as_bytes());
    if found.to_string() != stored {
        return Err(damaged(format!(
            "its checksum is {stored}, but that of its text is {found}"
        )));
    }
    let invalid =
        |error: serde_json::Error| damaged(format!("its text is not what it should be: {error}"));
    let version: Version = serde_json::from_str(text).map_err(invalid)?;
    if version.format_version > FORMAT_VERSION {
        return Err(RepositoryError::NewerFormat {
            object: object.to_owned(),
            what: "format version",
            found: version.format_version.into(),
            known: FORMAT_VERSION.into(),
        });
    }
    serde_json::from_str(text).map_err(invalid)
}
