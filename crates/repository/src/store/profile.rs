//! Amazon's credentials file, which the object-store library does not read.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::options::StoreOptions;
use super::secret::Secret;
use crate::error::StoreError;
use crate::url::RepositoryUrl;

/// The keys of one section of a credentials file.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    pub(super) access_key_id: Secret,
    pub(super) secret_access_key: Secret,
    pub(super) session_token: Option<Secret>,
    pub(super) region: Option<String>,
}

type Sections = HashMap<String, HashMap<String, String>>;

/// The profile that the options ask for, or the file's default; `None` when nobody asked and there is no file.
pub(super) fn find(
    options: &StoreOptions,
    location: &RepositoryUrl,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Profile>, StoreError> {
    let asked = options.profile.is_some() || options.credentials_file.is_some();
    if !asked && environment("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
        // A pod's own identity goes before a file that happens to lie in the home directory.
        return Ok(None);
    }
    let refused = |reason: String, hint| StoreError::Options {
        location: location.clone(),
        reason,
        hint,
    };
    let home = environment("HOME").map(|home| PathBuf::from(home).join(".aws"));
    let Some(file) = options
        .credentials_file
        .clone()
        .or_else(|| home.as_ref().map(|home| home.join("credentials")))
    else {
        return Ok(None);
    };
    let name = options.profile.as_deref().unwrap_or("default");
    let sections = match read(&file) {
        Ok(sections) => sections,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !asked => return Ok(None),
        // The home directory may be closed to us when somebody else's environment came along (sudo).
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !asked => return Ok(None),
        Err(source) => {
            return Err(StoreError::from_io(
                "read the credentials file",
                file,
                0,
                source,
            ));
        }
    };
    // The other file, "config", holds regions, and keys too if somebody likes it so. It is optional.
    let config_file = environment("AWS_CONFIG_FILE")
        .map(PathBuf::from)
        .or_else(|| home.map(|home| home.join("config")));
    let config = config_file
        .and_then(|file| read(&file).ok())
        .unwrap_or_default();
    let get = |key: &str| {
        sections
            .get(name)
            .and_then(|section| section.get(key))
            .or_else(|| config.get(name).and_then(|section| section.get(key)))
            .cloned()
    };
    match (get("aws_access_key_id"), get("aws_secret_access_key")) {
        (Some(id), Some(secret)) => Ok(Some(Profile {
            access_key_id: Secret::new(id),
            secret_access_key: Secret::new(secret),
            session_token: get("aws_session_token").map(Secret::new),
            region: get("region"),
        })),
        _ if !asked => Ok(None),
        _ if get("role_arn").is_some()
            || get("sso_session").is_some()
            || get("sso_start_url").is_some()
            || get("credential_process").is_some() =>
        {
            Err(refused(
                format!("profile \"{name}\" signs in through a role, single sign-on or a command"),
                "export temporary keys into the environment (aws configure export-credentials --format env)",
            ))
        }
        _ => Err(refused(
            format!(
                "profile \"{name}\" with both keys is not in \"{}\"",
                file.display()
            ),
            "check profile (AWS_PROFILE) and credentials_file (AWS_SHARED_CREDENTIALS_FILE)",
        )),
    }
}

fn read(file: &Path) -> io::Result<Sections> {
    Ok(parse(&std::fs::read_to_string(file)?))
}

/// Sections in brackets, "profile " before their names in the config file; `key = value`; `#` and `;` begin comments.
fn parse(text: &str) -> Sections {
    let mut sections = Sections::new();
    let mut section = None;
    for line in text.lines() {
        // Indented lines belong to nested settings, of which none is ours.
        if line.starts_with([' ', '\t']) && !line.trim_start().starts_with('[') {
            continue;
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            let name = name.trim();
            let name = name.strip_prefix("profile ").map_or(name, str::trim);
            section = Some(name.to_owned());
        } else if let (Some(section), Some((key, value))) = (&section, line.split_once('=')) {
            let value = value.split(" #").next().unwrap_or(value).trim();
            sections
                .entry(section.clone())
                .or_default()
                .insert(key.trim().to_ascii_lowercase(), value.to_owned());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# a comment
[default]
aws_access_key_id = DEFAULTID
aws_secret_access_key=default/secret+=
[other]
AWS_ACCESS_KEY_ID=OTHERID
aws_secret_access_key = othersecret # trailing
aws_session_token = token==
region = eu-north-1
s3 =
  max_concurrent_requests = 20
[role]
role_arn = arn:aws:iam::1:role/x
";

    fn check(profile: Option<&str>) -> Result<Option<Profile>, StoreError> {
        let home = tempfile::tempdir().expect("a directory");
        let file = home.path().join("credentials");
        std::fs::write(&file, FILE).expect("written");
        let options = StoreOptions {
            profile: profile.map(str::to_owned),
            credentials_file: Some(file),
            ..StoreOptions::default()
        };
        let location = RepositoryUrl::parse("s3://bucket").expect("a URL");
        find(&options, &location, &|_| None)
    }

    #[test]
    fn profiles_are_found() {
        let default = check(None).expect("read").expect("found");
        assert_eq!(default.access_key_id.reveal(), "DEFAULTID");
        assert_eq!(default.secret_access_key.reveal(), "default/secret+=");
        let other = check(Some("other")).expect("read").expect("found");
        assert_eq!(other.secret_access_key.reveal(), "othersecret");
        assert_eq!(
            other
                .session_token
                .map(|token| token.reveal().to_owned())
                .as_deref(),
            Some("token==")
        );
        assert_eq!(other.region.as_deref(), Some("eu-north-1"));
    }

    #[test]
    fn missing_profiles_say_what_to_do() {
        for (profile, words) in [("none", "is not in"), ("role", "single sign-on")] {
            let error = check(Some(profile)).expect_err("refused");
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn no_file_is_no_error_unless_asked_for() {
        let location = RepositoryUrl::parse("s3://bucket").expect("a URL");
        let home = tempfile::tempdir().expect("a directory");
        let environment = |name: &str| (name == "HOME").then(|| home.path().display().to_string());
        let nobody_asked = find(&StoreOptions::default(), &location, &environment);
        assert!(matches!(nobody_asked, Ok(None)), "{nobody_asked:?}");
        let asked = StoreOptions {
            profile: Some("x".into()),
            ..StoreOptions::default()
        };
        assert!(find(&asked, &location, &environment).is_err());
    }
}
