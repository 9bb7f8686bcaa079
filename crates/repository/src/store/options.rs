//! How to reach a store: endpoint, credentials, sizes. From the configuration, overridden by the environment.

use std::path::PathBuf;
use std::time::Duration;

use super::profile::{self, Profile};
use super::secret::Secret;
use crate::error::StoreError;
use crate::url::RepositoryUrl;

/// The default size of a part of a large upload.
pub const DEFAULT_PART_BYTES: usize = 8 << 20;
/// S3 takes no smaller part but the last.
pub const MIN_PART_BYTES: usize = 5 << 20;
/// Larger parts would break the bound on memory.
pub const MAX_PART_BYTES: usize = 64 << 20;
/// The default number of parts of one upload that are under way at a time.
pub const DEFAULT_CONCURRENCY: usize = 4;

/// What is needed to reach a store beside its address. Local directories need none of it.
///
/// Where nothing gives credentials, the provider's own ways are tried: the instance's or container's role, web
/// identity, Google's application default credentials, Azure's managed identity.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Where the service answers, `https://host:port`; the provider's own place when absent.
    pub endpoint: Option<String>,
    /// The bucket's region; `us-east-1` when absent.
    pub region: Option<String>,
    /// Whether the bucket stands in the path and not in the host's name. Unless told: with an endpoint yes, at Amazon no.
    pub path_style: Option<bool>,
    /// Whether an endpoint without TLS may be used beyond this host.
    pub allow_http: bool,
    /// A file of PEM certificates to trust beside the system's.
    pub ca_certificate: Option<PathBuf>,
    /// Whether any certificate is accepted.
    pub skip_tls_verification: bool,
    /// The access key (S3) or the account's name (Azure).
    pub access_key_id: Option<Secret>,
    /// The secret key (S3) or the account's key (Azure).
    pub secret_access_key: Option<Secret>,
    /// The token that goes with temporary S3 keys.
    pub session_token: Option<Secret>,
    /// Which section of the credentials file to use.
    pub profile: Option<String>,
    /// The credentials file: `~/.aws/credentials` when absent; for Google the service account's JSON file.
    pub credentials_file: Option<PathBuf>,
    /// The storage class of what is written, as the provider names it.
    pub storage_class: Option<String>,
    /// The size of a part of a large upload, in bytes.
    pub part_bytes: usize,
    /// How many parts of one upload are under way at a time. One upload takes `part_bytes * (concurrency + 1)` of memory.
    pub concurrency: usize,
    /// How long an operation is tried again before it fails.
    pub retry_for: Duration,
    /// How long an answer may take to begin, or to go on.
    pub patience: Duration,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: false,
            ca_certificate: None,
            skip_tls_verification: false,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            profile: None,
            credentials_file: None,
            storage_class: None,
            part_bytes: DEFAULT_PART_BYTES,
            concurrency: DEFAULT_CONCURRENCY,
            retry_for: Duration::from_secs(180),
            patience: Duration::from_secs(30),
        }
    }
}

impl StoreOptions {
    /// Everything from the process's environment, nothing from a configuration.
    pub fn from_environment() -> StoreOptions {
        StoreOptions::default().overridden_by(|name| std::env::var(name).ok())
    }

    /// Lets the usual environment variables override what a configuration says. Keys come and go as a whole, so that
    /// a token of one place never meets a key of another.
    ///
    /// Read are `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_PROFILE`, `AWS_SHARED_CREDENTIALS_FILE`, `AWS_CA_BUNDLE`
    /// and `AWS_ALLOW_HTTP`. Those of Google and Azure are read when such a store is opened.
    #[must_use]
    pub fn overridden_by(mut self, environment: impl Fn(&str) -> Option<String>) -> StoreOptions {
        let read = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| environment(name).filter(|value| !value.is_empty()))
        };
        if let Some(endpoint) = read(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]) {
            self.endpoint = Some(endpoint);
        }
        if let Some(region) = read(&["AWS_REGION", "AWS_DEFAULT_REGION"]) {
            self.region = Some(region);
        }
        if let (Some(id), Some(secret)) = (
            read(&["AWS_ACCESS_KEY_ID"]),
            read(&["AWS_SECRET_ACCESS_KEY"]),
        ) {
            self.access_key_id = Some(Secret::new(id));
            self.secret_access_key = Some(Secret::new(secret));
            self.session_token = read(&["AWS_SESSION_TOKEN"]).map(Secret::new);
        }
        if let Some(profile) = read(&["AWS_PROFILE"]) {
            self.profile = Some(profile);
        }
        if let Some(file) = read(&["AWS_SHARED_CREDENTIALS_FILE"]) {
            self.credentials_file = Some(file.into());
        }
        if let Some(bundle) = read(&["AWS_CA_BUNDLE"]) {
            self.ca_certificate = Some(bundle.into());
        }
        if read(&["AWS_ALLOW_HTTP"])
            .is_some_and(|value| matches!(value.as_str(), "1" | "true" | "yes" | "on"))
        {
            self.allow_http = true;
        }
        self
    }

    /// The endpoint as a URL without a slash at its end.
    pub(super) fn endpoint_url(
        &self,
        location: &RepositoryUrl,
    ) -> Result<Option<String>, StoreError> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(None);
        };
        let text = if endpoint.contains("://") {
            endpoint.clone()
        } else {
            format!("https://{endpoint}")
        };
        let refused = |reason: &str, hint| StoreError::Options {
            location: location.clone(),
            reason: reason.to_owned(),
            hint,
        };
        let url = url::Url::parse(&text).map_err(|_| {
            refused(
                "the endpoint is not a URL",
                "write endpoint as https://host:port",
            )
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused(
                "the endpoint carries a user name or password",
                "put credentials into access_key_id and secret_access_key",
            ));
        }
        let loopback = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => {
                return Err(refused(
                    "the endpoint names no host",
                    "write endpoint as https://host:port",
                ));
            }
        };
        match url.scheme() {
            "https" => {}
            "http" if loopback || self.allow_http => {}
            "http" => {
                return Err(refused(
                    "the endpoint has no TLS, and backups would cross the network in the clear",
                    "use https://, or set allow_http = true (AWS_ALLOW_HTTP=true) if the network is yours",
                ));
            }
            _ => {
                return Err(refused(
                    "the endpoint is neither https nor http",
                    "write endpoint as https://host:port",
                ));
            }
        }
        Ok(Some(text.trim_end_matches('/').to_owned()))
    }

    /// The keys to sign with, where they are known: the options' own, or those of the credentials file's profile.
    pub(super) fn keys(
        &self,
        location: &RepositoryUrl,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Profile>, StoreError> {
        match (&self.access_key_id, &self.secret_access_key) {
            (Some(id), Some(secret)) => Ok(Some(Profile {
                access_key_id: id.clone(),
                secret_access_key: secret.clone(),
                session_token: self.session_token.clone(),
                region: None,
            })),
            (None, None) => profile::find(self, location, environment),
            (id, _) => Err(StoreError::Options {
                location: location.clone(),
                reason: format!(
                    "{} is given without {}",
                    if id.is_some() {
                        "access_key_id"
                    } else {
                        "secret_access_key"
                    },
                    if id.is_some() {
                        "secret_access_key"
                    } else {
                        "access_key_id"
                    },
                ),
                hint: "give both, or neither to use the environment or the instance's role",
            }),
        }
    }

    /// The size of parts, inside the bounds.
    pub(super) fn bounded_part_bytes(&self) -> usize {
        self.part_bytes.clamp(MIN_PART_BYTES, MAX_PART_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location() -> RepositoryUrl {
        RepositoryUrl::parse("s3://bucket/x").expect("a URL")
    }

    fn environment<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn the_environment_overrides_and_keys_stay_together() {
        let configured = StoreOptions {
            access_key_id: Some(Secret::new("file-id")),
            secret_access_key: Some(Secret::new("file-secret")),
            session_token: Some(Secret::new("file-token")),
            region: Some("eu-west-1".into()),
            ..StoreOptions::default()
        };
        let half = configured
            .clone()
            .overridden_by(environment(&[("AWS_ACCESS_KEY_ID", "env-id")]));
        assert_eq!(
            half.access_key_id,
            Some(Secret::new("file-id")),
            "half a pair is no pair"
        );

        let whole = configured.overridden_by(environment(&[
            ("AWS_ACCESS_KEY_ID", "env-id"),
            ("AWS_SECRET_ACCESS_KEY", "env-secret"),
            ("AWS_DEFAULT_REGION", "eu-central-1"),
            ("AWS_ENDPOINT_URL", "https://generic"),
            ("AWS_ENDPOINT_URL_S3", "https://s3"),
        ]));
        assert_eq!(whole.access_key_id, Some(Secret::new("env-id")));
        assert_eq!(
            whole.session_token, None,
            "the file's token does not go with the environment's key"
        );
        assert_eq!(whole.region.as_deref(), Some("eu-central-1"));
        assert_eq!(whole.endpoint.as_deref(), Some("https://s3"));
        let shown = format!("{whole:?}");
        assert!(
            !shown.contains("env-secret") && !shown.contains("env-id"),
            "{shown}"
        );
    }

    #[test]
    fn endpoints_are_checked() {
        let check = |endpoint: &str, allow_http| {
            StoreOptions {
                endpoint: Some(endpoint.into()),
                allow_http,
                ..StoreOptions::default()
            }
            .endpoint_url(&location())
        };
        assert_eq!(
            check("minio.example:9000/", false)
                .ok()
                .flatten()
                .as_deref(),
            Some("https://minio.example:9000")
        );
        assert_eq!(
            check("http://127.0.0.1:9000", false)
                .ok()
                .flatten()
                .as_deref(),
            Some("http://127.0.0.1:9000")
        );
        assert!(check("http://minio.example", false).is_err());
        assert!(check("http://minio.example", true).is_ok());
        assert!(check("ftp://minio.example", true).is_err());
        let error = check("https://id:hunter2@minio.example", false)
            .expect_err("refused")
            .to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
