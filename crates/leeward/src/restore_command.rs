//! The `restore_command` of a restored server: this program, as it was called here.

use std::path::{Path, PathBuf};

use leeward_engine::error::{Error, Result};

use crate::args::Global;
use crate::config::Config;

/// The command, for the shell that the server starts, but for its last words; every `%` in it is doubled.
///
/// # Errors
/// When a path in it is not UTF-8, or holds a line break, which no setting can.
pub fn restore_command(global: &Global, config: &Config, cluster: &str) -> Result<String> {
    let program = std::env::current_exe()
        .map_err(|e| Error::failed("could not find out where this program lies").because(e))?;
    let mut words = vec![text(&program)?, "wal".to_owned(), "get".to_owned()];
    let mut option = |name: &str, value: String| {
        words.push(name.to_owned());
        words.push(value);
    };
    if let Some(file) = &global.config {
        option("--config", text(&absolute(file)?)?);
    }
    if let Some(stage) = &global.stage {
        option("--stage", stage.clone());
    }
    // Always by name: another file or variable may lead elsewhere by then.
    option("--repository", config.url()?.to_string());
    option("--cluster", cluster.to_owned());
    let command: Vec<String> = words
        .iter()
        // The server takes a percent sign for the beginning of a placeholder.
        .map(|word| quoted(&word.replace('%', "%%")))
        .collect();
    let command = command.join(" ");
    if command.contains(['\n', '\r', '\0']) {
        return Err(Error::failed(
            "the restore_command would hold a line break, which no setting of the server can",
        ));
    }
    Ok(command)
}

/// A note that names what the server needs in its environment to reach the repository as we did.
pub fn environment_needed(config: &Config) -> Option<String> {
    let prefixes: &[&str] = match config.url().ok()?.to_string().split_once("://")?.0 {
        "s3" => &["AWS_"],
        "gs" => &["GOOGLE_"],
        "az" => &["AZURE_"],
        _ => return None,
    };
    let mut names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    if names.is_empty() {
        return None;
    }
    Some(format!(
        "Here the repository was reached with {} from the environment. Give the server the same, or put them into the configuration file that restore_command names with --config.",
        names.join(", ")
    ))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|e| Error::failed(format!("could not resolve \"{}\"", path.display())).because(e))
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| {
        Error::failed(format!(
            "the path \"{}\" is not UTF-8, and cannot stand in restore_command",
            path.display()
        ))
    })?;
    // A program that was replaced while it runs is shown so (proc_pid_exe(5)).
    Ok(text.strip_suffix(" (deleted)").unwrap_or(text).to_owned())
}

/// A word for the shell.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@+=,%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_shell() {
        for (word, expected) in [
            ("/usr/bin/leeward", "/usr/bin/leeward"),
            ("s3://bucket/a", "s3://bucket/a"),
            ("/with space", "'/with space'"),
            ("o'clock", "'o'\\''clock'"),
            ("100%", "100%"),
            ("$HOME;rm", "'$HOME;rm'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
