//! Runs of the program that the story did not start itself: those a server starts as `archive_command` or
//! `restore_command`, and what they leave running.

use std::fs;

use rustix::process::Signal;

use crate::server::send;
use crate::story::Story;

/// The ids of running processes of the program that work for this story and have these words on their command line.
pub fn running(story: &Story, words: &str) -> Vec<u32> {
    let home = story.path("").display().to_string();
    let home = home.trim_end_matches('/');
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            exe.file_name().is_some_and(|name| name == "leeward")
                && line.contains(words)
                && (line.contains(home)
                    || fs::read_link(format!("/proc/{pid}/cwd"))
                        .is_ok_and(|cwd| cwd.starts_with(home)))
        })
        .collect()
}

/// `kill -9` for all of them; says how many there were.
pub fn kill(story: &Story, words: &str) -> usize {
    let processes = running(story, words);
    for process in &processes {
        send(*process, Signal::KILL);
    }
    processes.len()
}
