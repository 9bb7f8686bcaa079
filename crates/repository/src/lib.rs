//! What Leeward stores and how: places for objects, the bytes in them, and who may write.
//!
//! Knows no server, prints nothing, and blocks: asynchronous code stays behind [`store`].

pub mod error;
pub mod process;
pub mod store;
pub mod url;
