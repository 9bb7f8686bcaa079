//! Where a repository lies: one URL, never with a secret in it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use crate::store::Key;

/// The address of a repository. It is safe to print, because it cannot hold credentials.
///
/// ```
/// use leeward_repository::url::RepositoryUrl;
/// let url: RepositoryUrl = "s3://your-bucket/backups/".parse()?;
/// assert_eq!(url.to_string(), "s3://your-bucket/backups");
/// # Ok::<(), leeward_repository::url::UrlError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum RepositoryUrl {
    /// A directory of this host: `/path` or `file:///path`.
    Local(PathBuf),
    /// A prefix of an object store's bucket.
    Bucket {
        /// Which kind of object store.
        service: Service,
        /// Bucket (S3, Google) or container (Azure).
        bucket: String,
        /// Folder inside the bucket, without slashes at its ends; empty for the whole bucket.
        prefix: String,
    },
}

/// The kinds of object store a repository may lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Amazon S3 and everything that speaks its protocol: `s3://`.
    S3,
    /// Google Cloud Storage: `gs://`.
    Google,
    /// Azure Blob Storage: `az://`.
    Azure,
}

impl Service {
    /// The scheme of the service's URLs, without `://`.
    pub fn scheme(self) -> &'static str {
        match self {
            Service::S3 => "s3",
            Service::Google => "gs",
            Service::Azure => "az",
        }
    }

    /// What the service calls a bucket.
    pub fn bucket_word(self) -> &'static str {
        match self {
            Service::S3 | Service::Google => "bucket",
            Service::Azure => "container",
        }
    }
}

/// Why a text is not a repository's URL. Never repeats a text that may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Nothing was given.
    #[error("the repository's URL is empty")]
    Empty,
    /// User name, password, query or fragment: places where people put credentials.
    #[error(
        "the repository's URL ({scheme}://...) carries {part}, where secrets would show in logs and process lists"
    )]
    Credentials {
        /// The URL's scheme.
        scheme: String,
        /// What was found: "a user name or password", "a query", "a fragment".
        part: &'static str,
    },
    /// The path of a local repository does not begin at the root.
    #[error("the repository's path \"{0}\" is not absolute")]
    Relative(String),
    /// The scheme is none of ours.
    #[error("the repository's URL has the unknown scheme \"{0}\"")]
    UnknownScheme(String),
    /// `file://host/path`.
    #[error("the repository's URL names the host \"{0}\", and a directory is always of this host")]
    ForeignHost(String),
    /// The bucket is missing or not a bucket's name.
    #[error("\"{0}\" is not the name of a bucket")]
    Bucket(String),
    /// The prefix holds something that no key may hold.
    #[error("\"{0}\" is not a usable prefix inside a bucket")]
    Prefix(String),
    /// The path has `..` or a zero byte in it.
    #[error("\"{0}\" is not a usable path")]
    Path(String),
}

impl UrlError {
    /// What to do about it, in one sentence.
    pub fn hint(&self) -> &'static str {
        match self {
            UrlError::Credentials { .. } => {
                "put credentials into the configuration file's [repository] section or into the environment \
                 (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), \
                 or let the instance's role provide them"
            }
            UrlError::Relative(_) | UrlError::Path(_) => {
                "write the directory's full path from \"/\", without \"..\""
            }
            UrlError::Bucket(_) => {
                "a bucket's name has 3 to 63 letters, digits, dots, hyphens or underscores: s3://bucket/prefix"
            }
            UrlError::Prefix(_) => {
                "use letters, digits and the characters - _ . + = @ between slashes, and begin no part with a dot"
            }
            UrlError::Empty | UrlError::UnknownScheme(_) | UrlError::ForeignHost(_) => {
                "write /path, file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
            }
        }
    }
}

impl RepositoryUrl {
    /// Reads a URL or an absolute path.
    ///
    /// # Errors
    /// Whatever is not an address of ours, and every URL with a place for credentials in it.
    pub fn parse(text: &str) -> Result<RepositoryUrl, UrlError> {
        if text.trim().is_empty() {
            return Err(UrlError::Empty);
        }
        if let Some((scheme, rest)) = text.split_once("://")
            && !scheme.contains('/')
        {
            let scheme = scheme.to_ascii_lowercase();
            return parse_with_scheme(&scheme, rest);
        }
        parse_path(text)
    }

    /// The directory of a local repository.
    pub fn local_path(&self) -> Option<&Path> {
        match self {
            RepositoryUrl::Local(path) => Some(path),
            RepositoryUrl::Bucket { .. } => None,
        }
    }
}

fn parse_with_scheme(scheme: &str, rest: &str) -> Result<RepositoryUrl, UrlError> {
    let service = match scheme {
        "file" => None,
        "s3" => Some(Service::S3),
        "gs" => Some(Service::Google),
        "az" => Some(Service::Azure),
        // A scheme is at most a word; anything else may be a secret and is not repeated.
        word if word.len() <= 12 && word.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            return Err(UrlError::UnknownScheme(word.to_owned()));
        }
        _ => return Err(UrlError::UnknownScheme("...".to_owned())),
    };
    let authority = rest.split('/').next().unwrap_or(rest);
    for (found, part) in [
        (authority.contains('@'), "a user name or password"),
        (service.is_some() && rest.contains('?'), "a query"),
        (service.is_some() && rest.contains('#'), "a fragment"),
    ] {
        if found {
            return Err(UrlError::Credentials {
                scheme: scheme.to_owned(),
                part,
            });
        }
    }
    let Some(service) = service else {
        if !authority.is_empty() && authority != "localhost" {
            return Err(UrlError::ForeignHost(authority.to_owned()));
        }
        let path = percent_decode_str(&rest[authority.len()..])
            .decode_utf8()
            .map_err(|_| UrlError::Path(rest.to_owned()))?;
        return parse_path(&path);
    };
    // A key pair with a slash in the secret ("s3://id:se/cret@bucket") shows its "@" only later.
    if authority.contains(':') {
        return Err(UrlError::Credentials {
            scheme: scheme.to_owned(),
            part: "a user name or password",
        });
    }
    let usable = (3..=63).contains(&authority.len())
        && authority
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !usable {
        return Err(UrlError::Bucket(authority.to_owned()));
    }
    let prefix = rest[authority.len()..].trim_matches('/');
    if !prefix.is_empty() && Key::new(prefix).is_err() {
        return Err(UrlError::Prefix(prefix.to_owned()));
    }
    Ok(RepositoryUrl::Bucket {
        service,
        bucket: authority.to_owned(),
        prefix: prefix.to_owned(),
    })
}

fn parse_path(text: &str) -> Result<RepositoryUrl, UrlError> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(UrlError::Relative(text.to_owned()));
    }
    let climbs = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if climbs || text.contains('\0') {
        return Err(UrlError::Path(text.escape_default().to_string()));
    }
    // Collecting the components drops doubled and trailing slashes, so that equal places print equal.
    Ok(RepositoryUrl::Local(path.components().collect()))
}

impl FromStr for RepositoryUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<RepositoryUrl, UrlError> {
        RepositoryUrl::parse(text)
    }
}

impl fmt::Display for RepositoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RepositoryUrl::Local(path) => write!(f, "{}", path.display()),
            RepositoryUrl::Bucket {
                service,
                bucket,
                prefix,
            } if prefix.is_empty() => {
                write!(f, "{}://{bucket}", service.scheme())
            }
            RepositoryUrl::Bucket {
                service,
                bucket,
                prefix,
            } => {
                write!(f, "{}://{bucket}/{prefix}", service.scheme())
            }
        }
    }
}

impl fmt::Debug for RepositoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, printed: &str) {
        let url = RepositoryUrl::parse(text).expect("a URL");
        assert_eq!(url.to_string(), printed);
        assert_eq!(
            RepositoryUrl::parse(printed).as_ref(),
            Ok(&url),
            "what is printed reads back"
        );
    }

    #[track_caller]
    fn refuse(text: &str, message: &str) {
        let error = RepositoryUrl::parse(text).expect_err("no URL");
        assert_eq!(error.to_string(), message);
        assert!(!error.hint().is_empty());
    }

    #[test]
    fn addresses_read_and_print() {
        check("/srv/backups", "/srv/backups");
        check("/srv//backups/", "/srv/backups");
        check("file:///srv/my%20backups", "/srv/my backups");
        check("file://localhost/srv", "/srv");
        check("s3://bucket", "s3://bucket");
        check("S3://bucket/a/b/", "s3://bucket/a/b");
        check("gs://my-bucket.example/x", "gs://my-bucket.example/x");
        check("az://container/leeward", "az://container/leeward");
    }

    #[test]
    fn nonsense_is_refused() {
        refuse("", "the repository's URL is empty");
        refuse(
            "backups",
            "the repository's path \"backups\" is not absolute",
        );
        refuse("/srv/../etc", "\"/srv/../etc\" is not a usable path");
        refuse(
            "ftp://host/x",
            "the repository's URL has the unknown scheme \"ftp\"",
        );
        refuse(
            "file://other/x",
            "the repository's URL names the host \"other\", and a directory is always of this host",
        );
        refuse("s3://b", "\"b\" is not the name of a bucket");
        refuse(
            "s3://bucket/a/../b",
            "\"a/../b\" is not a usable prefix inside a bucket",
        );
    }

    #[test]
    fn credentials_are_refused_and_not_repeated() {
        for text in [
            "s3://AKIAEXAMPLE:hunter2@bucket/x",
            "s3://AKIAEXAMPLE:hun/hunter2@bucket/x",
            "s3://hunter2@bucket",
            "s3://bucket/x?secret=hunter2",
            "gs://bucket/x#hunter2",
            "az://account:hunter2@container",
            "https+hunter2+verylong://x",
        ] {
            let error = RepositoryUrl::parse(text).expect_err("refused");
            for shown in [
                error.to_string(),
                format!("{error:?}"),
                error.hint().to_owned(),
            ] {
                assert!(!shown.contains("hunter2"), "{text}: {shown}");
            }
        }
    }
}
