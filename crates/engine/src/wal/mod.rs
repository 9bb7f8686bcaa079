//! The WAL archive: files and streams into it, files out of it, and what it holds.
