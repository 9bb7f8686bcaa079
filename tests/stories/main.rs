//! Stories on real servers, one file each, told on every major version from 14 to 18. Each tells what a user does
//! and what must come of it; the kit they use lies in `tests/testkit`.

#[path = "000_the_kit.rs"]
mod story_000_the_kit;
